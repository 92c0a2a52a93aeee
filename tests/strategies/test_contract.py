"""What every strategy of the catalogue keeps to, whichever it is."""

import inspect
import warnings

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels.strategies._catalogue import FAMILIES, INPUTS

N, L, C, D, K, T = 40, 9, 3, 5, 8, 6
# Options that a strategy does not run without, or that keep it small here.
OPTIONS = {
    "power": {"of": "entropy"},
    "softmax": {"of": "entropy"},
    "softrank": {"of": "entropy"},
    "probcover": {"delta": 0.7},
    "batchbald": {"num_samples": 400, "max_configurations": 100},
    "robust_k_center": {"outliers": 2},
}
NAMES = alk.strategies.names()
SCORES = [name for name in NAMES if alk.strategies.info(name).each_row]
DETERMINISTIC = [name for name in NAMES if not alk.strategies.info(name).random]
# on a grid rows are equally near, and rounding parts them: k-means', and nearest neighbours of rows of length one
CLUSTERED = {"cal", "typiclust", "diverse_minibatch", "dropquery", "cluster_margin", "alfa_mix"}
TIED = {"vote_entropy", "variation_ratio", "forgetting", "label_dispersion"}
FLOATS = {"probs", "mc_probs", "features", "labeled_features", "labeled_probs", "target_mc_probs"}
FLOATS |= {"predicted_losses", "discriminator"}

pytestmark = pytest.mark.filterwarnings("ignore:.*the batch holds:UserWarning")


