"""Pairwise KL against its definition, term by term in extended precision."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import MEASURE, run_python

import alkernels as alk
from alkernels.ops import pairwise_kl as module

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# What the docstring promises of each of all pairs, relative to its own value.
BOUND = {torch.float32: 1e-4, torch.float64: 1e-12}


def extended(x):
    x = x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)
    return x.astype(np.longdouble)


def terms(p, q, log_input=False):
    """[N, M, C] terms p log(p / q): 0 where p is 0, +inf where q alone is; no difference of logarithms where close."""
    a, b = extended(p)[:, None], extended(q)[None]
    a, b = np.broadcast_arrays(a, b)
    with np.errstate(all="ignore"):
        if log_input:
            return np.where(a == -np.inf, 0, np.exp(a) * np.where(a == -np.inf, 0, a - b))
        close = np.abs(a - b) < b / 2
        ratio = np.where(close, np.log1p(np.where(close, (a - b) / b, 0)), np.log(a) - np.log(b))
        return np.where(a > 0, a * np.where(a > 0, ratio, 0), 0)


def definition(p, q, log_input=False):
    """The divergences [N, M], and what the rounding of their terms to float64 comes to at most."""
    t = terms(p, q, log_input)
    with np.errstate(invalid="ignore"):
        return t.sum(2), 1e-15 * np.abs(t).sum(2)


def of_logarithms(p, q, log_input=False):
    """What the rounding of log p and log q to float64 comes to: far more than that of their small difference."""
    (a, log_a), (b, log_b) = (
        (np.exp(x), x) if log_input else (x, None) for x in (extended(p)[:, None], extended(q)[None])
    )
    with np.errstate(all="ignore"):
        log_a, log_b = (log_a, log_b) if log_input else (np.log(a), np.log(b))
        return 1e-15 * np.where((a > 0) & np.isfinite(log_b), a * (np.abs(log_a) + np.abs(log_b)), 0).sum(2)


def assert_divergences(ours, p, q, log_input=False, bound=None, sums=False):
    """Within `bound` of themselves; `sums`: as good as any sum over differences of float64 logarithms."""
    truth, rounding = definition(p, q, log_input)
    rounding = of_logarithms(p, q, log_input) if sums else rounding
    ours = ours.detach().cpu() if isinstance(ours, torch.Tensor) else torch.from_numpy(np.asarray(ours))
    bound = BOUND[ours.dtype] if bound is None else bound
    ours = ours.numpy().astype(np.longdouble)
    assert ours.shape == truth.shape and not np.isnan(ours).any()
    infinite = truth == np.inf
    assert (np.isinf(ours) == infinite).all() and (ours[infinite] > 0).all()
    difference = np.abs(np.where(infinite, 0, ours) - np.where(infinite, 0, truth))
    # the smallest normal float32 and the rounding of the definition itself; everything else is the docstring's
    allowed = bound * np.abs(np.where(infinite, 0, truth)) + np.where(infinite, 0, rounding) + 1e-37
    worst = np.unravel_index((difference / allowed).argmax(), truth.shape) if truth.size else None
    assert (difference <= allowed).all(), f"{worst}: {ours[worst]} for {truth[worst]}, allowed {allowed[worst]}"


def random_rows(rng, n, c, scale=1.0, dtype=torch.float32):
    return (scale * torch.randn(n, c, generator=rng, dtype=torch.float64)).softmax(1).to(dtype)


def dyadic(rng, n, c, parts=64):
    """Multiples of 1 / parts that sum to exactly 1, zeros among them."""
    draws = torch.randint(c, (n, parts), generator=rng)
    return torch.zeros(n, c).scatter_add_(1, draws, torch.ones(n, parts)) / parts


def almost_flat(rng, n, step, c=8):
    """Rows that sum to exactly 1 in float32 and differ by a few multiples of `step`."""
    k = torch.randint(-8, 9, (n, c), generator=rng)
    k[:, -1] -= k.sum(1)
    return (1 / c + k.double() * step).float()


def with_zeros(rng, n, c, share=0.3):
    x = torch.rand(n, c, generator=rng, dtype=torch.float64) * (torch.rand(n, c, generator=rng) > share)
    x[:, 0] += x.sum(1) == 0
    return x / x.sum(1, keepdim=True)


# ---- all pairs ----

SHAPES = [(1, 1, 1), (1, 5, 2), (7, 1, 3), (13, 17, 10), (65, 63, 33), (100, 129, 65), (33, 70, 100), (3, 9, 1000)]


@pytest.mark.parametrize(("n", "m", "c"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_equals_the_definition(n, m, c, dtype, scale, rng, device):
    p, q = random_rows(rng, n, c, scale, dtype), random_rows(rng, m, c, scale, dtype)
    ours = alk.pairwise_kl(p.to(device), q.to(device))
    assert ours.dtype == dtype and ours.device.type == torch.device(device).type
    assert_divergences(ours, p, q)
    logs = [x.double().log().to(dtype) for x in (p, q)]
    ours = alk.pairwise_kl(*(x.to(device) for x in logs), log_input=True)
    assert ours.dtype == dtype
    assert_divergences(ours, *logs, log_input=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition_in_many_tiles(dtype, rng):
    p, q = random_rows(rng, 150, 100, 2.0, dtype), random_rows(rng, 600, 100, 2.0, dtype)
    assert_divergences(alk.pairwise_kl(p, q), p, q)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_give_no_pairs(n, m, dtype):
    p, q = torch.full((n, 2), 0.5, dtype=dtype), torch.full((m, 2), 0.5, dtype=dtype)
    out = alk.pairwise_kl(p, q)
    assert out.shape == (n, m) and out.dtype == torch.promote_types(dtype, torch.float32)
    if m:
        for reduce in ("mean", "min", "max"):
            assert alk.pairwise_kl(p, q, reduce=reduce).shape == (0,)
        top = alk.pairwise_kl(p, q, reduce="topk", k=2)
        assert top.values.shape == top.indices.shape == (0, 2) and top.indices.dtype == torch.int64
    else:
        for reduce, k in (("mean", None), ("min", None), ("max", None), ("topk", 1)):
            with pytest.raises(ValueError, match="q must have at least one row with reduce="):
                alk.pairwise_kl(p, q, reduce=reduce, k=k)


def test_hand_computed():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    out = alk.pairwise_kl(p, p)
    log2 = float(np.log(2))
    torch.testing.assert_close(
        out, torch.tensor([[0.0, log2], [torch.inf, 0.0]], dtype=torch.float64), rtol=1e-15, atol=0
    )
    assert torch.equal(alk.pairwise_kl(p.float(), p.float()), out.float())


PEAKED = {
    "peaked": lambda g, n: random_rows(g, n, 10, 30.0, torch.float64),
    "flat": lambda g, n: random_rows(g, n, 10, 1e-2, torch.float64),
    "one-hot": lambda g, n: torch.eye(10, dtype=torch.float64)[torch.randint(10, (n,), generator=g)],
    "dyadic": lambda g, n: dyadic(g, n, 10).double(),
    "zeros": lambda g, n: with_zeros(g, n, 10),
    "more than 64 classes, zeros": lambda g, n: with_zeros(g, n, 131, 0.02),
    "1e-30": lambda g, n: torch.cat([torch.full((n, 1), 1e-30), dyadic(g, n, 6).double()], 1),
    "1e-300": lambda g, n: torch.cat(
        [10.0 ** -torch.randint(1, 300, (n, 3), generator=g).double(), dyadic(g, n, 4)], 1
    ),
    "subnormal": lambda g, n: torch.cat([5e-324 * torch.randint(3, (n, 3), generator=g).double(), dyadic(g, n, 4)], 1),
    "one common peak": lambda g, n: torch.cat([torch.rand(n, 3, generator=g) * 1e-6, torch.ones(n, 1)], 1).double(),
    "sums off by 1e-3": lambda g, n: (
        random_rows(g, n, 10, 1.0, torch.float64) * (1 + 9e-4 * (2 * torch.rand(n, 1, generator=g).double() - 1))
    ),
}


def normal_sum(x):
    return x / x.sum(1, keepdim=True) if bool(((x.sum(1) - 1).abs() > 1e-3).any()) else x


@pytest.mark.parametrize("name", PEAKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_distributions(name, dtype, rng, device):
    p, q = (normal_sum(PEAKED[name](rng, n)).to(dtype) for n in (45, 70))
    assert_divergences(alk.pairwise_kl(p.to(device), q.to(device)), p, q)
    assert_divergences(alk.pairwise_kl(q.to(device), q.to(device)), q, q)
    logs = p.log(), q.log()
    ours = alk.pairwise_kl(logs[0].to(device), logs[1].to(device), log_input=True)
    assert_divergences(ours, *logs, log_input=True)


@pytest.mark.parametrize("step", [2.0**-s for s in (10, 12, 14, 16, 18, 20, 22)])
@pytest.mark.parametrize("log_input", [False, True])
def test_nearly_equal_rows_keep_their_digits_in_float32(step, log_input, rng):
    """Divergences down to 1e-10 of rows that sum to 1 exactly: what is left after cancellation is all there is."""
    p, q = almost_flat(rng, 37, step), almost_flat(rng, 41, step)
    assert (p.double().sum(1) == 1).all()
    if log_input:
        p, q = p.log(), q.log()
    assert_divergences(alk.pairwise_kl(p, q, log_input=log_input), p, q, log_input)


@pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("log_input", [False, True])
@pytest.mark.parametrize("form", ["full", "gathered", "topk"])
def test_nearly_equal_rows_keep_their_digits_in_float64(step, log_input, form, rng):
    """All pairs within 1e-12 and the rounding of terms p log(p / q), which are small; the others are float64 sums."""
    base = torch.randn(1, 10, generator=rng, dtype=torch.float64)
    p, q = ((base + step * torch.randn(n, 10, generator=rng, dtype=torch.float64)).softmax(1) for n in (30, 40))
    if log_input:
        p, q = p.log(), q.log()
    if form == "full":
        ours = alk.pairwise_kl(p, q, log_input=log_input)
    elif form == "gathered":
        ours = alk.pairwise_kl(p, q, log_input=log_input, neighbors=torch.arange(40).expand(30, 40))
    else:
        top = alk.pairwise_kl(p, q, log_input=log_input, reduce="topk", k=40)
        ours = torch.empty(30, 40, dtype=torch.float64).scatter_(1, top.indices, top.values)
    assert_divergences(ours, p, q, log_input, sums=form != "full")


@pytest.mark.parametrize("c", [1, 2, 10, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_at_zero_from_itself(c, dtype, rng):
    p = random_rows(rng, 50, c, 3.0, dtype)
    p = torch.cat([p, p])
    out = alk.pairwise_kl(p, p)
    assert (out.diagonal() == 0).all() and (out.diagonal(50) == 0).all()
    logs = p.log()
    assert (alk.pairwise_kl(logs, logs, log_input=True).diagonal() == 0).all()
    assert (alk.pairwise_kl(p, p, reduce="min") <= 0).all()
    assert (alk.pairwise_kl(p, p, neighbors=torch.arange(100)[:, None]) == 0).all()
    if c > 1:
        top = alk.pairwise_kl(p, p, reduce="topk", k=2)
        assert torch.equal(top.indices[:, 0], torch.arange(100) % 50) or (top.values[:, 0] < 0).any()


def test_zeros_in_p_in_q_and_in_both():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [-0.0, 0.0, 1.0]])
    expected = torch.tensor(
        [[0.0, torch.inf, torch.inf], [float(np.log(2)), 0.0, torch.inf], [torch.inf, torch.inf, 0.0]]
    )
    for dtype in DTYPES:
        out = alk.pairwise_kl(p.to(dtype), p.to(dtype))
        torch.testing.assert_close(out, expected.to(out.dtype), rtol=1e-7, atol=0)
    torch.testing.assert_close(alk.pairwise_kl(p.log(), p.log(), log_input=True), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("form", ["full", "gathered", "topk", "max", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-95.0, -110.0, -600.0, -800.0, -1e5, -1e30])
def test_logarithms_too_low_for_their_probabilities(low, dtype, form):
    """exp underflows in float32 below -103 and in float64 below -745; the divergence is finite all the same."""
    p = torch.tensor([[np.log(0.5), np.log(0.5)], [0.0, low], [low, 0.0]], dtype=dtype)
    q = torch.tensor([[0.0, low]], dtype=dtype)
    truth = definition(p, q, log_input=True)[0].astype(np.float64)
    assert np.isfinite(truth).all()
    if form == "full":
        ours = alk.pairwise_kl(p, q, log_input=True)
    elif form == "gathered":
        ours = alk.pairwise_kl(p, q, log_input=True, neighbors=torch.zeros(3, 1, dtype=torch.int64))
    elif form == "topk":
        ours = alk.pairwise_kl(p, q, log_input=True, reduce="topk", k=1).values
    else:
        ours = alk.pairwise_kl(p, q, log_input=True, reduce=form)[:, None]
    np.testing.assert_allclose(ours.double().numpy(), truth, rtol=1e-5)


def test_minus_infinity_among_logarithms(rng):
    p, q = with_zeros(rng, 40, 7), with_zeros(rng, 50, 7)
    ours = alk.pairwise_kl(p.log(), q.log(), log_input=True)
    assert_divergences(ours, p.log(), q.log(), log_input=True)
    assert torch.isinf(ours).any() and torch.isfinite(ours).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, rng):
    p, q = dyadic(rng, 30, 9).to(dtype), dyadic(rng, 40, 9).to(dtype)
    ours = alk.pairwise_kl(p, q)
    assert ours.dtype == torch.float32
    assert_divergences(ours, p, q)
    assert torch.equal(ours, alk.pairwise_kl(p.float(), q.float()))


@pytest.mark.parametrize("log_input", [False, True])
def test_what_a_float16_model_says_is_taken(log_input, rng):
    """A softmax rounded to the dtype it came in: its sum is off by no more than the dtype's rounding."""
    logits = 3 * torch.randn(300, 10, generator=rng)
    p = (logits.log_softmax(1) if log_input else logits.softmax(1)).half()
    assert_divergences(alk.pairwise_kl(p, p[:50], log_input=log_input), p, p[:50], log_input)


