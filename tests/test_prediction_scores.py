"""Scores of predictions against plain definitions, in float64."""

import math

import numpy as np
import pytest
import torch
from conftest import CAPABILITIES
from test_ops import MEASURE, run_python

import alkernels as alk
from alkernels import reference
from alkernels._probabilities import Probabilities
from alkernels.ops.prediction_scores import SCORES, prediction_scores

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OF_DRAWS = ["bald", "mean_std", "max_disagreement"]  # exactly 0 where draws agree


def scores(array, score, log_input=False):
    return prediction_scores(Probabilities(array, "probs", array.ndim, log_input), score)


def softmax(rng, *shape, peak=1.5):
    return (peak * torch.randn(*shape, generator=rng, dtype=torch.float64)).softmax(-1)


def dyadic(rng, *shape, parts=128):
    """Multiples of 1/parts, zeros and ties among them, that sum to 1 exactly in every dtype."""
    label = torch.randint(shape[-1], (*shape[:-1], parts), generator=rng)
    return torch.nn.functional.one_hot(label, shape[-1]).sum(-2).double() / parts


def assert_close(ours, expected):
    assert ours.dtype == torch.float64 and ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


# (N, K, C): around the lanes of every instruction set and the classes below which lanes are rows; rows of many blocks
SHAPES = [
    (1, 1, 1),
    (19, 1, 2),
    (33, 1, 10),
    (9, 1, 31),
    (7, 1, 32),
    (5, 1, 100),
    (3, 1, 1000),
    (2, 1, 3001),
    (17, 2, 1),
    (13, 2, 2),
    (9, 3, 7),
    (11, 20, 10),
    (5, 9, 16),
    (4, 20, 33),
    (3, 20, 100),
    (2, 150, 9),
    (2, 1000, 3),
    (2, 300, 150),
    (1, 2, 50_000),
]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("n", "k", "c"), SHAPES)
def test_equals_the_definition(n, k, c, score, rng):
    for probs in (softmax(rng, n, k, c), softmax(rng, n, k, c, peak=30.0), dyadic(rng, n, k, c)):
        assert_close(scores(probs, score), reference.prediction_scores(probs, score))
        assert_close(scores(probs.float(), score), reference.prediction_scores(probs.float().double(), score))
        logs = probs.log()
        assert_close(scores(logs, score, True), reference.prediction_scores(logs.exp(), score))
        if k == 1:
            assert torch.equal(scores(probs[:, 0], score), scores(probs, score))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(21, 6), (21, 6, 5), (40, 3, 37)])
def test_dtypes(dtype, shape, score, rng):
    probs = dyadic(rng, *shape)
    assert_close(scores(probs.to(dtype), score), reference.prediction_scores(probs, score))
    logs = softmax(rng, *shape).log().to(torch.float32 if dtype == torch.bfloat16 else dtype)
    exact = reference.prediction_scores(logs.double().exp(), score)
    assert_close(scores(logs, score, True), exact)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "layout", ["transposed", "every other", "expanded", "flipped", "numpy F", "memmap", "big endian"]
)
def test_layouts(layout, score, rng, tmp_path):
    probs = dyadic(rng, 21, 10, 5)
    whole = probs
    if layout == "transposed":
        probs = probs.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "every other":
        probs = probs.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(3, 2)[::2, 1::2, 2::3]
    elif layout == "expanded":
        probs = probs[:, :1].expand(21, 10, 5)
        whole = probs.contiguous()
    elif layout == "flipped":
        probs = probs.flip(0).numpy()[::-1]
    elif layout == "numpy F":
        probs = np.asfortranarray(probs.numpy())
    elif layout == "memmap":
        np.save(tmp_path / "p.npy", probs.numpy())
        probs = np.load(tmp_path / "p.npy", mmap_mode="r")
    else:
        probs = probs.numpy().astype(">f4")
    assert torch.equal(scores(probs, score), scores(whole, score))


def test_hand_computed():
    a, b = [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]
    probs = torch.tensor([[a, a], [a, b], [b, b]])  # means a, (1/4, 5/8, 1/8), b
    log2, of_mean = math.log(2), -(0.25 * math.log(0.25) + 0.625 * math.log(0.625) + 0.125 * math.log(0.125))
    to_a = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.625) + 0.25 * math.log(0.25 / 0.125)
    to_b = math.log(1 / 0.625)
    expected = {
        "least_confident": [0.5, 0.375, 0],
        "margin": [0.75, 0.625, 0],
        "entropy": [1.5 * log2, of_mean, 0],
        "mean_entropy": [1.5 * log2, 0.75 * log2, 0],
        "bald": [0, of_mean - 0.75 * log2, 0],
        "mean_std": [0, (0.25 + 0.375 + 0.125) / 3, 0],
        "max_disagreement": [0, max(to_a, to_b), 0],
        "vote_entropy": [0, log2, 0],
        "variation_ratio": [0, 0.5, 0],
    }
    assert set(expected) == set(SCORES)
    for score, values in expected.items():
        assert scores(probs, score).tolist() == pytest.approx(values, abs=1e-15), score


