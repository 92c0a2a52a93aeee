"""joint_entropy, bald, epig and batchbald against label configurations that are written out, in float64."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import MEASURE, run_python

import alkernels as alk
from alkernels.ops.joint_entropy import Configurations, check_draws

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def draws(rng, *shape, peak=1.5, dtype=torch.float64):
    """Softmax of normal logits: the larger `peak`, the surer each draw."""
    return (peak * torch.randn(*shape, generator=rng, dtype=torch.float64)).softmax(-1).to(dtype)


def dyadic(rng, n, k, c, parts=128):
    """Multiples of 1/parts, zeros among them, that sum to 1 exactly in every dtype."""
    label = torch.randint(c, (n, k, parts), generator=rng)
    return torch.nn.functional.one_hot(label, c).sum(2).double() / parts


def one_hot(rng, n, k, c):
    return torch.nn.functional.one_hot(torch.randint(c, (n, k), generator=rng), c).double()


def enumerated(probs, chosen=()):
    """H(y_1, ..., y_t, y_n) for each row n: one term for each label configuration."""
    probs = probs.double()
    total = torch.zeros(len(probs), dtype=torch.float64)
    for labels in itertools.product(range(probs.shape[2]), repeat=len(chosen)):
        product = torch.ones(probs.shape[1], dtype=torch.float64)
        for point, label in zip(chosen, labels, strict=True):
            product = product * point[:, label].double()
        total += torch.special.entr((product[None, :, None] * probs).mean(1)).sum(1)
    return total


def noise(probs):
    """h_n: the mean over draws of the entropy of p_k(y_n)."""
    return torch.special.entr(probs.double()).sum(2).mean(1)


def bald_of(probs):
    return enumerated(probs) - noise(probs)


def first(values, slack=1e-12):
    """The lowest index among the largest, where a rounding apart counts as equal."""
    return int((values >= values.max() - slack).nonzero()[0])


def brute_force(probs, batch_size):
    """Every candidate at every step: largest gain, below 1e-9 largest BALD, then lowest index."""
    h, alone = noise(probs), bald_of(probs)
    picks, totals = [], [0.0]
    for _ in range(batch_size):
        total = enumerated(probs, [probs[i] for i in picks]) - h - h[picks].sum()
        total[picks] = -torch.inf
        pick = first(total)
        if total[pick] - totals[-1] < 1e-9:
            left = alone.clone()
            left[picks] = -torch.inf
            pick = first(left)
        picks.append(pick)
        totals.append(float(total[pick]))
    return picks, torch.tensor(totals, dtype=torch.float64).diff()


# ---- joint_entropy ----

# (N, K, C, t): around and past the widths of every register tile (4, 8, 16, 32 lanes; 64, 256, 512 columns or draws)
SHAPES = [
    (1, 1, 1, 0),
    (1, 1, 1, 3),
    (4, 1, 5, 2),
    (3, 7, 1, 4),
    (2, 2, 2, 6),
    (17, 9, 5, 3),
    (33, 65, 3, 4),
    (65, 33, 17, 1),
    (5, 513, 2, 3),
    (2, 3, 300, 1),
    (3, 5, 257, 0),
    (131, 2, 2, 1),
    (7, 31, 6, 2),
]


@pytest.mark.parametrize(("n", "k", "c", "t"), SHAPES)
def test_joint_entropy_is_the_sum_over_configurations(n, k, c, t, rng):
    probs, chosen = draws(rng, n, k, c), draws(rng, t, k, c)
    expected = enumerated(probs, chosen)
    given_points = chosen if t else None
    out = alk.joint_entropy(probs, given_points)
    assert out.dtype == torch.float64 and out.shape == (n,)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alk.reference.joint_entropy(probs, given_points), expected, rtol=1e-12, atol=1e-12)
    of_logs = alk.joint_entropy(probs.log(), None if given_points is None else chosen.log(), log_input=True)
    torch.testing.assert_close(of_logs, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "k", "c", "t"), SHAPES)
def test_joint_entropy_of_float32_is_within_2e_6(n, k, c, t, rng):
    probs, chosen = draws(rng, n, k, c, dtype=torch.float32), draws(rng, t, k, c, dtype=torch.float32)
    assert (alk.joint_entropy(probs, chosen) - enumerated(probs, chosen)).abs().max() < 2e-6
    of_logs = alk.joint_entropy(probs.log(), chosen.log(), log_input=True)
    assert (of_logs - enumerated(probs.log().double().exp(), chosen.log().double().exp())).abs().max() < 2e-6


@pytest.mark.parametrize("k", [31, 64, 100, 513, 1000])
@pytest.mark.parametrize("c", [7, 10, 100, 1000])
def test_float32_errors_that_add_up(k, c):
    """Equal probabilities: every product rounds the same way, so that nothing cancels."""
    probs = torch.full((2, k, c), 1 / c)
    wanted = enumerated(probs)
    assert ((alk.joint_entropy(probs) - wanted).abs() < 2e-6 * (1 + wanted)).all()


@pytest.mark.parametrize("chosen", [0, 1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_dtypes_are_widened(dtype, chosen, rng):
    probs, points = dyadic(rng, 19, 12, 3), dyadic(rng, chosen, 12, 3)
    out = alk.joint_entropy(probs.to(dtype), points.to(dtype))
    assert out.dtype == torch.float64
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert (out - enumerated(probs, points)).abs().max() < tolerance


def test_zero_probabilities(rng):
    probs = torch.cat([one_hot(rng, 9, 6, 4), dyadic(rng, 9, 6, 4, parts=4)])
    for points in (probs[:3], probs[9:13], probs[7:11]):
        for dtype in (torch.float32, torch.float64):
            p, c = probs.to(dtype), points.to(dtype)
            for out in (alk.joint_entropy(p, c), alk.joint_entropy(p.log(), c.log(), log_input=True)):
                torch.testing.assert_close(out, enumerated(probs, points), rtol=0, atol=2e-6)
    sure = torch.eye(5, dtype=torch.float64)[None]  # draw k is sure of class k
    assert float(alk.joint_entropy(sure, sure.expand(9, 5, 5))) == pytest.approx(math.log(5), abs=1e-14)


def test_only_configurations_that_can_happen_are_counted(rng):
    """Points that all draws are sure of make one configuration, however many they are: C ** t would be 4 ** 200."""
    sure = torch.zeros(200, 6, 4, dtype=torch.float64)
    sure[:, :, 2] = 1
    probs, point = draws(rng, 5, 6, 4), draws(rng, 1, 6, 4)
    state = torch.get_rng_state()
    out = alk.joint_entropy(probs, torch.cat([sure[:100], point, sure[100:]]))
    assert torch.equal(state, torch.get_rng_state())  # nothing was sampled
    torch.testing.assert_close(out, enumerated(probs, point), rtol=1e-12, atol=1e-12)


def test_no_rows_and_no_chosen_points(rng):
    probs = draws(rng, 6, 5, 3)
    assert alk.joint_entropy(probs[:0]).shape == (0,) and alk.joint_entropy(probs[:0], probs).dtype == torch.float64
    assert torch.equal(alk.joint_entropy(probs, probs[:0]), alk.joint_entropy(probs))
    assert torch.equal(alk.joint_entropy(probs[:1], probs[2:4]), alk.joint_entropy(probs, probs[2:4])[:1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["transposed", "every other", "expanded draws", "reversed by flip"])
def test_layouts_agree(dtype, layout, rng):
    probs = dyadic(rng, 21, 10, 5).to(dtype)
    if layout == "transposed":
        probs = probs.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "every other":
        probs = probs.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(3, 2)[::2, 1::2, 2::3]
    elif layout == "expanded draws":
        probs = probs[:, :1].expand(21, 10, 5)
    else:
        probs = probs.flip(0)
    whole = probs.contiguous()
    torch.testing.assert_close(
        alk.joint_entropy(probs, probs[3:6]), alk.joint_entropy(whole, whole[3:6]), rtol=1e-13, atol=1e-13
    )
    assert torch.equal(alk.bald(probs), alk.bald(whole))
    assert torch.equal(alk.epig(probs, probs[:4]), alk.epig(whole, whole[:4]))
    assert torch.equal(alk.batchbald(probs, 4).indices, alk.batchbald(whole, 4).indices)


@pytest.mark.parametrize("layout", ["C", "F", "reversed", "read-only", "other byte order", "memmap", "memmap F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_comes_back_for_numpy(dtype, layout, rng, tmp_path):
    tensor = dyadic(rng, 40, 6, 3)
    array = tensor.numpy().astype(dtype)
    tensor = torch.from_numpy(array.copy())
    if layout == "F":
        array = np.asfortranarray(array)
    elif layout == "reversed":
        array = array[::-1, :, ::-1].copy()[::-1, :, ::-1]
    elif layout == "read-only":
        array.flags.writeable = False
    elif layout == "other byte order":
        array = array.astype(array.dtype.newbyteorder())
    elif layout.startswith("memmap"):
        np.save(tmp_path / "p.npy", np.asfortranarray(array) if layout.endswith("F") else array)
        array = np.load(tmp_path / "p.npy", mmap_mode="r")
    for ours, expected in [
        (alk.joint_entropy(array, array[2:5]), alk.joint_entropy(tensor, tensor[2:5])),
        (alk.joint_entropy(array), alk.joint_entropy(tensor)),
        (alk.bald(array), alk.bald(tensor)),
        (alk.epig(array, array[5:9]), alk.epig(tensor, tensor[5:9])),
        *zip(alk.batchbald(array, 5), alk.batchbald(tensor, 5), strict=True),
    ]:
        assert isinstance(ours, np.ndarray) and np.array_equal(ours, expected.numpy())


def test_a_memory_map_of_several_tiles(rng, tmp_path):
    probs = draws(rng, 5000, 40, 25, dtype=torch.float32)  # 20 MB, in tiles of 8 MB
    np.save(tmp_path / "p.npy", probs.numpy())
    array = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert np.array_equal(alk.joint_entropy(array, array[:1]), alk.joint_entropy(probs, probs[:1]).numpy())
    assert np.array_equal(alk.bald(array), alk.bald(probs).numpy())
    assert np.array_equal(alk.batchbald(array, 3).indices, alk.batchbald(probs, 3).indices.numpy())


def test_rows_that_do_not_quite_sum_to_one(rng):
    """Up to 1e-3 off is let through as it is: what comes out is off by about as much, never NaN."""
    exact = draws(rng, 20, 8, 3)
    probs = exact * (1 + 9e-4 * (2 * torch.rand(20, 8, 1, generator=rng, dtype=torch.float64) - 1))
    out = alk.joint_entropy(probs, probs[:4])
    expected = enumerated(exact, exact[:4])
    assert ((out - expected).abs() < 5 * 1e-3 * (1 + expected)).all()
    picked = alk.batchbald(probs, 4).scores
    assert torch.isfinite(picked).all() and (picked >= 0).all()


# ---- joint_entropy, sampled ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("peak", [0.5, 2.0, 6.0])
def test_sampled_is_unbiased_and_within_4_sd(peak, dtype, rng):
    probs, chosen = draws(rng, 6, 10, 3, peak=peak, dtype=dtype), draws(rng, 5, 10, 3, peak=peak, dtype=dtype)
    expected = enumerated(probs, chosen)
    out = torch.stack(
        [alk.joint_entropy(probs, chosen, max_configurations=1, num_samples=1000, generator=s) for s in range(60)]
    )
    sd = out.std(0)
    assert (sd > 0).all() and (sd < 0.1).all()
    assert ((out - expected).abs() <= 4 * sd).all()
    assert ((out.mean(0) - expected).abs() <= 4 * sd / math.sqrt(60)).all()


def test_more_samples_come_closer(rng):
    probs, chosen = draws(rng, 30, 10, 3), draws(rng, 5, 10, 3)
    expected = enumerated(probs, chosen)
    error = [
        float(
            (alk.joint_entropy(probs, chosen, max_configurations=1, num_samples=m, generator=0) - expected).abs().max()
        )
        for m in (100, 1_000_000)
    ]
    assert error[1] < error[0] / 10


def test_max_configurations_is_the_last_count_that_is_enumerated(rng):
    probs, chosen = draws(rng, 8, 6, 3), draws(rng, 4, 6, 3)
    exact = enumerated(probs, chosen)

    def of(m):
        return alk.joint_entropy(probs, chosen, max_configurations=m, generator=1)

    torch.testing.assert_close(of(81), exact, rtol=1e-12, atol=1e-12)
    assert (of(80) - exact).abs().min() > 1e-9  # sampled
    assert (of(80) - exact).abs().max() < 0.05
    assert not torch.equal(of(80), alk.joint_entropy(probs, chosen, max_configurations=80, generator=2))


def test_seeds(rng):
    probs, chosen = draws(rng, 8, 6, 3), draws(rng, 4, 6, 3)

    def of(generator):
        return alk.joint_entropy(probs, chosen, max_configurations=9, num_samples=600, generator=generator)

    assert torch.equal(of(5), of(5)) and not torch.equal(of(5), of(6))
    assert torch.equal(of(torch.Generator().manual_seed(5)), of(torch.Generator().manual_seed(5)))
    torch.manual_seed(5)
    one = of(None)
    torch.manual_seed(5)
    assert torch.equal(one, of(None)) and not torch.equal(one, of(None))
    state = torch.get_rng_state()
    alk.joint_entropy(probs, chosen)
    alk.batchbald(probs, 4)
    assert torch.equal(state, torch.get_rng_state())  # enumerated: nothing to draw


@pytest.mark.parametrize("t", [50, 400])
def test_many_chosen_points_do_not_underflow(t, rng):
    """H(A, n) lies between the draws' own noise and log K more; the product of 400 x 10 classes is below 1e-300."""
    probs, chosen = draws(rng, 4, 20, 10, dtype=torch.float32), draws(rng, t, 20, 10, dtype=torch.float32)
    out = alk.joint_entropy(probs, chosen, num_samples=4000, generator=0)
    floor = noise(chosen).sum() + noise(probs)
    spread = 5 * math.sqrt(t + 1) / math.sqrt(4000)  # the log of a probability has a spread of about 1 for each point
    assert (out > floor - spread).all() and (out < floor + math.log(20) + spread).all()


