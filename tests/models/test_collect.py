"""Collecting from networks: what comes, that it is in order, and that the network is as it was."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import alkernels as alk


def network(dropout=0.3):
    """A convolution, BatchNorm, both kinds of dropout, a Linear head; random weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(dropout), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3),
    )  # fmt: skip
    net[1].running_mean.normal_()
    return net


@pytest.fixture
def net():
    return network()


@pytest.fixture
def images():
    return torch.randn(23, 1, 6, 6, generator=torch.Generator().manual_seed(1))


EVERYTHING = ["probs", "log_probs", "features", "mc_probs", "votes", "head_weight", "head_bias"]


def test_the_arrays_are_the_networks(net, images):
    arrays = alk.collect(net, images, EVERYTHING, draws=4, generator=0)
    net.eval()
    with torch.no_grad():
        logits, features = net(images), net[:-1](images)
    assert torch.allclose(arrays["probs"], logits.softmax(1), atol=1e-6)
    assert torch.allclose(arrays["log_probs"], logits.log_softmax(1), atol=1e-5)
    assert torch.allclose(arrays["features"], features, atol=1e-6)
    assert torch.equal(arrays["head_weight"], net[-1].weight) and torch.equal(arrays["head_bias"], net[-1].bias)
    assert arrays["mc_probs"].shape == (23, 4, 3)
    assert torch.equal(arrays["votes"], arrays["mc_probs"].argmax(2))
    assert list(arrays) == EVERYTHING


class Pairs(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


@pytest.mark.parametrize("kind", ["tensor", "numpy", "dataset", "loader", "list", "generator", "mapping"])
def test_any_loader_gives_the_same(net, images, kind):
    labels = torch.arange(23) % 3
    loader = {
        "tensor": images,
        "numpy": images.numpy(),
        "dataset": Pairs(images, labels),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=5),
        "list": list(zip(images.split(9), labels.split(9), strict=True)),
        "generator": (x for x in images.split(4)),
        "mapping": DataLoader([{"input": x, "labels": y} for x, y in zip(images, labels, strict=True)], batch_size=6),
    }[kind]
    expected = alk.collect(net, images, ["probs", "features", "mc_probs"], draws=3, generator=0)
    arrays = alk.collect(net, loader, ["probs", "features", "mc_probs"], draws=3, generator=0, batch_size=7)
    for name, value in expected.items():
        assert isinstance(arrays[name], np.ndarray if kind == "numpy" else torch.Tensor)
        assert torch.allclose(torch.as_tensor(arrays[name]), value, atol=1e-6), name
    if kind in ("dataset", "list", "loader"):
        again = loader if kind != "generator" else images
        assert torch.equal(alk.collect(net, again, "labels")["labels"], labels)


def test_the_network_is_as_it_was(net, images):
    net.train()
    net[3].eval()  # frozen by hand
    flags = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in net.modules()]
    rng = torch.get_rng_state()
    alk.collect(net, DataLoader(TensorDataset(images), batch_size=4), EVERYTHING, draws=3, generator=1)
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [len(m._forward_hooks) for m in net.modules()] == hooks == [0] * len(hooks)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_the_network_is_as_it_was_after_an_error(net, images):
    net.train()

    def broken(model, batch):
        model(batch)
        raise RuntimeError("in the middle")

    rng = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in the middle"):
        alk.collect(net, images, ["mc_probs", "features"], forward=broken, generator=0)
    assert all(m.training for m in net.modules()) and not any(m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_what_comes_can_be_trained_on(net, images):
    """Nothing made in inference mode leaves."""
    for loader in (images, iter(images.split(5))):
        features = alk.collect(net, loader, "features")["features"]
        head = nn.Linear(8, 3)
        head(features).sum().backward()
        assert head.weight.grad is not None and not features.requires_grad


@pytest.mark.parametrize("batch_size", [1, 4, 23])
def test_masks_are_the_same_for_every_row_and_batch_size(net, images, batch_size):
    same = images[:1].expand_as(images)
    for consistent in (True, False):
        posterior = alk.models.MCDropout(net, 6, consistent=consistent, generator=3)
        expected = alk.collect(posterior, images, "mc_probs")["mc_probs"]
        draws = alk.collect(posterior, images, "mc_probs", batch_size=batch_size)["mc_probs"]
        assert torch.allclose(draws, expected, atol=1e-6)
        copies = alk.collect(posterior, same, "mc_probs", batch_size=batch_size)["mc_probs"]
        # one network a draw: the same row has the same prediction, wherever it stands
        assert torch.allclose(copies, copies[:1].expand_as(copies), atol=1e-6) == consistent
        assert len(copies[0].unique(dim=0)) > 1


def test_a_draw_is_the_network_with_units_dropped(net):
    """By hand: two features, one layer of dropout; each draw is a network of the units that were kept, scaled."""
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0], [-3.0, 0.5]]))
    posterior = alk.models.MCDropout(nn.Sequential(nn.Dropout(0.25), head), 200, generator=0)
    x = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    draws = alk.collect(posterior, x, "mc_probs")["mc_probs"]
    kept = {
        (a, b): torch.softmax(x * torch.tensor([a, b]) / 0.75 @ head.weight.detach().T, 1)
        for a in (0, 1)
        for b in (0, 1)
    }
    found = [[m for m, p in kept.items() if torch.allclose(draws[:, k], p, atol=1e-6)] for k in range(200)]
    assert all(len(f) == 1 for f in found)
    share = np.mean([sum(f[0]) / 2 for f in found])
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)