@pytest.mark.parametrize("k", [1, 3, 20, 1000])
@pytest.mark.parametrize("c", [2, 10, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_that_agree_have_exactly_nothing(dtype, c, k, rng):
    for one in (softmax(rng, 5, 1, c), dyadic(rng, 5, 1, c), torch.full((5, 1, c), 1 / c)):
        probs = one.to(dtype).expand(5, k, c)
        for score in [*OF_DRAWS, "vote_entropy", "variation_ratio"]:
            assert scores(probs, score).eq(0).all(), score
        assert_close(scores(probs, "entropy"), scores(one.to(dtype), "entropy"))
        assert_close(scores(probs, "mean_entropy"), scores(one.to(dtype), "entropy"))


@pytest.mark.parametrize("c", [2, 9, 64, 1000])
def test_ends(c):
    sure = torch.eye(c)[:, None].expand(c, 4, c)
    uniform = torch.full((3, 4, c), 1 / c, dtype=torch.float64)
    for score in SCORES:
        assert scores(sure, score).eq(0).all(), score
    for score, most in [("least_confident", 1 - 1 / c), ("margin", 1), ("entropy", math.log(c))]:
        assert scores(uniform, score).tolist() == pytest.approx([most] * 3, abs=1e-13)
    apart = torch.eye(c)[None].double()  # draw k is sure of class k
    for score in ("bald", "entropy", "max_disagreement", "vote_entropy"):
        assert float(scores(apart, score)) == pytest.approx(math.log(c), abs=1e-12)
    assert float(scores(apart, "variation_ratio")) == pytest.approx(1 - 1 / c, abs=1e-15)
    assert float(scores(apart, "mean_std")) == pytest.approx(math.sqrt((c - 1) / c**2), abs=1e-15)


def test_one_class_is_nothing_to_be_unsure_of():
    for probs in (torch.ones(5, 1), torch.full((5, 3, 1), 0.9995)):
        for score in SCORES:
            assert scores(probs, score).eq(0).all(), score
            assert scores(probs.log(), score, True).eq(0).all(), score


@pytest.mark.parametrize("c", [3, 8, 40, 100])
def test_ties_go_to_the_lowest_class(c):
    """Two draws tie between classes 1 and c - 1, the third is for c - 1: a tie that goes up would be unanimous."""
    tie = torch.zeros(c)
    tie[[1, c - 1]] = 0.5
    probs = torch.stack([tie, tie, torch.eye(c)[c - 1]])[None]
    assert float(scores(probs, "variation_ratio")) == pytest.approx(1 / 3)
    assert float(scores(probs[:, :1], "margin")) == 1


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("k", "c"), [(1, 2), (1, 10), (1, 100), (5, 3), (20, 10), (7, 45), (3, 700)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_have_equal_bits(dtype, k, c, score, rng, monkeypatch):
    probs = softmax(rng, 1, k, c).to(dtype).expand(53, k, c).contiguous()
    probs[20:30] = softmax(rng, 10, k, c).to(dtype)
    found = scores(probs, score)
    same = torch.cat([found[:20], found[30:]])
    assert len(same.unique()) == 1
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(scores(probs, score), found)
    finally:
        torch.set_num_threads(threads)
    for size in (1, 5, 8, 31):
        in_tiles = Probabilities(probs, "probs", 3, False)
        in_tiles.rows_a_tile = size
        assert torch.equal(prediction_scores(in_tiles, score), found)


def test_mean_std_does_not_cancel():
    """Draws of spread 1e-9 around 0.5: the mean of squares less the square of the mean would leave nothing."""
    e = 1e-9 * torch.tensor([-1, 1, 1, -1], dtype=torch.float64)
    probs = torch.stack([0.5 + e, 0.5 - e], 1)[None]
    assert float(scores(probs, "mean_std")) == pytest.approx(1e-9, rel=1e-6)


def test_no_rows(rng):
    for score in SCORES:
        for probs in (softmax(rng, 0, 5), softmax(rng, 0, 3, 5)):
            found = scores(probs, score)
            assert found.shape == (0,) and found.dtype == torch.float64


@pytest.mark.parametrize("c", [3, 8, 50])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.25, 0.25, 0.5078125], r"must hold probabilities that sum to 1 within 0.00[14], got 1.00781"),
        ([0.0, 0.0, 0.0], r"must hold probabilities that sum to 1 within 0.00[14], got 0 in"),
        ([-0.25, 0.5, 0.75], r"must hold probabilities, got -0.25"),
        ([0.25, math.nan, 0.5], r"must hold probabilities, got nan"),
        ([0.25, math.inf, 0.5], r"must hold probabilities, got inf"),
        ([math.inf, -math.inf, 0.5], r"must hold probabilities, got inf"),
        ([-7.0, -8.0, -9.0], r"must hold probabilities, got -7"),
    ],
)
def test_what_is_no_distribution_is_refused(values, message, dtype, c, rng):
    probs = dyadic(rng, 30, 5, c, parts=8).to(dtype)
    probs[17, 3] = torch.tensor(values + [0.0] * (c - 3))
    for score in ("least_confident", "mean_entropy", "bald", "max_disagreement", "vote_entropy"):
        with pytest.raises(ValueError, match=f"^probs {message}.* row 17, draw 3"):
            scores(probs, score)
        with pytest.raises(ValueError, match=f"^probs {message}.* row 17($|;)"):
            scores(probs[:, 3], score)