def arrays(seed=0, n=N, dtype=torch.float64):
    """Every array that there is, as one linear model would yield them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weight, bias = normal(C, D), normal(C)
    features, known, targets = normal(n, D), normal(L, D), normal(T, D)
    draws = weight + 0.8 * normal(K, C, D)

    def predicted(x):
        return (x @ weight.T + bias).softmax(1).to(dtype)

    def drawn(x):
        return torch.einsum("nd,kcd->nkc", x, draws).softmax(-1).to(dtype)

    return {
        "probs": predicted(features),
        "mc_probs": drawn(features),
        "features": features.to(dtype),
        "correct": torch.randint(0, 2, (n, T), generator=g),
        "predictions": torch.randint(0, C, (n, T), generator=g),
        "predicted_losses": normal(n).to(dtype),
        "discriminator": torch.rand(n, generator=g, dtype=torch.float64).to(dtype),
        "votes": torch.randint(0, C, (n, K), generator=g),
        "labeled_features": known.to(dtype),
        "labeled_probs": predicted(known),
        "labels": torch.arange(L) % C,
        "target_mc_probs": drawn(targets),
        "head_weight": weight.to(dtype),
        "head_bias": bias.to(dtype),
    }


def run(name, b, given, **more):
    return alk.select(name, b, **{**given, **OPTIONS.get(name, {}), "generator": 3, **more})


def some(given, rows):
    return {k: v[rows] if INPUTS[k].pool else v for k, v in given.items()}


def as_numpy(given):
    return {k: v.numpy() for k, v in given.items()}


def arrays_of(name):
    """What a strategy looks at, and the one that gives it its scores."""
    entry = alk.strategies.info(name)
    inner = OPTIONS.get(name, {}).get("of", entry.of)
    return set(entry.arrays) | (set(alk.strategies.info(inner).arrays) if inner else set())


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_the_registry_has_the_names_of_the_contract():
    wanted = """random least_confident margin entropy vote_entropy consensus_entropy kl_consensus max_disagreement
    variation_ratio mean_std bald batchbald k_center_greedy robust_k_center badge egl cal forgetting label_dispersion
    suggestive_annotation diverse_minibatch ceal epig typiclust probcover max_herding uherding facility_location
    dropquery contextual_diversity cluster_margin bait alfa_mix galaxy lcmd loss_prediction vaal mal power softmax
    softrank""".split()
    assert set(wanted) <= set(NAMES)
    assert NAMES == [n for family in FAMILIES for n in alk.strategies.names(family)]
    with pytest.raises(ValueError, match=r"family must be one of uncertainty, .* got 'unknown'"):
        alk.strategies.names("unknown")


def test_an_entry_says_all_there_is_to_say(name):
    entry = alk.strategies.info(name)
    assert getattr(getattr(alk.strategies, entry.family), name) is entry.function
    assert entry.summary.endswith(".") and entry.formula and entry.cost and entry.use and entry.citation
    doc = inspect.getdoc(entry.function)
    for section in ("Parameters", "Returns", "References"):
        assert f"\n{section}\n---" in doc, section
    for parameter in entry.parameters:
        assert f"\n{parameter}" in doc or f", {parameter}" in doc, f"{parameter} is not in the docstring"
    assert set(entry.options).isdisjoint(INPUTS)
    parameters = inspect.signature(entry.function).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(n in INPUTS or n in ("batch_size", "pool") for n in positional), "options are keyword-only"
    assert entry.name in str(entry) and entry.citation in str(entry)


def test_picks_are_distinct_rows_in_order(name):
    given = arrays()
    picked = run(name, 7, given)
    assert picked._fields[:2] == ("indices", "scores")
    assert picked.indices.dtype == torch.int64 and picked.indices.shape == picked.scores.shape == (7,)
    assert picked.scores.is_floating_point() and not picked.scores.isnan().any()
    assert len(set(picked.indices.tolist())) == 7 and 0 <= int(picked.indices.min()) <= int(picked.indices.max()) < N
    if alk.strategies.info(name).each_row:
        assert (picked.scores[:-1] >= picked.scores[1:]).all()


def test_a_seed_decides_all_and_inputs_stay(name):
    given = arrays()
    copies = {k: v.clone() for k, v in given.items()}
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = run(name, 7, given), run(name, 7, given)
    assert torch.equal(first.indices, again.indices) and torch.equal(first.scores, again.scores)
    assert all(torch.equal(v, copies[k]) for k, v in given.items())
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    by_generator = [run(name, 7, given, generator=torch.Generator().manual_seed(5)).indices for _ in range(2)]
    assert torch.equal(*by_generator)


def test_numpy_is_torch(name):
    given = arrays()
    tensors, numpy = run(name, 7, given), run(name, 7, as_numpy(given))
    for field, value in tensors._asdict().items():
        other = getattr(numpy, field)
        if isinstance(value, torch.Tensor):
            assert isinstance(other, np.ndarray), field
            assert np.array_equal(value.numpy(), other), field
        else:
            assert value == other, field


def test_devices_agree(name, device):
    given = arrays()
    there = {k: v.to(device) for k, v in given.items()}
    picked, expected = run(name, 7, there), run(name, 7, given)
    assert torch.equal(picked.indices.cpu(), expected.indices)
    assert torch.allclose(picked.scores.cpu(), expected.scores, rtol=1e-9, atol=1e-12)
    assert picked.indices.device.type == picked.scores.device.type == device


def test_float32_is_close_to_float64(name):
    wide, narrow = run(name, 7, arrays()), run(name, 7, arrays(dtype=torch.float32))
    assert torch.equal(wide.indices, narrow.indices)
    finite = wide.scores.isfinite()
    assert torch.allclose(wide.scores[finite], narrow.scores[finite].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_what_it_holds(name, dtype):
    """A model's float16 or bfloat16 predictions as they are; the same rows as the float64 they stand for."""
    short = {k: v.to(dtype) if v.is_floating_point() else v for k, v in arrays().items()}
    picked = run(name, 7, short)
    assert len(set(picked.indices.tolist())) == 7
    if name in CLUSTERED:
        return
    # exact in both: features on a grid, probabilities in eighths
    given = arrays()
    for k, v in given.items():
        if "probs" in k:
            eighths = (v * 8).round()
            best = eighths.argmax(-1, keepdim=True)
            given[k] = eighths.scatter_add(-1, best, 8 - eighths.sum(-1, keepdim=True)) / 8
        elif v.is_floating_point():
            given[k] = (v * 8).round() / 8
    short = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    picked, expected = run(name, 7, short), run(name, 7, given)
    assert torch.allclose(picked.scores.double(), expected.scores.double(), rtol=1e-4, atol=1e-5)


def test_any_strides(name):
    given = arrays()
    strided = {k: torch.stack([v, v], -1)[..., 0] for k, v in given.items()}
    assert all(not v.is_contiguous() for v in strided.values())
    assert torch.equal(run(name, 7, given).indices, run(name, 7, strided).indices)


