"""anomalib's core-set: the class needs torch only; what needs anomalib itself is skipped where it is missing."""

import importlib

import pytest
import torch

import alkernels as alk
from alkernels.integrations.anomalib import KCenterGreedy, _projected, use_in_anomalib

PATCHCORE = "anomalib.models.image.patchcore.torch_model"


def anomalib_model():
    """PatchCore's module; a torchvision that does not fit the installed torch raises a RuntimeError."""
    try:
        return importlib.import_module(PATCHCORE)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"anomalib cannot be imported: {error}")


def rows(count=300, width=12, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def radius(embedding, picks):
    return torch.cdist(embedding.double(), embedding[picks].double()).amin(1).max().item()


def test_the_start_is_drawn_as_anomalib_draws_it_and_is_in_the_core_set():
    embedding = rows()
    torch.manual_seed(3)
    start = int(torch.randint(high=300, size=(1,)))
    torch.manual_seed(3)
    picks = KCenterGreedy(embedding, 0.1, progress=False).select_coreset_idxs()
    assert picks[0] == start
    assert picks == alk.k_center_greedy(embedding, 30, start=start).indices.tolist()
    assert len(set(picks)) == 30 and all(isinstance(row, int) for row in picks)


def test_the_core_set_are_rows_of_the_embedding_of_any_shape():
    embedding = rows().reshape(300, 3, 4).requires_grad_()
    torch.manual_seed(1)
    picks = KCenterGreedy(embedding, 0.02, progress=False).select_coreset_idxs()
    torch.manual_seed(1)
    chosen = KCenterGreedy(embedding, 0.02, progress=False).sample_coreset()
    assert chosen.shape == (6, 3, 4) and chosen.requires_grad
    assert torch.equal(chosen, embedding[picks])


@pytest.mark.parametrize(("count", "ratio", "wanted"), [(10, 0.19, 1), (10, 0.5, 5), (7, 1, 7), (3, 0.99, 2)])
def test_the_size_is_rounded_down(count, ratio, wanted):
    sampler = KCenterGreedy(rows(count), ratio, progress=False)
    assert sampler.coreset_size == len(sampler.select_coreset_idxs()) == wanted
    assert sampler.n_observations == count


@pytest.mark.parametrize(
    ("embedding", "options", "error", "message"),
    [
        (rows(10), {"sampling_ratio": 0.05}, ValueError, "sampling_ratio must be .* got 0.05 of 10 rows"),
        (rows(10), {"sampling_ratio": 1.5}, ValueError, "sampling_ratio must be at most 1"),
        (rows(10), {"sampling_ratio": float("nan")}, ValueError, "sampling_ratio must be"),
        (rows(10), {"sampling_ratio": "all"}, TypeError, "sampling_ratio must be"),
        (
            rows(10)[:, 0],
            {"sampling_ratio": 0.5},
            ValueError,
            r"embedding must have rows of features, got shape \(10,\)",
        ),
        ([[1.0]], {"sampling_ratio": 0.5}, TypeError, "embedding must be a torch.Tensor, got list"),
        (rows(10), {"sampling_ratio": 0.5, "projection": 1}, TypeError, "projection must be"),
    ],
)
def test_bad_input_is_named(embedding, options, error, message):
    with pytest.raises(error, match=message):
        KCenterGreedy(embedding, **options)


def test_an_embedding_with_nan_is_refused():
    embedding = rows(10)
    embedding[4, 2] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        KCenterGreedy(embedding, 0.5, progress=False).select_coreset_idxs()


def test_the_projection_keeps_distances_and_is_left_out_where_it_is_no_narrower():
    torch.manual_seed(0)
    wide = rows(40, 2000)
    narrow = _projected(wide)
    assert narrow.shape == (40, int(4 * torch.tensor(40.0).log() / (0.81 / 2 - 0.729 / 3)))
    ratio = torch.pdist(narrow) / torch.pdist(wide)
    assert abs(ratio.mean().item() - 1) < 0.05 and ratio.std() < 0.15
    assert torch.equal(_projected(wide[:, :90]), wide[:, :90])
    torch.manual_seed(5)
    first = KCenterGreedy(wide, 0.2, projection=True, progress=False).select_coreset_idxs()
    torch.manual_seed(5)
    drawn, start = _projected(wide), int(torch.randint(high=40, size=(1,)))
    assert first == alk.k_center_greedy(drawn, 8, start=start).indices.tolist()
    torch.manual_seed(6)
    assert first != KCenterGreedy(wide, 0.2, projection=True, progress=False).select_coreset_idxs()


def test_equal_to_anomalib_where_it_does_not_project():
    theirs = anomalib_model().KCenterGreedy
    embedding = rows(200).unsqueeze(-1)
    torch.manual_seed(7)
    wanted = theirs(embedding, 0.25).select_coreset_idxs()
    torch.manual_seed(7)
    assert KCenterGreedy(embedding, 0.25, progress=False).select_coreset_idxs() == wanted


def test_covers_better_than_anomalib_does_on_its_projection():
    theirs = anomalib_model().KCenterGreedy
    embedding = rows(2000, 16)
    ours, other = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        other.append(radius(embedding, theirs(embedding, 0.05).select_coreset_idxs()))
        torch.manual_seed(seed)
        ours.append(radius(embedding, KCenterGreedy(embedding, 0.05, progress=False).select_coreset_idxs()))
    assert sum(ours) < sum(other)


def test_patchcore_selects_with_it_and_gets_its_own_back():
    model = anomalib_model()
    theirs = model.KCenterGreedy
    with use_in_anomalib() as undo:
        assert model.KCenterGreedy is not theirs and undo is not None
        net = model.PatchcoreModel(layers=["layer2"], backbone="resnet18", pre_trained=False)
        net.embedding_store.append(rows(50))
        torch.manual_seed(2)
        net.subsample_embedding(0.2)
    assert model.KCenterGreedy is theirs
    torch.manual_seed(2)
    assert torch.equal(net.memory_bank, KCenterGreedy(rows(50), 0.2, progress=False).sample_coreset())
    for_good = use_in_anomalib(projection=True)
    assert model.KCenterGreedy(rows(50), 0.2).projection
    for_good.close()
    assert model.KCenterGreedy is theirs


def test_a_missing_anomalib_names_the_extra(monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, PATCHCORE, None)
    with pytest.raises(ImportError, match=r"pip install 'alkernels\[anomalib\]'"):
        use_in_anomalib()