def test_a_bfloat16_softmax_is_taken_and_its_logarithms_are_refused_with_a_hint(rng):
    logits = 3 * torch.randn(300, 10, generator=rng)
    p = logits.softmax(1).bfloat16()
    assert ((p.float().sum(1) - 1).abs() > 1e-3).any()
    assert_divergences(alk.pairwise_kl(p, p[:50]), p, p[:50])
    with pytest.raises(ValueError, match=r"p must hold logarithms .*bfloat16 may round by more"):
        alk.pairwise_kl(logits.log_softmax(1).bfloat16(), p.float().log(), log_input=True)
    with pytest.raises(ValueError, match=r"p must hold probabilities that sum to 1 within 0.004"):
        alk.pairwise_kl((p.float() * 1.01).bfloat16(), p)


@pytest.mark.parametrize(("left", "right"), list(itertools.product(DTYPES, DTYPES)))
def test_mixed_dtypes(left, right, rng):
    p, q = dyadic(rng, 20, 5).to(left), dyadic(rng, 30, 5).to(right)
    ours = alk.pairwise_kl(p, q)
    assert ours.dtype == torch.promote_types(torch.promote_types(left, right), torch.float32)
    assert_divergences(ours, p, q)
    top = alk.pairwise_kl(p, q, reduce="topk", k=3)
    assert top.values.dtype == ours.dtype
    some = alk.pairwise_kl(p, q, neighbors=top.indices)
    assert some.dtype == ours.dtype
    torch.testing.assert_close(some, top.values, rtol=1e-6, atol=1e-14)