def test_none_all_and_more_than_all(name):
    given = arrays()
    none = run(name, 0, given)
    assert none.indices.shape == none.scores.shape == (0,) and none.indices.dtype == torch.int64
    everything = run(name, N, given)
    assert sorted(everything.indices.tolist()) == list(range(N))
    with pytest.warns(UserWarning, match=f"batch_size is {N + 5}: all {N} rows are picked"):
        more = run(name, N + 5, given)
    assert torch.equal(more.indices, everything.indices)


def test_bad_batch_sizes(name):
    given = arrays()
    for bad in (-1, 2.0, True, None):
        with pytest.raises((ValueError, TypeError), match="batch_size"):
            run(name, bad, given)
    entry = alk.strategies.info(name)
    if not entry.each_row:
        needed = {k: given[k] for group in entry.needs for k in group[:1] if k in given}
        more = {k: v for k, v in OPTIONS.get(name, {}).items() if k != "of"}
        if "scores" in entry.parameters:
            more["scores"] = torch.rand(N)
        with pytest.raises(ValueError, match=rf"batch_size must be between 0 and {N} .*, got {N + 1}"):
            entry.function(**needed, **more, batch_size=N + 1)


def test_one_candidate(name):
    given = arrays()
    assert run(name, 1, some(given, slice(0, 1))).indices.tolist() == [0]
    assert run(name, 1, given, candidates=[17]).indices.tolist() == [17]


def test_candidates_are_the_pool(name):
    given = arrays()
    rows = torch.tensor([1, 4, 5, 9, 12, 13, 18, 19, 22, 23, 24, 27, 30, 31, 33, 36, 38, 39])
    mask = torch.zeros(N, dtype=torch.bool)
    mask[rows] = True
    expected = run(name, 6, some(given, rows))
    for candidates in (rows, mask, rows.flip(0).numpy(), mask.tolist()):
        picked = run(name, 6, given, candidates=candidates)
        assert torch.equal(picked.indices, rows[expected.indices])
        assert torch.equal(picked.scores, expected.scores)
    with pytest.warns(UserWarning, match="all 18 candidates are picked"):
        assert set(run(name, 25, given, candidates=mask).indices.tolist()) == set(rows.tolist())
    with pytest.raises(ValueError, match="candidates must name each row once, got row 3"):
        run(name, 1, given, candidates=[3, 3])
    with pytest.raises(ValueError, match="candidates must have at least one row"):
        run(name, 1, given, candidates=[])


# few values: ties go by index, as they must
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n not in TIED])
def test_permuting_the_pool_permutes_the_picks(name):
    given = arrays()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    picked = run(name, 7, given).indices
    permuted = run(name, 7, some(given, order)).indices
    assert torch.equal(order[permuted], picked)


def test_a_pool_of_copies(name):
    given = {k: v[:1].expand(N, *v.shape[1:]).clone() if INPUTS[k].pool else v for k, v in arrays().items()}
    picked = run(name, 6, given)
    assert len(set(picked.indices.tolist())) == 6
    if name in DETERMINISTIC:
        assert picked.indices.tolist() == list(range(6))


def test_uniform_predictions(name):
    given = arrays()
    for k in ("probs", "mc_probs", "labeled_probs", "target_mc_probs"):
        given[k] = torch.full_like(given[k], 1 / C)
    picked = run(name, 6, given)
    assert len(set(picked.indices.tolist())) == 6
    entry = alk.strategies.info(name)
    if (
        entry.each_row
        and not entry.random
        and set(entry.arrays) <= {"probs", "mc_probs", "votes", "labeled_probs", "target_mc_probs"}
    ):
        assert picked.indices.tolist() == list(range(6))


def test_nan_is_refused(name):
    given = arrays()
    used = arrays_of(name)
    for k in sorted(used & FLOATS & set(given)):
        for bad in (torch.nan, torch.inf):
            broken = dict(given)
            broken[k] = given[k].clone()
            broken[k].view(-1)[4] = bad
            with pytest.raises(ValueError, match=rf"\b{k} must"):
                run(name, 3, broken)