def test_many_sure_points_tell_the_draws_apart(rng):
    """60 sure points whose labels differ between any two draws: log K, with no noise, and zero probabilities."""
    chosen = one_hot(rng, 60, 12, 3)
    out = alk.joint_entropy(draws(rng, 5, 12, 3), chosen, max_configurations=1, num_samples=600, generator=0)
    assert len(torch.unique(chosen.argmax(2).t(), dim=0)) == 12
    exact = alk.joint_entropy(draws(torch.Generator().manual_seed(0), 5, 12, 3), chosen)
    assert (exact > math.log(12)).all() and torch.isfinite(out).all()
    of_sure = alk.joint_entropy(chosen, chosen, max_configurations=1, num_samples=600, generator=0)
    torch.testing.assert_close(of_sure, torch.full((60,), math.log(12), dtype=torch.float64), rtol=1e-6, atol=0)


def test_fewer_samples_than_draws(rng):
    probs = draws(rng, 5, 30, 3)
    out = alk.joint_entropy(probs, probs[:4], max_configurations=1, num_samples=1, generator=0)  # one from each draw
    assert ((out - enumerated(probs, probs[:4])).abs() < 1).all()


# ---- bald ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_bald_is_the_mean_divergence_to_the_consensus(dtype, rng):
    probs = dyadic(rng, 37, 11, 5)
    mean = probs.mean(1, keepdim=True)
    divergence = torch.special.xlogy(probs, probs / mean.clamp(min=1e-300)).sum(2).mean(1)
    torch.testing.assert_close(alk.bald(probs.to(dtype)), divergence, rtol=0, atol=1e-12)
    torch.testing.assert_close(alk.bald(probs.to(dtype)), bald_of(probs), rtol=0, atol=1e-12)
    torch.testing.assert_close(alk.reference.bald(probs), divergence, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bald_of_any_shape(data):
    n, k, c = (data.draw(st.integers(1, m), name) for m, name in ((40, "n"), (70, "k"), (40, "c")))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    peak = data.draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 50.0, 1000.0]), "peak")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    probs = draws(rng, n, k, c, peak=peak, dtype=dtype)
    before = probs.clone()
    out = alk.bald(probs)
    assert torch.equal(probs, before) and out.dtype == torch.float64
    torch.testing.assert_close(out, bald_of(probs).clamp(min=0), rtol=0, atol=1e-12)
    assert (out >= 0).all() and (out <= min(math.log(k), math.log(c)) + 1e-6).all()
    logs = probs.log()
    of_logs = alk.bald(logs, log_input=True)
    torch.testing.assert_close(of_logs, bald_of(logs.double().exp()).clamp(min=0), rtol=0, atol=1e-12)