def layouts(x):
    padded = torch.full((2 * len(x), 3 * x.shape[1]), -1.0, dtype=x.dtype)
    padded[::2, 1::3] = x
    return {
        "transposed": x.t().contiguous().t(),
        "every third column of every other row": padded[::2, 1::3],
        "expanded": x[:1].expand(len(x), -1),
    }


@pytest.mark.parametrize("name", layouts(torch.ones(2, 2)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(name, dtype, rng):
    p, q = layouts(dyadic(rng, 30, 9).to(dtype))[name], layouts(dyadic(rng, 40, 9).to(dtype))[name]
    expected = alk.pairwise_kl(p.contiguous(), q.contiguous())
    assert torch.equal(alk.pairwise_kl(p, q), expected)
    assert_divergences(expected, p, q)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy(dtype, rng, tmp_path):
    p, q = dyadic(rng, 60, 5).numpy().astype(dtype), dyadic(rng, 70, 5).numpy().astype(dtype)
    expected = alk.pairwise_kl(torch.from_numpy(p), torch.from_numpy(q)).numpy()
    np.save(tmp_path / "q.npy", q)
    mapped = np.load(tmp_path / "q.npy", mmap_mode="r")
    neighbors = np.arange(120).reshape(60, 2) % 70
    for left, right in ((p, q), (p[::-1].copy()[::-1], q[:, ::-1].copy()[:, ::-1]), (np.asfortranarray(p), mapped)):
        out = alk.pairwise_kl(left, right)
        assert isinstance(out, np.ndarray) and np.array_equal(out, expected)
        top = alk.pairwise_kl(left, right, reduce="topk", k=4)
        assert isinstance(top.values, np.ndarray) and isinstance(top.indices, np.ndarray)
        assert isinstance(alk.pairwise_kl(left, right, reduce="mean"), np.ndarray)
        some = alk.pairwise_kl(left, right, neighbors=neighbors)
        np.testing.assert_allclose(some, np.take_along_axis(expected, neighbors, 1), rtol=1e-4)
    assert isinstance(alk.pairwise_kl(torch.from_numpy(p), mapped), torch.Tensor)


@pytest.mark.parametrize("mapped", [False, True])
def test_tiles_smaller_than_the_input_change_nothing(mapped, rng, monkeypatch, tmp_path):
    p, q = with_zeros(rng, 150, 9, 0.1).numpy(), with_zeros(rng, 90, 9, 0.1).numpy()
    q[40:50] = q[3]  # ties across tiles
    if mapped:
        for name, x in (("p", p), ("q", q)):
            np.save(tmp_path / f"{name}.npy", x)
        p, q = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("p", "q"))
    neighbors = torch.arange(150 * 3).view(150, 3) % 90
    calls = [
        {},
        {"neighbors": neighbors},
        *({"reduce": r} for r in ("mean", "min", "max")),
        {"reduce": "topk", "k": 25},
    ]
    whole = [alk.pairwise_kl(p, q, **options) for options in calls]
    monkeypatch.setattr(module, "_BYTES_A_TILE", 32 * 9 * 7)
    monkeypatch.setattr(module, "_ROWS_A_TILE", 1)
    monkeypatch.setattr(module, "operations_a_call", lambda device: 1)
    monkeypatch.setattr("alkernels._inputs._BYTES_A_TILE", 8 * 9 * 11)
    walked = list(module._walk(*module._sides(p, q, False), False))
    assert len(walked) > 200
    for options, expected in zip(calls, whole, strict=True):
        ours = alk.pairwise_kl(p, q, **options)
        if "k" in options:
            assert np.array_equal(ours.indices, expected.indices)
            ours, expected = ours.values, expected.values
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_for_any_number_of_threads(dtype, rng):
    p, q = random_rows(rng, 900, 30, 2.0, dtype), with_zeros(rng, 1100, 30, 0.01).to(dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append((alk.pairwise_kl(p, q), *alk.pairwise_kl(p, q, reduce="topk", k=7)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    n, m, c = (data.draw(st.integers(1, high), name) for high, name in ((50, "n"), (70, "m"), (140, "c")))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    kind = data.draw(st.sampled_from(["normal", "peaked", "flat", "zeros", "dyadic", "duplicates"]), "kind")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")

    def rows(count):
        if kind == "zeros":
            return with_zeros(rng, count, c).to(dtype)
        if kind == "dyadic":
            return dyadic(rng, count, c).to(dtype)
        x = random_rows(rng, count, c, {"peaked": 20.0, "flat": 0.03}.get(kind, 1.0), dtype)
        return x[torch.randint(max(1, count // 5), (count,), generator=rng)] if kind == "duplicates" else x

    p, q = rows(n), rows(m)
    before = p.clone(), q.clone()
    assert_divergences(alk.pairwise_kl(p, q), p, q)
    k = data.draw(st.integers(1, m), "k")
    assert_topk(alk.pairwise_kl(p, q, reduce="topk", k=k), p, q, k)
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])


def test_progress_bar(rng, capsys):
    p = random_rows(rng, 30, 4)
    alk.pairwise_kl(p, p, progress=True)
    alk.pairwise_kl(p, p, reduce="topk", k=3, progress=True)
    assert capsys.readouterr().err.count("900/900") == 2


# ---- reductions ----


def assert_topk(top, p, q, k, log_input=False):
    """Sorted, ties to the lower index, the k smallest: by the definition, up to the rounding of a sum in float64."""
    truth, _ = definition(p, q, log_input)
    truth = truth.astype(np.float64)
    values, indices = (np.asarray(x) for x in top)
    assert values.shape == indices.shape == (len(truth), k) and indices.dtype == np.int64
    of_indices = np.take_along_axis(truth, indices, 1)
    smallest = np.sort(truth, 1)[:, :k]
    rtol = 1e-6 if values.dtype == np.float32 else 1e-9
    np.testing.assert_allclose(of_indices, smallest, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(values, smallest, rtol=rtol, atol=1e-14)
    for row_values, row in zip(values.tolist(), indices.tolist(), strict=True):
        assert len(set(row)) == k
        assert row_values == sorted(row_values)
    # rows that are equal are in order, and none is missing before one that is there
    _, kind = np.unique(np.asarray(q), axis=0, return_inverse=True)
    for i, row in enumerate(indices):
        for which in np.unique(kind.ravel()[row]):
            listed = row[kind.ravel()[row] == which]
            assert listed.tolist() == np.flatnonzero(kind.ravel() == which)[: len(listed)].tolist(), (i, row)
        if np.isinf(of_indices[i]).any():
            infinite = row[np.isinf(of_indices[i])]
            assert infinite.tolist() == np.flatnonzero(np.isinf(truth[i]))[: len(infinite)].tolist()


@pytest.mark.parametrize(("n", "m", "c"), [(1, 1, 1), (5, 40, 3), (130, 257, 17), (20, 3000, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_input", [False, True])
def test_reductions_equal_the_definition(n, m, c, dtype, log_input, rng, device):
    p, q = random_rows(rng, n, c, 2.0, dtype), random_rows(rng, m, c, 2.0, dtype)
    if log_input:
        p, q = p.double().log().to(dtype), q.double().log().to(dtype)
    truth = torch.from_numpy(definition(p, q, log_input)[0].astype(np.float64))
    for reduce, expected in (("mean", truth.mean(1)), ("min", truth.amin(1)), ("max", truth.amax(1))):
        ours = alk.pairwise_kl(p.to(device), q.to(device), log_input=log_input, reduce=reduce)
        assert ours.dtype == dtype and ours.shape == (n,)
        rtol = 3e-7 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(ours.cpu().double(), expected, rtol=rtol, atol=1e-14)
    for k in {1, min(3, m), m}:
        top = alk.pairwise_kl(p.to(device), q.to(device), log_input=log_input, reduce="topk", k=k)
        assert_topk(top, p, q, k, log_input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_reductions_with_zeros(dtype, share, rng):
    p, q = with_zeros(rng, 60, 9, share).to(dtype), with_zeros(rng, 80, 9, share).to(dtype)
    truth = definition(p, q)[0].astype(np.float64)
    assert np.isinf(truth).any() and np.isfinite(truth).any()
    for reduce in ("mean", "min", "max"):
        ours = alk.pairwise_kl(p, q, reduce=reduce).double().numpy()
        np.testing.assert_allclose(ours, getattr(truth, reduce)(1), rtol=1e-6, atol=1e-14)
    for k in (1, 7, 80):
        assert_topk(alk.pairwise_kl(p, q, reduce="topk", k=k), p, q, k)


def test_largest_are_the_largest_with_ties_to_the_lower_index(rng):
    p, q = with_zeros(rng, 40, 5), with_zeros(rng, 50, 5)
    q[30:] = q[:20]
    values, indices = torch.ops.alkernels.topk_kl(p, q, 50, largest=True)
    truth = torch.from_numpy(definition(p, q)[0].astype(np.float64))
    expected = truth.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(values, expected.values, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(truth.gather(1, indices), expected.values, rtol=1e-9, atol=1e-14)
    infinite = torch.isinf(expected.values)
    assert infinite.any() and torch.equal(indices[infinite], expected.indices[infinite])


@pytest.mark.parametrize("k", [1, 5, 33, 500])
@pytest.mark.parametrize("kind", ["all equal", "duplicates", "one-hot"])
def test_ties_go_to_the_lower_index(k, kind, rng):
    p = dyadic(rng, 70, 6)
    q = {
        "all equal": torch.full((500, 6), 1 / 6),
        "duplicates": dyadic(rng, 20, 6)[torch.randint(20, (500,), generator=rng)],
        "one-hot": torch.eye(6)[torch.randint(6, (500,), generator=rng)],
    }[kind]
    top = alk.pairwise_kl(p, q, reduce="topk", k=k)
    assert_topk(top, p, q, k)
    if kind == "all equal":
        assert torch.equal(top.indices, torch.arange(k).expand(70, k))


def test_all_divergences_infinite():
    p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 9)
    top = alk.pairwise_kl(p, q, reduce="topk", k=9)
    assert top.indices.tolist() == [list(range(9))] and torch.isinf(top.values).all()
    for reduce in ("mean", "min", "max"):
        assert alk.pairwise_kl(p, q, reduce=reduce).tolist() == [torch.inf]


WARM = "alk.pairwise_kl(torch.full((300, 2), 0.5), torch.full((300, 2), 0.5), reduce='topk', k=2)\n"


@pytest.mark.parametrize("reduce", ["reduce='topk', k=10", "reduce='mean'", "reduce='max'"])
def test_memory_of_reductions(reduce):
    out = run_python(
        MEASURE
        + WARM
        + "p = torch.randn(20_000, 100).softmax(1); q = torch.randn(20_000, 100).softmax(1)\n"
        + f"print(extra(lambda: alk.pairwise_kl(p, q, {reduce})))"
    )
    assert int(out) <= 150e6 < 20_000 * 20_000 * 4


def test_memory_of_ties():
    """Every row of q is equal: all may be among the k smallest until the last has been seen."""
    out = run_python(
        MEASURE
        + WARM
        + "p = torch.rand(256, 2) + 0.1; p /= p.sum(1, keepdim=True); q = torch.full((90_000, 2), 0.5)\n"
        + "print(extra(lambda: alk.pairwise_kl(p, q, reduce='topk', k=3)))"
    )
    assert int(out) <= 150e6


# ---- pairs by lists of neighbours ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "numpy", "list"])
def test_gathered_pairs_are_those_of_all_pairs(dtype, kind, rng, device):
    p, q = dyadic(rng, 30, 7).to(device, dtype), dyadic(rng, 40, 7).to(device, dtype)
    truth = definition(p, q)[0].astype(np.float64)
    into_q = torch.randint(40, (30, 6), generator=rng)
    into_p = torch.randint(30, (40, 5), generator=rng)
    into_q[:, 3] = into_q[:, 0]  # repeated
    convert = {
        "int64": lambda t: t.to(device),
        "int32": lambda t: t.int(),
        "uint8": lambda t: t.to(torch.uint8),
        "numpy": lambda t: t.numpy(),
        "list": lambda t: t.tolist(),
    }[kind]
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 3e-7, "atol": 1e-14}
    ours = alk.pairwise_kl(p, q, neighbors=convert(into_q))
    assert ours.shape == (30, 6) and ours.dtype == torch.promote_types(dtype, torch.float32)
    np.testing.assert_allclose(ours.cpu().double().numpy(), np.take_along_axis(truth, into_q.numpy(), 1), **tolerance)
    ours = alk.pairwise_kl(p, q, neighbors=convert(into_p), gather="p")
    assert ours.shape == (40, 5)
    np.testing.assert_allclose(ours.cpu().double().numpy(), np.take_along_axis(truth.T, into_p.numpy(), 1), **tolerance)


def test_direction_of_contrastive_active_learning():
    """KL(p(labelled neighbour) || p(candidate)): one labelled neighbour each, by hand; the other direction differs."""
    labeled = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    candidates = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    nearest = torch.tensor([[0], [1], [1]])
    ours = alk.pairwise_kl(labeled, candidates, neighbors=nearest, gather="p")
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    last = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    torch.testing.assert_close(ours, torch.tensor([[first], [0.0], [last]], dtype=torch.float64), rtol=1e-14, atol=0)
    other = alk.pairwise_kl(candidates, labeled, neighbors=nearest)
    assert other[0, 0] == pytest.approx(0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5), rel=1e-14)
    assert abs(float(other[0, 0] - ours[0, 0])) > 0.01


@pytest.mark.parametrize("gather", ["q", "p"])
def test_no_neighbours(gather):
    p, q = torch.full((3, 2), 0.5), torch.full((4, 2), 0.5)
    n = 3 if gather == "q" else 4
    out = alk.pairwise_kl(p, q, neighbors=np.empty((n, 0), dtype=np.int64), gather=gather)
    assert out.shape == (n, 0) and out.dtype == torch.float32
    p.requires_grad_()
    alk.pairwise_kl(p, q, neighbors=torch.empty(n, 0, dtype=torch.int64), gather=gather).sum().backward()
    assert (p.grad == 0).all()


# ---- gradients ----


def bare(p, q, neighbors, gather, log_input):
    """The definition in plain torch, for positive probabilities."""
    log_p, log_q = (p, q) if log_input else (p.log(), q.log())
    p = p.exp() if log_input else p
    if neighbors is None:
        return (p[:, None] * (log_p[:, None] - log_q)).sum(2)
    if gather == "q":
        return (p[:, None] * (log_p[:, None] - log_q[neighbors])).sum(2)
    return (p[neighbors] * (log_p[neighbors] - log_q[:, None])).sum(2)


FORMS = {"full": (None, "q"), "into q": ([[1, 1], [0, 3], [2, 2]], "q"), "into p": ([[0], [2], [2], [1]], "p")}


def leaves(rng, log_input, dtype=torch.float64, n=3, m=4, c=3):
    p, q = random_rows(rng, n, c, 1.0, torch.float64), random_rows(rng, m, c, 1.0, torch.float64)
    return tuple((x.log() if log_input else x).to(dtype).requires_grad_() for x in (p, q))


def form_of(form):
    neighbors, gather = FORMS[form]
    return None if neighbors is None else torch.tensor(neighbors), gather


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_input", [False, True])
def test_gradients(form, log_input, rng):
    neighbors, gather = form_of(form)
    p, q = leaves(rng, log_input)

    def ours(p, q):
        return alk.pairwise_kl(p, q, neighbors=neighbors, gather=gather, log_input=log_input)

    assert torch.autograd.gradcheck(ours, (p, q))
    assert torch.autograd.gradgradcheck(ours, (p, q))
    for only in ((p, q.detach()), (p.detach(), q)):
        assert torch.autograd.gradcheck(ours, only)
    weights = torch.randn(ours(p, q).shape, generator=rng, dtype=torch.float64)
    mine = torch.autograd.grad((ours(p, q) * weights).sum(), (p, q))
    plain = torch.autograd.grad((bare(p, q, neighbors, gather, log_input) * weights).sum(), (p, q))
    torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-14)


def bounded(rng, n, c, dtype):
    """Distributions that half precision holds exactly enough: multiples of 1/64, none of them zero."""
    return ((dyadic(rng, n, c, 64 - c) * (64 - c) + 1) / 64).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_input", [False, True])
@pytest.mark.parametrize(
    ("left", "right"), list(itertools.product([torch.float16, torch.float32, torch.float64], repeat=2))
)
def test_gradients_in_each_dtype(form, log_input, left, right, rng):
    """Those of float64, up to one rounding to the dtype of the argument."""
    neighbors, gather = form_of(form)
    p, q = bounded(rng, 3, 3, left), bounded(rng, 4, 3, right)
    if log_input:
        p, q = p.log(), q.log()
    p, q = p.requires_grad_(), q.requires_grad_()
    wide = [x.detach().double().requires_grad_() for x in (p, q)]
    alk.pairwise_kl(p, q, neighbors=neighbors, gather=gather, log_input=log_input).sum().backward()
    bare(*wide, neighbors, gather, log_input).sum().backward()
    for x, y in zip((p, q), wide, strict=True):
        assert x.grad.dtype == x.dtype
        eps = max(torch.finfo(x.dtype).eps, 1e-14)
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=4 * eps, atol=16 * eps)


def test_gradients_of_many_pairs_in_half_precision():
    """A sum over 70 000 rows is more than float16 holds; the gradient is not."""
    p = torch.tensor([[0.25, 0.75]], dtype=torch.float16, requires_grad=True)
    q = torch.tensor([[0.75, 0.25]] * 70_000, dtype=torch.float16)
    alk.pairwise_kl(p, q).mean().backward()
    expected = torch.tensor([[np.log(1 / 3) + 1, np.log(3) + 1]])
    torch.testing.assert_close(p.grad.float(), expected.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("form", ["full", "into q", "into p"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-50.0, -120.0, -700.0, -800.0])
def test_gradients_of_logarithms_too_low_for_their_probabilities(low, dtype, form):
    p = torch.tensor([[np.log(0.5), np.log(0.5)]], dtype=dtype, requires_grad=True)
    q = torch.tensor([[0.0, low]], dtype=dtype, requires_grad=True)
    neighbors = None if form == "full" else torch.tensor([[0]])
    alk.pairwise_kl(
        p, q, log_input=True, neighbors=neighbors, gather=form[-1] if neighbors is not None else "q"
    ).backward()
    log2 = np.log(2)
    expected = torch.tensor([[0.5 * (1 - log2), 0.5 * (1 - log2 - low)]], dtype=dtype)
    torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(q.grad, torch.full((1, 2), -0.5, dtype=dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", ["full", "into q", "into p"])
@pytest.mark.parametrize("log_input", [False, True])
def test_gradients_with_zeros_are_finite_where_the_divergence_is(form, log_input):
    p = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.5, 0.25]], dtype=torch.float64)
    finite = torch.tensor([[True, True], [False, True]])
    if log_input:
        p, q = p.log(), q.log()
    p, q = p.requires_grad_(), q.requires_grad_()
    neighbors = None if form == "full" else torch.tensor([[0, 1], [0, 1]])
    out = alk.pairwise_kl(p, q, log_input=log_input, neighbors=neighbors, gather=form[-1] if form != "full" else "q")
    if form == "into p":
        finite = finite.t()
    assert torch.equal(torch.isfinite(out), finite)
    first = torch.autograd.grad(out[finite].sum(), (p, q), create_graph=True)
    assert all(torch.isfinite(g).all() for g in first)
    log2 = np.log(2)
    if log_input:
        slope_p = [0.5 * (log2 + 1 + 1), 0.5 * (np.log(2 / 3) + 1 + 1), 0.0]
    else:
        slope_p = [log2 + 1 + log2 + 1, np.log(0.5 / 0.75) + 1 + 1, 0.0]
    if not log_input:
        torch.testing.assert_close(first[0][0].detach(), torch.tensor(slope_p, dtype=torch.float64), rtol=1e-12, atol=0)
        expected = torch.tensor([-2.0, -2 / 3, 0.0], dtype=torch.float64)
        torch.testing.assert_close(first[1][0].detach(), expected, rtol=1e-12, atol=0)
    assert first[0][0, 2] == 0  # a class with p = 0 has no share
    second = torch.autograd.grad(sum((g * g).sum() for g in first), (p, q))
    assert all(torch.isfinite(g).all() for g in second)


def test_gradient_of_one_side_only(rng):
    p, q = leaves(rng, False, torch.float32)
    out = alk.pairwise_kl(p, q.detach())
    out.sum().backward()
    assert out.requires_grad and p.grad is not None and q.grad is None
    p.grad = None
    alk.pairwise_kl(p.detach(), q).sum().backward()
    assert p.grad is None and q.grad is not None


def test_no_gradients_without_autograd_or_of_reductions(rng):
    p, q = leaves(rng, False, torch.float32)
    assert alk.pairwise_kl(p, q).requires_grad
    with torch.no_grad():
        assert not alk.pairwise_kl(p, q).requires_grad
        assert not alk.pairwise_kl(p, q, neighbors=[[0], [1], [2]]).requires_grad
    for reduce in ("mean", "min", "max"):
        assert not alk.pairwise_kl(p, q, reduce=reduce).requires_grad
    assert not alk.pairwise_kl(p, q, reduce="topk", k=2).values.requires_grad


@pytest.mark.parametrize("reduce", ["mean", "min", "max", "topk"])
def test_compiled_reductions_claim_no_gradients(reduce, rng):
    p, q = leaves(rng, False, torch.float32)
    k = 2 if reduce == "topk" else None
    torch._dynamo.reset()
    function = lambda p, q: alk.pairwise_kl(p, q, reduce=reduce, k=k)  # noqa: E731
    out = torch.compile(function, fullgraph=True, backend="aot_eager")(p, q)
    values = out.values if reduce == "topk" else out
    assert not values.requires_grad


def test_a_learned_tensor_beside_an_array(rng):
    p, q = leaves(rng, False, torch.float32)
    array = q.detach().numpy()
    for options in ({}, {"neighbors": [[0], [1], [2]]}):
        out = alk.pairwise_kl(p, array, **options)
        torch.testing.assert_close(out, alk.pairwise_kl(p, q.detach(), **options))
        assert out.requires_grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_input", [False, True])
def test_compile(form, log_input, rng):
    neighbors, gather = form_of(form)
    p, q = leaves(rng, log_input, torch.float32)

    def run(p, q):
        return alk.pairwise_kl(p, q, neighbors=neighbors, gather=gather, log_input=log_input) * 2

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True)
    ours, eager = compiled(p, q), run(p, q)
    assert ours.requires_grad
    torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-7)
    weights = torch.randn(ours.shape, generator=rng)
    mine = torch.autograd.grad((ours * weights).sum(), (p, q))
    theirs = torch.autograd.grad((eager * weights).sum(), (p, q))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_compile_of_reductions(rng):
    p, q = random_rows(rng, 40, 5), random_rows(rng, 50, 5)
    for options in ({"reduce": "mean"}, {"reduce": "min"}, {"reduce": "max"}, {"reduce": "topk", "k": 3}):
        torch._dynamo.reset()
        function = lambda p, q, o=options: alk.pairwise_kl(p, q, **o)  # noqa: E731
        ours, eager = torch.compile(function, fullgraph=True)(p, q), function(p, q)
        assert type(ours) is type(eager)
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, eager)), strict=True):
            assert torch.equal(a, b)


# ---- bad input ----


def bad():
    p, q = torch.full((3, 2), 0.5), torch.full((4, 2), 0.5)
    wrong = torch.tensor([[0.5, 0.5], [0.5, 0.7], [1.0, 0.0]])
    return {
        "sum": ((wrong, q), {}, ValueError, "p must hold probabilities that sum to 1 within 0.001, got 1.2 in row 1"),
        "sum of q": ((p, wrong), {}, ValueError, "q must hold probabilities that sum to 1 .*got 1.2 in row 1"),
        "sum of logarithms": (
            (p.log(), wrong.log()),
            {"log_input": True},
            ValueError,
            "q must hold logarithms of probabilities that sum to 1 .*got 1.2 in row 1",
        ),
        "logarithms for probabilities": (
            (p.log(), q),
            {},
            ValueError,
            "p must hold probabilities, got -0.693147 in row 0",
        ),
        "negative": (
            (p, torch.tensor([[1.5, -0.5]])),
            {},
            ValueError,
            "q must hold probabilities, got -0.5 in row 0",
        ),
        "NaN": ((p, torch.tensor([[1.0, torch.nan]])), {}, ValueError, "q must hold probabilities, got nan in row 0"),
        "NaN logarithm": (
            (torch.tensor([[0.0, torch.nan]]), q),
            {"log_input": True},
            ValueError,
            "p must hold logarithms of probabilities, got nan in row 0",
        ),
        "infinity": (
            (torch.tensor([[0.5, torch.inf]]), q),
            {},
            ValueError,
            "p must hold probabilities, got inf in row 0",
        ),
        "classes": ((p, torch.full((3, 4), 0.25)), {}, ValueError, "q must have as many classes as p, got 4 and 2"),
        "one dimension": ((p[0], q), {}, ValueError, "p must be two-dimensional"),
        "three dimensions": ((p, q[None]), {}, ValueError, "q must be two-dimensional"),
        "no classes": ((p[:, :0], q[:, :0]), {}, ValueError, "p must have at least one column"),
        "integers": ((p.int(), q), {}, TypeError, "p must be of dtype .*got torch.int32"),
        "list": ((p, [[0.5], [0.5], [1.0]]), {}, TypeError, "q must be a torch.Tensor or a numpy.ndarray"),
        "pair": (((p, p), q), {}, TypeError, "p must be one array, got a pair"),
        "device": ((p.to("meta"), q), {}, ValueError, "p is on meta|q must be on the device of p"),
        "reduce": ((p, q), {"reduce": "sum"}, ValueError, "reduce must be one of 'mean', 'min', 'max', 'topk' or None"),
        "k alone": ((p, q), {"k": 2}, ValueError, "k must be given with reduce='topk', and only then, got k=2"),
        "k with mean": ((p, q), {"k": 2, "reduce": "mean"}, ValueError, "k must be given with reduce='topk'"),
        "topk without k": ((p, q), {"reduce": "topk"}, ValueError, "k must be given with reduce='topk'.*got k=None"),
        "k 0": ((p, q), {"reduce": "topk", "k": 0}, ValueError, r"k must be between 1 and 4 \(rows of q\), got 0"),
        "k above M": ((p, q), {"reduce": "topk", "k": 5}, ValueError, "k must be between 1 and 4 .*got 5"),
        "k not whole": ((p, q), {"reduce": "topk", "k": 2.0}, TypeError, "k must be an integer, got float"),
        "gather": ((p, q), {"gather": "both"}, ValueError, "gather must be 'q' or 'p', got 'both'"),
        "reduced neighbours": (
            (p, q),
            {"neighbors": [[0]] * 3, "reduce": "mean"},
            ValueError,
            "reduce must not be given together with neighbors, got 'mean'",
        ),
        "neighbour too high": (
            (p, q),
            {"neighbors": [[0], [4], [1]]},
            ValueError,
            "neighbors must be rows of q, between 0 and 3, got 4 in row 1",
        ),
        "neighbour too high in p": (
            (p, q),
            {"neighbors": [[0], [2], [1], [3]], "gather": "p"},
            ValueError,
            "neighbors must be rows of p, between 0 and 2, got 3 in row 3",
        ),
        "neighbour negative": ((p, q), {"neighbors": [[0], [1], [-1]]}, ValueError, "rows of q.*got -1 in row 2"),
        "neighbours float": ((p, q), {"neighbors": [[0.0]] * 3}, TypeError, "neighbors must hold row numbers.*float"),
        "neighbours bool": ((p, q), {"neighbors": [[True]] * 3}, TypeError, "neighbors must hold row numbers.*bool"),
        "neighbours of the other side": (
            (p, q),
            {"neighbors": [[0]] * 4},
            ValueError,
            r"neighbors must have a row for each row of p, shape \(3, n\), got \(4, 1\)",
        ),
        "neighbours in a vector": ((p, q), {"neighbors": [0, 1, 2]}, ValueError, r"row for each row of p.*got \(3,\)"),
    }


@pytest.mark.parametrize("case", bad())
def test_bad_input(case):
    args, options, error, message = bad()[case]
    with pytest.raises(error, match=message):
        alk.pairwise_kl(*args, **options)
    first = args[0]
    if case != "device" and all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in args):
        with pytest.raises(error, match=message):  # and on the way to autograd
            alk.pairwise_kl(first.requires_grad_(), args[1], **options)