@pytest.mark.parametrize(
    "layer", [nn.Dropout1d(0.4), nn.Dropout2d(0.4), nn.Dropout3d(0.4), nn.FeatureAlphaDropout(0.4)]
)
def test_whole_channels_are_dropped(layer):
    dims = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3, nn.FeatureAlphaDropout: 2}[type(layer)]
    seen = []
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * 3**dims, 2))
    net[1].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    x = torch.rand(2, 8, *[3] * dims) + 0.5
    alk.collect(alk.models.MCDropout(net, 5, generator=0), x, "mc_probs")
    for dropped in seen:
        flat = dropped.flatten(2)
        changed = flat != flat[:, :, :1] if isinstance(layer, nn.FeatureAlphaDropout) else flat != 0
        assert torch.equal(changed.any(2), changed.flatten(2)[:, :, 1:].all(2))
        assert torch.equal(changed.any(2)[0], changed.any(2)[1])  # the same ones in both rows
    assert 0 < sum(float((d.flatten(2).std(2) == 0).float().mean()) for d in seen) < len(seen)


def test_alpha_dropout_keeps_mean_and_variance():
    seen = []
    net = nn.Sequential(nn.AlphaDropout(0.3), nn.Linear(20000, 2))
    net[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = torch.randn(1, 20000, generator=torch.Generator().manual_seed(0))
    alk.collect(alk.models.MCDropout(net, 1, generator=0), x, "mc_probs")
    assert abs(float(seen[0].mean())) < 0.05 and abs(float(seen[0].std()) - 1) < 0.05
    # those that are dropped all become one number
    assert float((seen[0] == seen[0].mode().values).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_a_module_that_runs_twice_drops_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(64, 2, bias=False)
            self.both = []

        def forward(self, x):
            first, second = self.drop(torch.ones(len(x), 64)), self.drop(torch.ones(len(x), 64))
            self.both.append((first[0] > 0, second[0] > 0))
            return self.head(first + second)

    net = Twice()
    alk.collect(alk.models.MCDropout(net, 4, generator=0), torch.zeros(10, 1), "mc_probs", batch_size=5)
    assert not any(torch.equal(a, b) for a, b in net.both)
    assert all(torch.equal(net.both[k][0], net.both[k + 4][0]) for k in range(4))


def test_pool_and_targets_share_their_draws(net, images):
    arrays = alk.collect(net, images, "epig", targets=images[:5], draws=7, generator=0)
    assert set(arrays) == {"mc_probs", "target_mc_probs"}
    assert torch.allclose(arrays["target_mc_probs"], arrays["mc_probs"][:5], atol=1e-6)
    assert len(alk.select("epig", 3, **arrays).indices) == 3


# What select needs of arrays that only a user has.
_NOT_COLLECTED = {
    "forgetting", "label_dispersion", "loss_prediction", "vaal", "mal", "power", "softmax", "softrank",
    "facility_location", "probcover",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in alk.strategies.names() if n not in _NOT_COLLECTED])
def test_a_strategys_name_stands_for_what_it_needs(name, net, images):
    pool = images.repeat(3, 1, 1, 1) + 0.1 * torch.randn(69, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    labeled = DataLoader(TensorDataset(images, torch.arange(23) % 3), batch_size=10)
    arrays = alk.collect(net, pool, name, labeled=labeled, targets=images if name == "epig" else None, generator=0)
    assert len(alk.select(name, 4, **arrays, generator=0).indices) == 4


def test_named_layers(net, images):
    maps = alk.collect(net, images, "features", layer="0")["features"]
    assert torch.allclose(maps, net[0](images).mean((2, 3)), atol=1e-6)
    flat = alk.collect(net, images, "features", layer="0", pooling="flatten")["features"]
    assert flat.shape == (23, 6 * 16)
    both = alk.collect(net, images, ["features", "head_weight"], layer="6")
    assert both["features"].shape == (23, 8) and torch.equal(both["head_weight"], net[-1].weight)
    with pytest.raises(ValueError, match=r"layer must be a module of the network, got 'fc'; there are 0, 1, 2, .*, 9"):
        alk.collect(net, images, "features", layer="fc")


class Sequences(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)
        self.batch_first = batch_first

    def forward(self, ids):
        tokens = self.embed(ids if self.batch_first else ids.T)
        hidden = self.encoder(tokens)
        return {"logits": self.head(hidden[:, 0] if self.batch_first else hidden[0])}


def test_transformers():
    """In evaluation PyTorch's encoder may take a path of its own, past its dropout modules."""
    torch.manual_seed(0)
    net, ids = Sequences(), torch.arange(70).reshape(10, 7) % 50
    arrays = alk.collect(net, ids, ["mc_probs", "features", "probs"], draws=5, generator=0)
    assert arrays["features"].shape == (10, 16)
    assert (arrays["mc_probs"].std(1) > 1e-3).all()
    split = alk.collect(net, ids, "mc_probs", draws=5, generator=0, batch_size=3)["mc_probs"]
    assert torch.allclose(split, arrays["mc_probs"], atol=1e-6)
    first = alk.collect(net, ids, "features", layer="encoder", pooling="first")["features"]
    assert torch.allclose(first, arrays["features"], atol=1e-6)
    with pytest.raises(ValueError, match=r"features must be \[B, D\] or maps, got the sequences \(10, 7, 16\)"):
        alk.collect(net, ids, "features", layer="encoder")
    with pytest.raises(ValueError, match=r"rows must lie along the first axis of what dropout 'encoder.* batch_first"):
        alk.collect(Sequences(batch_first=False), ids, "mc_probs", draws=2)


def test_to_files(net, images, tmp_path):
    arrays = alk.collect(net, images, ["probs", "features", "mc_probs"], draws=3, generator=0, out=tmp_path / "pool")
    expected = alk.collect(net, images, ["probs", "features", "mc_probs"], draws=3, generator=0)
    for name, value in expected.items():
        assert isinstance(arrays[name], np.memmap)
        assert np.array_equal(arrays[name], value.numpy())
    assert sorted(p.name for p in (tmp_path / "pool").iterdir()) == ["features.npy", "mc_probs.npy", "probs.npy"]
    with pytest.raises(ValueError, match=r"loader must have a length for out="):
        alk.collect(net, iter(images.split(5)), out=tmp_path)
    before = (tmp_path / "pool" / "probs.npy").read_bytes()
    broken = images.clone()
    broken[20] = torch.nan
    with pytest.raises(ValueError, match=r"outputs must be numbers below infinity, got nan in row 4 of a batch"):
        alk.collect(net, broken, out=tmp_path / "pool", batch_size=8)
    assert sorted(p.name for p in (tmp_path / "pool").iterdir()) == ["features.npy", "mc_probs.npy", "probs.npy"]
    assert (tmp_path / "pool" / "probs.npy").read_bytes() == before


def test_segmentation():
    net, x = nn.Conv2d(1, 3, 1), torch.randn(4, 1, 5, 5)
    with pytest.raises(
        ValueError, match=r"one row of class scores for each input, \[B, C\], got \(4, 3, 5, 5\).*spatial"
    ):
        alk.collect(net, x)
    arrays = alk.collect(net, x, ["probs", "log_probs"], spatial="mean")
    assert torch.allclose(arrays["probs"], net(x).softmax(1).mean((2, 3)), atol=1e-6)
    assert torch.allclose(arrays["log_probs"].exp(), arrays["probs"], atol=1e-6)


def test_suggestive_annotation_of_segmentation_takes_the_mean_variance_of_positions():
    """Not the variance of their mean, which is another number."""
    net, x = nn.Sequential(nn.Dropout(0.4), nn.Conv2d(1, 3, 1)), torch.randn(9, 1, 5, 5)
    seen = []
    net.register_forward_hook(lambda m, args, out: seen.append(out.softmax(1).double()) if len(out) == 9 else None)
    both = ["suggestive_annotation", "mc_probs"]
    arrays = alk.collect(net, x, both, spatial="mean", layer="1", draws=4, generator=0)
    assert set(arrays) == {"features", "scores", "mc_probs"}
    variance = torch.stack(seen[-4:]).var(0, correction=0)
    assert torch.allclose(arrays["scores"].double(), variance.mean((1, 2, 3)), rtol=1e-5)
    assert len(alk.select("suggestive_annotation", 3, **arrays).indices) == 3


def test_outputs_that_are_probabilities(net, images):
    expected = alk.collect(net, images, ["probs", "log_probs"])
    with pytest.raises(ValueError, match="outputs must be 'probs' for a network that gives probabilities"):
        alk.collect(nn.Sequential(net, nn.Softmax(1)), images)
    for last, outputs in ((nn.Softmax(1), "probs"), (nn.LogSoftmax(1), "log_probs"), (nn.LogSoftmax(1), "logits")):
        arrays = alk.collect(nn.Sequential(net, last), images, ["probs", "log_probs", "features"], outputs=outputs)
        for name in ("probs", "log_probs"):
            assert torch.allclose(arrays[name], expected[name], atol=1e-5)
        assert arrays["features"].shape == (23, 8)


def test_half_precision(net, images):
    arrays = alk.collect(net.bfloat16(), images.bfloat16(), ["probs", "features"])
    assert arrays["probs"].dtype == torch.float32 and arrays["features"].dtype == torch.bfloat16
    assert len(alk.select("badge", 3, **arrays, generator=0).indices) == 3


def test_a_compiled_network(net, images):
    compiled = torch.compile(net, backend="eager")
    expected = alk.collect(net, images, ["features", "mc_probs"], draws=3, generator=0)
    arrays = alk.collect(compiled, images, ["features", "mc_probs"], draws=3, generator=0)
    assert all(torch.equal(v, expected[k]) for k, v in arrays.items())


def test_what_is_refused(net, images):
    shuffled = DataLoader(TensorDataset(images), batch_size=4, shuffle=True)
    dropped = DataLoader(TensorDataset(images), batch_size=4, drop_last=True)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match="loader must give the pool in order, got one with a RandomSampler"):
        alk.collect(net, shuffled)
    with pytest.raises(ValueError, match="loader must give every row, got one with drop_last=True"):
        alk.collect(net, dropped)
    with pytest.raises(ValueError, match="model must have a dropout module with p above 0"):
        alk.collect(plain, images, "mc_probs")
    with pytest.raises(ValueError, match="model must have a dropout module with p above 0"):
        alk.models.MCDropout(network(dropout=0.0))
    with pytest.raises(ValueError, match=r"must end in a torch.nn.Linear layer .* there are 0, 1"):
        alk.collect(nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten()), images, "badge")
    with pytest.raises(ValueError, match=r"scores of at least two classes, \[B, C\], got \(23, 1\)"):
        alk.collect(nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), images)
    with pytest.raises(ValueError, match="needs must be arrays or strategies, got 'prob'; did you mean 'probs'"):
        alk.collect(net, images, "prob")
    with pytest.raises(ValueError, match="for labels to be found"):
        alk.collect(net, images, "labels")
    with pytest.raises(ValueError, match="loader must have at least one row"):
        alk.collect(net, images[:0])
    with pytest.raises(ValueError, match="loader must give at least one row, got 0"):
        alk.collect(net, iter([]))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or a posterior, got str"):
        alk.collect("net", images)
    with pytest.raises(TypeError, match="the network must give a tensor of class scores, got int"):
        alk.collect(net, images, forward=lambda m, x: 3)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        alk.collect(net, images, "bald", draws=0)
    with pytest.raises(ValueError, match="pooling must be 'mean' or 'first' or 'flatten', got 'max'"):
        alk.collect(net, images, pooling="max")


def test_progress(net, images, capsys):
    alk.collect(net, images, progress=True)
    assert "23/23" in capsys.readouterr().err
    alk.collect(net, images)
    assert capsys.readouterr().err == ""