@pytest.mark.parametrize("c", [3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logarithms_that_are_none(dtype, c, rng):
    for bad in (math.nan, math.inf, 5.0, 800.0, 1e30):
        logs = softmax(rng, 9, 4, c).log().to(dtype)
        logs[5, 2, 1] = bad
        with pytest.raises(ValueError, match=r"probs must hold logarithms of probabilities.* row 5, draw 2"):
            scores(logs, "entropy", True)
    logs[5, 2] = -math.inf
    with pytest.raises(ValueError, match=r"that sum to 1 within 0.001, got 0 in row 5, draw 2"):
        scores(logs, "entropy", True)
    with pytest.raises(ValueError, match=r"must hold probabilities, got -.* in row 0, draw 0"):
        scores(logs, "entropy")


def test_sums_near_the_tolerance():
    for by in (9e-4, -9e-4):
        probs = torch.tensor([[0.5, 0.5 + by]], dtype=torch.float64)
        assert_close(scores(probs, "entropy"), torch.special.entr(probs).sum(1))
        with pytest.raises(ValueError, match=r"sum to 1 within 0.001"):
            scores(probs + 1.1 * by, "entropy")


def test_the_first_unsound_row_of_several_tiles_is_named(rng):
    probs = Probabilities(softmax(rng, 50, 4), "probs", 2, False)
    probs.pool.sources[0].tensor[[33, 41]] = 1.0
    probs.rows_a_tile = 10
    with pytest.raises(ValueError, match="got 4 in row 33"):
        prediction_scores(probs, "margin")


def test_inputs_stay_as_they_are_and_gradients_are_not_asked_for(rng):
    probs = softmax(rng, 9, 4, 5).requires_grad_()
    before = probs.detach().clone()
    for score in SCORES:
        assert not scores(probs, score).requires_grad
    assert torch.equal(probs, before)


def test_bald_is_the_score(rng):
    for probs in (softmax(rng, 40, 7, 5), softmax(rng, 40, 7, 50).float()):
        assert torch.equal(alk.bald(probs), scores(probs, "bald"))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    run_python(
        """
        import torch
        from alkernels import reference
        from alkernels._probabilities import Probabilities
        from alkernels.ops.prediction_scores import SCORES, prediction_scores
        rng = torch.Generator().manual_seed(0)
        for n, k, c in ((1, 1, 2), (23, 1, 10), (9, 1, 17), (5, 20, 10), (4, 3, 33), (3, 5, 1030), (3, 400, 5)):
            probs = (2 * torch.randn(n, k, c, generator=rng, dtype=torch.float64)).softmax(-1)
            probs[0, 0] = torch.eye(c)[c - 1]
            for score in SCORES:
                for p, log in ((probs, False), (probs.float(), False), (probs.log(), True)):
                    ours = prediction_scores(Probabilities(p, "probs", 3, log), score)
                    expected = reference.prediction_scores(p.double().exp() if log else p.double(), score)
                    assert (ours - expected).abs().max() < 1e-12, (score, n, k, c)
        """,
        ATEN_CPU_CAPABILITY=capability,
    )


WARM = """
from alkernels._probabilities import Probabilities
from alkernels.ops.prediction_scores import prediction_scores

def run(p, score):
    return prediction_scores(Probabilities(p, "probs", p.ndim, False), score)

run(torch.full((500, 4, 4), 0.25), "bald")
"""


@pytest.mark.parametrize(
    ("shape", "dtype", "score"),
    [
        ((20_000, 20, 100), "float32", "bald"),
        ((20_000, 20, 100), "float16", "max_disagreement"),
        ((4_000_000, 4), "float32", "margin"),
        ((300, 1000, 100), "float32", "max_disagreement"),
        ((1000, 50_000), "float32", "entropy"),
    ],
)
def test_memory_beyond_the_predictions(shape, dtype, score):
    """50 MB, and the scores."""
    out = run_python(
        MEASURE
        + WARM
        + f"p = torch.full({shape}, 1.0).div_({shape[-1]}).to(torch.{dtype})\n"
        + f"print(extra(lambda: run(p, '{score}')))"
    )
    assert int(out) <= 50e6 + 16 * shape[0]


def test_a_memory_map_is_read_once_and_never_held_whole(tmp_path):
    shape = (60_000, 20, 50)
    array = np.lib.format.open_memmap(tmp_path / "p.npy", mode="w+", dtype=np.float32, shape=shape)
    array[:] = 1 / 50
    array.flush()
    del array
    out = run_python(
        MEASURE
        + WARM
        + f"p = np.load({str(tmp_path / 'p.npy')!r}, mmap_mode='r')\n"
        + "print(extra(lambda: run(p, 'bald')))"
    )
    assert int(out) <= 50e6 + 16 * shape[0] < 4 * math.prod(shape) / 3