def test_ops_check_for_themselves():
    p, q = torch.full((3, 2), 0.5), torch.full((4, 2), 0.5)
    ops = torch.ops.alkernels
    for out, message in (
        (torch.empty(4, 3), r"out must be \[rows of p, rows of q\]"),
        (torch.empty(4, 3).t(), r"out must be \[rows of p, rows of q\] with rows in one piece"),
        (torch.empty(3, 4).half(), "out must be float32 or float64, got Half"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.divergences(p, q, False, out)
    with pytest.raises(RuntimeError, match="q must be as wide as rows, got 1 and 2"):
        ops.divergences(p, q[:, :1], False, torch.empty(3, 4))
    values, indices = torch.full((3, 2), torch.inf, dtype=torch.float64), torch.full((3, 2), -1)
    with pytest.raises(RuntimeError):
        ops.nearest_divergences(p, q, False, False, 0, values.float(), indices)
    with pytest.raises(RuntimeError):
        ops.nearest_divergences(p, q, False, False, 0, values[:2], indices[:2])
    ops.nearest_divergences(p, q, False, False, 5, values, indices)
    assert indices.tolist() == [[5, 6]] * 3 and (values == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-120.0, -800.0, -1e9, -3e38])
def test_logarithms_whose_probabilities_underflow_are_no_zeros(low, dtype, rng):
    """Masked classes, some rows and some classes: finite where the logarithm is, in every form."""
    p, q = torch.randn(30, 6, generator=rng).double(), torch.randn(60, 6, generator=rng).double()
    q[7, 2], q[9, 2], q[11, 0], q[12] = low, low / 2, low, torch.tensor([0.0] + [low] * 5)
    p[3, 4] = low
    p, q = p.log_softmax(1).to(dtype), q.log_softmax(1).to(dtype)
    wide_p, wide_q = p.double(), q.double()
    truth = (wide_p.exp()[:, None] * (wide_p[:, None] - wide_q)).sum(-1)
    every = torch.arange(60).expand(30, 60)
    assert torch.allclose(alk.pairwise_kl(p, q, log_input=True).double(), truth, rtol=1e-4)
    assert torch.allclose(alk.pairwise_kl(p, q, log_input=True, neighbors=every).double(), truth, rtol=1e-6)
    assert torch.allclose(alk.pairwise_kl(p, q, log_input=True, reduce="mean").double(), truth.mean(1), rtol=1e-6)
    assert torch.allclose(alk.pairwise_kl(p, q, log_input=True, reduce="max").double(), truth.max(1).values, rtol=1e-6)
    top = alk.pairwise_kl(p, q, log_input=True, reduce="topk", k=60)
    assert torch.allclose(top.values.double(), truth.sort(1).values, rtol=1e-6)


def test_what_underflows_is_allowed_in_every_form():
    p, q = torch.tensor([[0.0, -800.0]]).double(), torch.tensor([[0.0, -torch.inf]]).double()
    assert alk.pairwise_kl(p, q, log_input=True).item() == torch.inf
    assert alk.pairwise_kl(p, q, log_input=True, neighbors=[[0]]).item() == torch.inf
    for reduce in ("mean", "min", "max"):
        assert alk.pairwise_kl(p, q, log_input=True, reduce=reduce).item() == torch.inf


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8, torch.int64])
def test_gradients_with_neighbors_of_any_integer_type(dtype, rng):
    p = torch.rand(5, 3, generator=rng).softmax(1).requires_grad_()
    q = torch.rand(4, 3, generator=rng).softmax(1)
    pairs = torch.tensor([[0, 1], [1, 0], [2, 3], [3, 0], [0, 0]])
    alk.pairwise_kl(p, q, neighbors=pairs.to(dtype)).sum().backward()
    (wanted,) = torch.autograd.grad(alk.pairwise_kl(p, q).gather(1, pairs).sum(), p)
    assert torch.allclose(p.grad, wanted, rtol=1e-5)
    alk.pairwise_kl(p, q.numpy()[::-1], neighbors=pairs.tolist())  # NumPy of any stride beside it, lists


def test_gather_without_neighbors_is_refused():
    with pytest.raises(ValueError, match="gather must be given with neighbors only, got 'p'"):
        alk.pairwise_kl(torch.ones(1, 1), torch.ones(1, 1), gather="p")