def test_bald_reaches_its_ends():
    sure = torch.eye(6)[None]
    assert float(alk.bald(sure)) == pytest.approx(math.log(6), abs=1e-14)
    assert alk.bald(torch.full((7, 1, 3), 1 / 3)).eq(0).all()
    assert alk.bald(torch.full((7, 4, 1), 1.0)).eq(0).all()
    assert (alk.bald(torch.full((7, 9, 3), 1 / 3)) < 1e-15).all()
    assert alk.bald(sure[:0]).shape == (0,)


def test_a_copy_has_the_same_bits_wherever_it_lies(rng):
    """Ties rely on it: the first and the last columns go through differently wide panels."""
    for n, k, c in ((50, 7, 3), (37, 20, 10), (11, 5, 100), (9, 65, 1)):
        probs = draws(rng, 1, k, c).expand(n, k, c)
        for dtype in (torch.float32, torch.float64):
            assert len(alk.bald(probs.to(dtype)).unique()) == 1
            assert len(alk.joint_entropy(probs.to(dtype), probs[:2].to(dtype), num_samples=500).unique()) == 1


# ---- epig ----


def explicit_epig(probs, targets):
    """Σ p(y, y*) log p(y, y*) / (p(y) p(y*)), from the tensor [N, T, K, C, C']."""
    probs, targets = probs.double(), targets.double()
    joint = (probs[:, None, :, :, None] * targets[None, :, :, None, :]).mean(2)
    apart = joint.sum(3, keepdim=True) * joint.sum(2, keepdim=True)
    return torch.special.xlogy(joint, joint / apart.clamp(min=1e-300)).sum((2, 3)).mean(1)