def test_distributions_that_do_not_sum_to_one(name):
    given = arrays()
    for k in {"probs", "mc_probs", "labeled_probs", "target_mc_probs"} & set(alk.strategies.info(name).arrays):
        broken = dict(given)
        broken[k] = given[k] * 1.01
        with pytest.raises(ValueError, match=rf"\b{k} must hold probabilities that sum to 1 within 0.001, got 1.01"):
            run(name, 3, broken)
        broken[k] = given[k].clone()
        broken[k].view(-1, C)[2] = torch.tensor([-0.1, 0.5, 0.6])
        with pytest.raises(ValueError, match=rf"\b{k} must hold probabilities, got -0.1"):
            run(name, 3, broken)


def test_what_is_missing_is_named(name):
    entry = alk.strategies.info(name)
    given = arrays()
    for group in entry.needs:
        left = {k: v for k, v in given.items() if k not in group}
        if group == ("scores",):
            continue
        with pytest.raises(ValueError, match=rf"{name} needs .*{group[0]}= "):
            run(name, 3, left)
    if name != "random" and entry.needs != (("scores",),):
        with pytest.raises(ValueError, match=f"{name} needs .*got no array"):
            alk.select(name, 3)


def test_what_it_has_no_use_for_is_left_alone(name):
    """A loop passes all that it has; arrays of another strategy are not even looked at."""
    given = arrays()
    used = arrays_of(name)
    unused = {k: v * torch.nan for k, v in given.items() if k in FLOATS - used}
    if used:
        assert torch.equal(run(name, 5, {**given, **unused}).indices, run(name, 5, given).indices)


def test_pools_that_disagree(name):
    entry = alk.strategies.info(name)
    pools = [k for k in arrays() if k in entry.arrays and INPUTS[k].pool]
    for k in pools if len(pools) > 1 else ():
        given = arrays()
        given[k] = given[k][:-1]
        with pytest.raises(ValueError, match="arrays of the pool must have as many rows, got"):
            run(name, 3, given)


def test_flags_are_true_or_false(name):
    for option, default in alk.strategies.info(name).options.items():
        if isinstance(default, bool):
            for bad in ("no", 0, None):
                with pytest.raises(TypeError, match=f"{option} must be True or False, got"):
                    run(name, 3, arrays(), **{option: bad})


def test_unknown_options(name):
    with pytest.raises(ValueError, match=f"bogus is not an option of {name}"):
        run(name, 3, arrays(), bogus=1)
    for option in alk.strategies.info(name).options:
        with pytest.raises(ValueError, match=f"{option}x is not an option of {name}.*; did you mean '{option}'"):
            run(name, 3, arrays(), **{f"{option}x": 1})


def test_memory_maps(name, tmp_path):
    given = as_numpy(arrays())
    mapped = {}
    for k, v in given.items():
        np.save(tmp_path / f"{k}.npy", v)
        mapped[k] = np.load(tmp_path / f"{k}.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*the batch holds")
        picked = run(name, 7, mapped)
    assert np.array_equal(picked.indices, run(name, 7, given).indices)
    rows = np.arange(0, N, 2)
    expected = run(name, 5, some(given, rows))
    assert np.array_equal(run(name, 5, mapped, candidates=rows).indices, rows[expected.indices])


@pytest.mark.parametrize("name", SCORES)
def test_score_functions_give_a_score_a_row(name):
    given = arrays()
    entry = alk.strategies.info(name)
    more = {"generator": 3} if entry.random else {}
    more |= {"pool": given["probs"]} if "pool" in entry.parameters else {}
    others = {k for group in entry.needs for k in group[1:]}
    taken = {k: v for k, v in given.items() if k in entry.arrays and k not in others}
    scores = entry.function(**taken, **more)
    assert scores.shape == (N,) and scores.dtype == torch.float64
    picked = run(name, 7, given)
    assert torch.equal(scores[picked.indices], picked.scores)
    assert torch.equal(picked.indices, scores.sort(descending=True, stable=True).indices[:7])
    ties = run(name, N, given, tie_break="random")
    assert torch.equal(ties.scores, run(name, N, given).scores)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SCORES])
def test_ties_are_an_option_of_scores_only(name):
    with pytest.raises(ValueError, match=f"tie_break must be 'index' for {name}, which picks a batch"):
        run(name, 3, arrays(), tie_break="random")


def test_any_strategy_behind_a_prefilter(name):
    given = arrays()
    best = alk.select("margin", 12, **given).indices.sort().values
    picked = run(name, 5, given, prefilter="margin", keep=12)
    assert torch.equal(picked.indices, best[run(name, 5, some(given, best)).indices])