@pytest.mark.parametrize(
    ("n", "t", "k", "c", "c2"),
    [
        (1, 1, 1, 1, 1),
        (9, 4, 5, 3, 3),
        (13, 7, 33, 2, 6),
        (17, 3, 9, 11, 2),
        (5, 2, 4, 1, 3),
        (5, 2, 4, 3, 1),
        (3, 65, 8, 4, 4),
    ],
)
@pytest.mark.parametrize("kind", ["softmax", "dyadic", "one-hot"])
def test_epig_equals_the_five_dimensional_tensor(n, t, k, c, c2, kind, rng):
    make = {"softmax": draws, "dyadic": dyadic, "one-hot": one_hot}[kind]
    probs, targets = make(rng, n, k, c), make(rng, t, k, c2)
    expected = explicit_epig(probs, targets)
    for ours in (alk.epig(probs, targets), alk.epig(probs.log(), targets.log(), log_input=True)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        assert ours.dtype == torch.float64 and (ours >= 0).all()
        assert (ours <= alk.bald(probs) + 1e-12).all()
    torch.testing.assert_close(alk.reference.epig(probs, targets), expected, rtol=0, atol=1e-12)
    if kind != "softmax":
        torch.testing.assert_close(alk.epig(probs.float(), targets.half()), expected, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_epig_is_between_nothing_and_bald(data):
    n, t, k = (data.draw(st.integers(1, m), name) for m, name in ((20, "n"), (8, "t"), (40, "k")))
    c, c2 = data.draw(st.integers(1, 9), "c"), data.draw(st.integers(1, 9), "c2")
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    peak = data.draw(st.sampled_from([0.1, 1.0, 10.0, 200.0]), "peak")
    probs, targets = draws(rng, n, k, c, peak=peak), draws(rng, t, k, c2, peak=peak)
    out = alk.epig(probs, targets)
    torch.testing.assert_close(out, explicit_epig(probs, targets), rtol=0, atol=1e-12)
    assert (out >= 0).all() and (out <= alk.bald(probs) + 1e-12).all()
    if k == 1:
        assert (out < 1e-14).all()


def test_epig_of_one_draw_is_zero(rng):
    assert (alk.epig(draws(rng, 30, 1, 7), draws(rng, 11, 1, 4)) < 1e-14).all()
    assert alk.epig(draws(rng, 0, 3, 7), draws(rng, 11, 3, 4)).shape == (0,)


# ---- batchbald ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "k", "c", "b"), [(40, 10, 3, 4), (25, 20, 2, 7), (60, 7, 5, 3), (12, 4, 4, 4), (300, 9, 3, 4)]
)
def test_equals_brute_force(n, k, c, b, dtype, rng):
    probs = dyadic(rng, n, k, c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = alk.batchbald(probs.to(dtype), b)
    picks, gains = brute_force(probs, b)
    assert out.indices.tolist() == picks and out.indices.dtype == torch.int64
    torch.testing.assert_close(out.scores, gains, rtol=0, atol=1e-12)


@pytest.mark.parametrize("peak", [0.3, 1.0, 4.0])
def test_equals_brute_force_and_reference_on_softmax(peak, rng):
    probs = draws(rng, 50, 12, 3, peak=peak)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, of_logs = alk.batchbald(probs, 4), alk.batchbald(probs.log(), 4, log_input=True)
    picks, gains = brute_force(probs, 4)
    assert out.indices.tolist() == of_logs.indices.tolist() == picks
    torch.testing.assert_close(out.scores, gains, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_logs.scores, gains, rtol=0, atol=1e-12)
    assert alk.reference.batchbald(probs, 4).indices.tolist() == picks


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_pick_is_the_best_there_is(data):
    n, k = data.draw(st.integers(1, 14), "n"), data.draw(st.integers(1, 9), "k")
    c = data.draw(st.integers(1, 4), "c")
    b = min(n, data.draw(st.integers(0, 6 if c <= 2 else 4), "b"))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    kind = data.draw(st.sampled_from(["softmax", "peaked", "flat", "one-hot", "dyadic", "copies"]), "kind")
    if kind == "one-hot":
        probs = one_hot(rng, n, k, c)
    elif kind == "dyadic":
        probs = dyadic(rng, n, k, c, parts=8)
    else:
        probs = draws(rng, n, k, c, peak={"peaked": 30.0, "flat": 1e-3}.get(kind, 1.5))
        if kind == "copies":
            probs = probs[torch.randint(max(1, n // 3), (n,), generator=rng)]
    single = kind in ("one-hot", "dyadic") and data.draw(st.booleans(), "float32")
    given_probs = probs.float() if single else probs.clone()
    before = given_probs.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = alk.batchbald(given_probs, b)
    assert torch.equal(given_probs, before)
    assert out.indices.shape == out.scores.shape == (b,) and len(set(out.indices.tolist())) == b
    h, alone = noise(probs), bald_of(probs)
    picks, total = [], 0.0
    for pick, score in zip(out.indices.tolist(), out.scores.tolist(), strict=True):
        gain = enumerated(probs, [probs[i] for i in picks]) - h - h[picks].sum() - total
        open_ = torch.ones(n, dtype=torch.bool)
        open_[picks] = False
        assert score == pytest.approx(float(gain[pick]), abs=1e-11)
        if gain[open_].max() > 2e-9:
            assert gain[pick] >= gain[open_].max() - 1e-11
        elif gain[open_].max() < 5e-10:
            assert alone[pick] >= alone[open_].max() - 1e-11
        assert 0 <= score <= float(alone[pick]) + 1e-11
        total += score
        picks.append(pick)
    assert total <= math.log(k) + 1e-11  # and the running sums never fall: every score is at least 0


def test_the_first_pick_is_the_bald_argmax(rng):
    for dtype in (torch.float32, torch.float64):
        probs = draws(rng, 500, 9, 4, dtype=dtype)
        out = alk.batchbald(probs, 1)
        assert int(out.indices) == int(bald_of(probs).argmax()) and float(out.scores) == float(alk.bald(probs).max())


def test_permuting_the_pool_permutes_the_picks(rng):
    probs = draws(rng, 200, 15, 3)
    order = torch.randperm(200, generator=rng)
    assert torch.equal(order[alk.batchbald(probs[order], 5).indices], alk.batchbald(probs, 5).indices)


# ---- batchbald: ties ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_some_copies_is_picked(dtype, rng):
    base = dyadic(rng, 70, 8, 3)
    copies = torch.cat([base, base, base])
    shuffled = torch.randperm(210, generator=rng)
    probs = copies[shuffled]
    out = alk.batchbald(probs.to(dtype), 4)
    picks, gains = brute_force(probs, 4)
    assert out.indices.tolist() == picks
    torch.testing.assert_close(out.scores, gains, rtol=0, atol=1e-12)
    of_base = shuffled % 70
    for step, pick in enumerate(picks):
        earlier = [i for i in range(pick) if of_base[i] == of_base[pick] and i not in picks[:step]]
        assert not earlier


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_alike_are_picked_in_index_order(dtype):
    uniform = torch.full((300, 4, 4), 0.25)
    assert alk.batchbald(uniform.to(dtype), 6).indices.tolist() == list(range(6))
    assert alk.batchbald(uniform.to(dtype), 6).scores.abs().max() < 1e-12
    halves = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).expand(130, 2, 2)
    out = alk.batchbald(halves.to(dtype), 5)
    assert out.indices.tolist() == list(range(5))
    assert (out.scores[1:] < out.scores[:-1]).all() and (out.scores > 0).all()


def test_gains_of_nothing_go_by_bald_then_by_index():
    """Two sure draws: one pick tells them apart, and all that follow add nothing."""
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    doubt = [torch.tensor([[1 - e, e], [e, 1 - e]]) for e in (0.25, 0.125, 0.0, 0.125, 0.25, 0.0)]
    with pytest.warns(UserWarning):
        out = alk.batchbald(torch.stack([*doubt, sure]).double(), 7)
    assert out.indices.tolist() == [2, 5, 6, 1, 3, 0, 4]
    assert out.scores[0] == pytest.approx(math.log(2)) and (out.scores[1:].abs() < 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_that_agree_tell_nothing(dtype, rng):
    """The same predictions under every draw: no gain may come out of probabilities that do not sum to 1 exactly."""
    probs = draws(rng, 30, 1, 5).to(dtype).expand(30, 8, 5)
    assert (alk.batchbald(probs, 6).scores < 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_that_agree_leave_index_order(dtype, rng):
    """Every BALD is 0 but for rounding, which must not decide."""
    probs = draws(rng, 30, 1, 5).to(dtype).expand(30, 8, 5)
    assert alk.batchbald(probs, 6).indices.tolist() == list(range(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gain_exceeds_bald(dtype, rng):
    for peak in (0.01, 1.0, 5.0):
        probs = draws(rng, 200, 30, 4, peak=peak, dtype=dtype)
        out = alk.batchbald(probs, 4)
        assert (out.scores >= 0).all() and (out.scores <= alk.bald(probs)[out.indices] + 1e-12).all()
        assert float(out.scores.sum()) <= math.log(30) + 1e-12


# ---- batchbald: sampled ----


def every_candidate(probs, b, max_configurations, num_samples, seed):
    """All candidates scored at every step in float64, with the configurations that batchbald draws."""
    configurations = Configurations(check_draws(probs, "probs", False), max_configurations, num_samples, seed)
    h = noise(probs)
    picks, gains = [], []
    for _ in range(b):
        q = torch.einsum("mk,nkc->mnc", configurations.weights, probs.double())
        gain = torch.einsum("m,mnc->n", configurations.mass, torch.special.entr(q)) - h
        gain[picks] = -torch.inf
        picks.append(first(gain))
        gains.append(float(gain[picks[-1]]))
        configurations.add(probs[picks[-1]].double())
    return picks, torch.tensor(gains, dtype=torch.float64), configurations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("peak", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("max_configurations", [1, 3, 30])
def test_sampled_picks_are_those_of_scoring_every_candidate(max_configurations, peak, dtype, rng):
    probs = draws(rng, 150, 10, 3, peak=peak, dtype=dtype)
    for seed in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = alk.batchbald(probs, 7, max_configurations=max_configurations, num_samples=800, generator=seed)
        picks, gains, configurations = every_candidate(probs, 7, max_configurations, 800, seed)
        assert configurations.sampled
        assert out.indices.tolist() == picks
        torch.testing.assert_close(out.scores, gains, rtol=0, atol=1e-6)


def test_sampled_configurations_are_draws_of_the_mixture(rng):
    """Each is a posterior over draws, equally probable, and they average to the prior."""
    probs = draws(rng, 6, 5, 3)
    configurations = Configurations(check_draws(probs, "probs", False), 1, 50_000, 3)
    for point in probs[:4]:
        configurations.add(point)
    assert configurations.sampled and configurations.weights.shape == (50_000, 5)
    torch.testing.assert_close(configurations.weights.sum(1), torch.ones(50_000, dtype=torch.float64))
    assert configurations.mass.eq(1 / 50_000).all()
    sd = configurations.weights.std(0) / math.sqrt(50_000)
    assert ((configurations.weights.mean(0) - 1 / 5).abs() < 5 * sd).all()
    assert configurations.entropy == pytest.approx(float(enumerated(probs[3:4], probs[:3])[0]), abs=0.03)


def test_max_configurations_is_where_picks_begin_to_be_sampled(rng):
    probs = draws(rng, 60, 10, 3)
    exact = alk.batchbald(probs, 4)
    at = [alk.batchbald(probs, 4, max_configurations=27, generator=s) for s in range(2)]  # 27 before the 4th pick
    for out in at:
        assert torch.equal(out.indices, exact.indices) and torch.equal(out.scores, exact.scores)
    below = [alk.batchbald(probs, 4, max_configurations=26, generator=s) for s in range(2)]
    assert torch.equal(below[0].scores[:3], exact.scores[:3])
    assert below[0].scores[3] != below[1].scores[3]
    assert (below[0].scores - exact.scores).abs().max() < 0.02


def test_sampled_gains_are_close_to_exact_and_seeded(rng):
    probs = draws(rng, 80, 20, 3, peak=1.0)
    exact = alk.batchbald(probs, 5)
    out = alk.batchbald(probs, 5, max_configurations=1, generator=0)
    assert (out.scores.cumsum(0) - exact.scores.cumsum(0)).abs().max() < 0.05
    again = alk.batchbald(probs, 5, max_configurations=1, generator=0)
    assert torch.equal(out.indices, again.indices) and torch.equal(out.scores, again.scores)
    assert not torch.equal(out.scores, alk.batchbald(probs, 5, max_configurations=1, generator=1).scores)


def test_a_long_sampled_batch(rng):
    probs = draws(rng, 70, 30, 4, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = alk.batchbald(probs, 60, max_configurations=100, num_samples=1500, generator=0)
    assert len(set(out.indices.tolist())) == 60 and torch.isfinite(out.scores).all()
    assert float(out.scores.sum()) < math.log(30) + 0.1


# ---- batchbald: the rest ----


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_for_any_number_of_threads(dtype, sampled, rng):
    probs = draws(rng, 3000, 16, 4, dtype=dtype)
    option = {"max_configurations": 1, "num_samples": 800, "generator": 0} if sampled else {}
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                (
                    *alk.batchbald(probs, 4, **option),
                    alk.joint_entropy(probs, probs[:3], **option),
                    alk.bald(probs),
                    alk.epig(probs, probs[:5]),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_and_everything(rng):
    probs = draws(rng, 7, 4, 3)
    out = alk.batchbald(probs, 0)
    assert out.indices.shape == out.scores.shape == (0,) and out.indices.dtype == torch.int64
    assert alk.batchbald(probs[:0], 0).scores.dtype == torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sorted(alk.batchbald(probs, 7).indices.tolist()) == list(range(7))
        assert sorted(alk.batchbald(probs, 7, max_configurations=1).indices.tolist()) == list(range(7))
    assert alk.batchbald(probs[:1], 1).indices.tolist() == [0]
    assert isinstance(out, alk.Selection)


def test_saturation_is_warned_of_where_it_is(rng):
    sure = one_hot(rng, 40, 4, 8)
    with pytest.warns(UserWarning, match=r"of 6 picks the batch holds 1.39 of the 1.39 nats that 4 draws") as record:
        alk.batchbald(sure, 6)
    assert len(record) == 1 and record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alk.batchbald(draws(rng, 100, 50, 3), 3)
        alk.batchbald(torch.eye(4)[None].expand(3, 4, 4), 1)  # full at once, but nothing is left to pick
        alk.batchbald(sure, 0)


def test_one_draw_is_warned_of(rng):
    probs = draws(rng, 9, 1, 4)
    with pytest.warns(UserWarning, match="probs holds one draw.*every score is 0") as record:
        out = alk.batchbald(probs, 4)
    assert len(record) == 1 and record[0].filename == __file__
    assert out.indices.tolist() == [0, 1, 2, 3] and out.scores.eq(0).all()


def test_progress_bar(rng, capsys):
    alk.batchbald(draws(rng, 30, 8, 3), 4, progress=True)
    assert "4/4" in capsys.readouterr().err
    alk.batchbald(draws(rng, 30, 8, 3), 4)
    assert capsys.readouterr().err == ""


def test_gradients_are_not_asked_for(rng):
    probs = draws(rng, 9, 5, 3).requires_grad_()
    assert not alk.batchbald(probs, 3).scores.requires_grad
    assert not alk.joint_entropy(probs, probs[:2]).requires_grad
    assert not alk.bald(probs).requires_grad and not alk.epig(probs, probs).requires_grad


def test_inputs_stay_as_they_are(rng):
    for dtype in DTYPES:
        probs = dyadic(rng, 30, 6, 3).to(dtype)
        logs, before, before_logs = probs.log(), probs.clone(), probs.log()
        for option in ({}, {"max_configurations": 1, "num_samples": 100}):
            alk.joint_entropy(probs, probs[:5], **option)
            alk.joint_entropy(logs, logs[:5], log_input=True, **option) if dtype != torch.bfloat16 else None
            alk.batchbald(probs, 5, **option)
        alk.bald(probs)
        alk.epig(probs, probs[:5])
        assert torch.equal(probs, before) and torch.equal(logs, before_logs)


# ---- bad input ----


def spoiled(probs, value, at=(7, 2, 1)):
    probs = probs.clone()
    probs[at] = value
    return probs


@pytest.mark.parametrize("function", ["joint_entropy", "chosen", "bald", "batchbald", "epig", "target_probs"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("sum", r"must hold probabilities that sum to 1 within 0.00[14], got 1.\d+ in row 7, draw 2"),
        ("zeros", r"must hold probabilities that sum to 1 within 0.00[14], got 0 in row 7, draw 2"),
        ("negative", r"must hold probabilities, got -0.25 in row 7, draw 2"),
        ("nan", r"must hold probabilities, got nan in row 7, draw 2"),
        ("inf", r"must hold probabilities, got inf in row 7, draw 2"),
    ],
)
def test_rows_that_are_no_distributions(case, message, dtype, function, rng):
    good = dyadic(rng, 20, 5, 3, parts=8)
    bad = good.clone()
    row = torch.tensor([0.25, 0.25, 0.5])
    bad[7, 2] = {
        "sum": row + torch.tensor([0.0, 0.0, 0.0078125]),
        "zeros": torch.zeros(3),
        "negative": torch.tensor([-0.25, 0.5, 0.75]),
        "nan": torch.tensor([0.25, torch.nan, 0.5]),
        "inf": torch.tensor([0.25, torch.inf, 0.5]),
    }[case]
    good, bad = good.to(dtype), bad.to(dtype)
    call = {
        "joint_entropy": lambda: alk.joint_entropy(bad, good[:2]),
        "chosen": lambda: alk.joint_entropy(good, bad),
        "bald": lambda: alk.bald(bad),
        "batchbald": lambda: alk.batchbald(bad, 0),
        "epig": lambda: alk.epig(bad, good),
        "target_probs": lambda: alk.epig(good, bad),
    }[function]
    name = function if function in ("chosen", "target_probs") else "probs"
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        call()


def test_a_bfloat16_softmax_is_taken(rng):
    """Its rows are off by up to 2^-8; what comes out is that of the float64 rows they stand for."""
    probs = draws(rng, 200, 8, 5, dtype=torch.float32).bfloat16()
    assert ((probs.float().sum(-1) - 1).abs() > 1e-3).any()
    exact = probs.double() / probs.double().sum(-1, keepdim=True)
    torch.testing.assert_close(alk.bald(probs), alk.bald(exact), rtol=0, atol=0.03)
    picked = alk.batchbald(probs, 5, generator=0)
    assert torch.isfinite(picked.scores).all() and len(set(picked.indices.tolist())) == 5


def test_the_tolerance_of_a_sum():
    probs = torch.tensor([[[0.5, 0.5], [0.5, 0.5009]]], dtype=torch.float64)
    assert torch.isfinite(alk.bald(probs)).all()
    with pytest.raises(
        ValueError, match=r"probs must hold probabilities that sum to 1 within 0.001, got 1.0011 in row 0, draw 1"
    ):
        alk.bald(spoiled(probs, 0.5011, (0, 1, 1)))
    with pytest.raises(ValueError, match=r"probs must hold probabilities that sum to 1 within 0.001, got 0.9989"):
        alk.bald(spoiled(probs, 0.4989, (0, 1, 1)))


def test_logarithms_that_are_none(rng):
    logs = draws(rng, 20, 5, 3).log()
    with pytest.raises(ValueError, match=r"probs must hold probabilities, got -.*row 0, draw 0"):
        alk.bald(logs)
    with pytest.raises(ValueError, match=r"probs must hold logarithms of probabilities that sum to 1.*row 0, draw 0"):
        alk.bald(logs.exp(), log_input=True)
    with pytest.raises(ValueError, match="probs must hold logarithms of probabilities, got nan in row 7, draw 2"):
        alk.batchbald(spoiled(logs, torch.nan), 2, log_input=True)
    with pytest.raises(ValueError, match="probs must hold logarithms of probabilities, got inf in row 7, draw 2"):
        alk.batchbald(spoiled(logs, torch.inf), 2, log_input=True)
    with pytest.raises(ValueError, match=r"probs must hold logarithms.*got 0 in row 7, draw 2"):
        alk.joint_entropy(spoiled(logs, -torch.inf, (7, 2)), log_input=True)


def bad(rng):
    p = draws(rng, 20, 5, 3)
    return {
        "b above N": (alk.batchbald, (p, 21), {}, ValueError, r"batch_size must be between 0 and 20 .*got 21"),
        "b negative": (alk.batchbald, (p, -1), {}, ValueError, "batch_size must be between 0 and 20 .*got -1"),
        "b not whole": (alk.batchbald, (p, 2.0), {}, TypeError, "batch_size must be an integer, got float 2.0"),
        "b a bool": (alk.batchbald, (p, True), {}, TypeError, "batch_size must be an integer, got True"),
        "b of no rows": (alk.batchbald, (p[:0], 1), {}, ValueError, "batch_size must be between 0 and 0 .*got 1"),
        "max_configurations": (
            alk.batchbald,
            (p, 2),
            {"max_configurations": 0},
            ValueError,
            "max_configurations must be at least 1, got 0",
        ),
        "max_configurations of joint_entropy": (
            alk.joint_entropy,
            (p,),
            {"max_configurations": 1e4},
            TypeError,
            "max_configurations must be an integer, got float",
        ),
        "num_samples": (
            alk.batchbald,
            (p, 2),
            {"num_samples": -5},
            ValueError,
            "num_samples must be at least 1, got -5",
        ),
        "num_samples of joint_entropy": (
            alk.joint_entropy,
            (p,),
            {"num_samples": "many"},
            TypeError,
            "num_samples must be an integer, got str",
        ),
        "generator": (
            alk.batchbald,
            (p, 3),
            {"generator": "seed", "max_configurations": 1},
            TypeError,
            "generator must be a torch.Generator, an integer seed or None, got str",
        ),
        "generator that is not asked": (
            alk.batchbald,
            (p, 3),
            {"generator": "seed"},
            TypeError,
            "generator must be a torch.Generator, an integer seed or None, got str",
        ),
        "generator of joint_entropy that is not asked": (
            alk.joint_entropy,
            (p, p[:1]),
            {"generator": 0.5},
            TypeError,
            "generator must be a torch.Generator, an integer seed or None, got float",
        ),
        "two dimensions": (
            alk.bald,
            (p[0],),
            {},
            ValueError,
            r"probs must be three-dimensional \[N, K, C\], got shape \(5, 3\)",
        ),
        "four dimensions": (
            alk.batchbald,
            (p[None], 1),
            {},
            ValueError,
            r"probs must be three-dimensional.*\(1, 20, 5, 3\)",
        ),
        "no draws": (
            alk.bald,
            (p[:, :0],),
            {},
            ValueError,
            r"probs must have at least one draw and one class, got shape \(20, 0, 3\)",
        ),
        "no classes": (alk.bald, (p[:, :, :0],), {}, ValueError, "probs must have at least one draw and one class"),
        "integers": (alk.batchbald, (p.int(), 2), {}, TypeError, "probs must be of dtype .*got torch.int32"),
        "numpy integers": (alk.bald, (p.int().numpy(),), {}, TypeError, "probs must be of dtype .*got int32"),
        "list": (alk.bald, (p.tolist(),), {}, TypeError, "probs must be a torch.Tensor or a numpy.ndarray.*got list"),
        "pair": (alk.batchbald, ((p, p), 2), {}, TypeError, "probs must be .*got"),
        "pair for bald": (alk.bald, ((p, p),), {}, TypeError, "probs must be .*got"),
        "pair of chosen": (alk.joint_entropy, (p, (p, p)), {}, TypeError, "chosen must be .*got"),
        "pair of targets": (alk.epig, (p, (p, p)), {}, TypeError, "target_probs must be .*got"),
        "sparse": (alk.bald, (p.to_sparse(),), {}, TypeError, "probs must be a dense tensor"),
        "meta": (alk.bald, (p.to("meta"),), {}, ValueError, "probs is on meta"),
        "draws of chosen": (
            alk.joint_entropy,
            (p, p[:2, :4]),
            {},
            ValueError,
            r"chosen must have as many draws and classes as probs, got \(4, 3\) and \(5, 3\)",
        ),
        "classes of chosen": (
            alk.joint_entropy,
            (p, p[:2, :, :2]),
            {},
            ValueError,
            r"chosen must have as many draws and classes as probs, got \(5, 2\) and \(5, 3\)",
        ),
        "one chosen point": (alk.joint_entropy, (p, p[0]), {}, ValueError, "chosen must be three-dimensional"),
        "integers chosen": (alk.joint_entropy, (p, p.int()), {}, TypeError, "chosen must be of dtype"),
        "draws of targets": (
            alk.epig,
            (p, p[:, :4]),
            {},
            ValueError,
            "target_probs must have as many draws as probs, got 4 and 5",
        ),
        "no targets": (alk.epig, (p, p[:0]), {}, ValueError, "target_probs must have at least one row"),
        "targets on meta": (alk.epig, (p, p.to("meta")), {}, ValueError, "target_probs .*meta"),
    }


@pytest.mark.parametrize("case", list(bad(torch.Generator())))
def test_bad_input(case, rng):
    function, args, options, error, message = bad(rng)[case]
    with pytest.raises(error, match=message):
        function(*args, **options)


# ---- memory ----

WARM = """
def draws(*shape):
    return torch.rand(*shape).add_(0.01).div_(1).softmax(-1)

small = draws(50, 8, 3)
alk.batchbald(small, 3, max_configurations=5, num_samples=80)
alk.epig(small, small)
"""


@pytest.mark.parametrize(
    ("n", "k", "c", "b", "options", "configurations"),
    [
        (20_000, 20, 10, 4, "", 1000),
        (4000, 20, 10, 4, "max_configurations=100", 40_000),
        (1_000_000, 2, 2, 4, "", 8),
        pytest.param(20_000, 20, 10, 6, "", 40_000, marks=pytest.mark.slow),
        pytest.param(200_000, 20, 10, 4, "", 1000, marks=pytest.mark.slow),
    ],
)
def test_memory_of_batchbald(n, k, c, b, options, configurations):
    """50 MB, 40 bytes a row and 32 bytes a configuration and draw beyond the probabilities."""
    out = run_python(
        MEASURE + WARM + f"p = draws({n}, {k}, {c})\n" + f"print(extra(lambda: alk.batchbald(p, {b}, {options})))",
        PYTHONWARNINGS="ignore",
    )
    assert int(out) <= 50e6 + 40 * n + 32 * configurations * k


@pytest.mark.parametrize(
    ("n", "k", "c", "t", "dtype", "configurations"),
    [
        (20_000, 20, 10, 3, "float32", 1000),
        (20_000, 20, 10, 2, "float16", 100),
        (20_000, 20, 10, 2, "float64", 100),
        (200, 20, 10, 6, "float32", 40_000),
        pytest.param(2_000_000, 4, 4, 1, "float32", 4, marks=pytest.mark.slow),
    ],
)
def test_memory_of_joint_entropy(n, k, c, t, dtype, configurations):
    """50 MB and 32 bytes a configuration and draw; and the entropies, twice while they are put together."""
    out = run_python(
        MEASURE
        + WARM
        + f"p = draws({n}, {k}, {c}).to(torch.{dtype})\n"
        + f"print(extra(lambda: alk.joint_entropy(p, p[:{t}])))"
    )
    assert int(out) <= 50e6 + 32 * configurations * k + 16 * n


@pytest.mark.parametrize(("n", "t", "k", "c"), [(20_000, 10, 20, 10), (4, 1000, 100, 100)])
def test_memory_of_bald_and_epig(n, t, k, c):
    """bald: 50 MB, and the scores. epig: 16 bytes for each target, class and draw more."""
    out = run_python(
        MEASURE
        + WARM
        + f"p, t = draws({n}, {k}, {c}), draws({t}, {k}, {c})\n"
        + "print(extra(lambda: alk.bald(p)))\n"
        + "print(extra(lambda: alk.epig(p, t)))"
    )
    of_bald, of_epig = map(int, out.split())
    assert of_bald <= 50e6 + 16 * n
    assert of_epig <= 50e6 + 16 * n + 16 * t * k * c
