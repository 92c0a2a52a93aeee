"""Nearest neighbours against differences in float64."""

import itertools

import numpy as np
import pytest
import torch
from conftest import as_double
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import MEASURE, run_python

import alkernels as alk
from alkernels.ops import knn as module

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
METRICS = ["euclidean", "cosine"]


def integers(rng, *shape, high=8):
    return torch.randint(-high, high + 1, shape, generator=rng).float()


def definition(queries, points, metric="euclidean"):
    """All distances [N, M] in float64, from differences of rows scaled so that no square overflows."""
    x, y = as_double(queries), as_double(points)
    if metric == "cosine":
        zero = (x == 0).all(1)[:, None] | (y == 0).all(1)
        x, y = (r / r.abs().amax(1, keepdim=True).clamp(min=5e-324) for r in (x, y))
        x, y = (r / r.norm(dim=1, keepdim=True).clamp(min=1e-300) for r in (x, y))
        return torch.where(zero, 1.0, ((x[:, None] - y) ** 2).sum(2) / 2)
    scale = max([float(r.abs().max()) for r in (x, y) if r.numel()], default=1.0) or 1.0
    scale = 2.0 ** np.floor(np.log2(scale))
    return (
        torch.stack([(((row - y) / scale) ** 2).sum(1).sqrt() * scale for row in x])
        if len(x)
        else x.new_empty(0, len(y))
    )


def assert_neighbors(out, queries, points, k, metric="euclidean", atol=None):
    """Each distance is that of its index and the true one of its rank; equal rows in order, none of them left out."""
    truth = definition(queries, points, metric)
    distances, indices = (torch.as_tensor(o).cpu() for o in out)
    assert distances.shape == indices.shape == (len(truth), k)
    assert distances.dtype == torch.float64 and indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < truth.shape[1])).all()
    # cosines come of rows scaled to length one, which rounds
    atol = (1e-15 if metric == "cosine" else 0.0) if atol is None else atol
    torch.testing.assert_close(distances, truth.sort(1).values[:, :k], rtol=1e-9, atol=atol)
    torch.testing.assert_close(truth.gather(1, indices), distances, rtol=1e-9, atol=atol)
    assert (distances.diff(dim=1) >= 0).all()
    _, kind = as_double(points).unique(dim=0, return_inverse=True)
    for row in indices:
        assert len(row.unique()) == k
        for which in kind[row].unique():
            listed = row[kind[row] == which]
            assert torch.equal(listed, (kind == which).nonzero().flatten()[: len(listed)])


SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 1, 5),
    (13, 17, 2, 4),
    (65, 129, 7, 20),
    (100, 33, 33, 33),
    (300, 900, 3, 50),
    (7, 40, 1000, 9),
]


@pytest.mark.parametrize(("n", "m", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_a_stable_sort_on_integers(n, m, d, k, dtype, rng, device):
    """Many ties, each to the lower index, and every distance to the last bit."""
    queries, points = integers(rng, n, d, high=2), integers(rng, m, d, high=2)
    out = alk.knn(queries.to(device, dtype), points.to(device, dtype), k)
    squared = ((queries[:, None] - points).double() ** 2).sum(2)
    expected = squared.sort(dim=1, stable=True)
    assert torch.equal(out.indices.cpu(), expected.indices[:, :k])
    assert torch.equal(out.distances.cpu(), expected.values[:, :k].sqrt())


@pytest.mark.parametrize(("n", "m", "d", "k"), SHAPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_values(n, m, d, k, metric, dtype, rng, device):
    queries = torch.randn(n, d, generator=rng, dtype=torch.float64).to(dtype)
    points = torch.randn(m, d, generator=rng, dtype=torch.float64).to(dtype)
    out = alk.knn(queries.to(device), points.to(device), k, metric=metric)
    assert_neighbors(out, queries, points, k, metric)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_real_values_of_many_points(metric, rng):
    queries, points = torch.randn(300, 20, generator=rng), torch.randn(40_000, 20, generator=rng)
    assert_neighbors(alk.knn(queries, points, 100, metric=metric), queries, points, 100, metric)


@pytest.mark.parametrize(("left", "right"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("metric", METRICS)
def test_mixed_dtypes(left, right, metric, rng):
    queries, points = torch.randn(40, 9, generator=rng).to(left), torch.randn(60, 9, generator=rng).to(right)
    assert_neighbors(alk.knn(queries, points, 11, metric=metric), queries, points, 11, metric)


def one_huge_row(rng, n, place, value):
    x = torch.randn(n, 5, generator=rng)
    x[place] = value
    return x


HARD = {
    "far from the origin": lambda g, n: 1e6 + 1e-2 * torch.randn(n, 5, generator=g, dtype=torch.float64),
    "far from the origin in float32": lambda g, n: 1e4 + 1e-1 * torch.randn(n, 5, generator=g),
    "queries' own cluster": lambda g, n: 1e-6 * torch.randn(n, 5, generator=g) + (1e3 if n == 60 else 0),
    "clusters": lambda g, n: 1e4 * integers(g, 9, 5)[torch.arange(n) % 9] + 1e-3 * torch.randn(n, 5, generator=g),
    "norms of 1e20": lambda g, n: 1e20 * torch.randn(n, 5, generator=g),
    "norms of 1e15": lambda g, n: 9.9e14 * torch.nn.functional.normalize(torch.randn(n, 5, generator=g)),
    "norms of 1e36": lambda g, n: 1e36 * torch.randn(n, 5, generator=g),
    "norms of 1e150": lambda g, n: 1e150 * torch.randn(n, 5, generator=g, dtype=torch.float64),
    "norms of 1e-25": lambda g, n: 1e-25 * torch.randn(n, 5, generator=g),
    "subnormal": lambda g, n: 1e-40 * torch.randn(n, 5, generator=g),
    "one huge row": lambda g, n: one_huge_row(g, n, n // 2, 1e9),
    "one huge row in front": lambda g, n: one_huge_row(g, n, 0, 1e18),
    "heavy tails": lambda g, n: torch.randn(n, 5, generator=g) * torch.randn(n, 1, generator=g).exp() ** 3,
    "constant columns": lambda g, n: torch.cat([torch.randn(n, 2, generator=g), torch.full((n, 30), 7.7)], 1),
    "zeros among them": lambda g, n: torch.randn(n, 5, generator=g) * (torch.arange(n) % 3 > 0)[:, None],
    "all zeros": lambda g, n: torch.zeros(n, 5),
    "nearly tied": lambda g, n: torch.ones(n, 5) + 2.0**-22 * integers(g, n, 5),
    "duplicates": lambda g, n: torch.randn(7, 5, generator=g)[torch.randint(7, (n,), generator=g)],
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 10, 150])
def test_hard_data(name, metric, k, rng, device):
    points = HARD[name](torch.Generator().manual_seed(5), 150)
    queries = HARD[name](torch.Generator().manual_seed(6), 60)
    out = alk.knn(queries.to(device), points.to(device), k, metric=metric)
    assert_neighbors(out, queries, points, k, metric)
    own = alk.knn(points.to(device), points.to(device), 1, metric=metric)
    zero = (points == 0).all(1) & (metric == "cosine")
    assert (own.distances[~zero] == 0).all() and (own.distances[zero] == 1).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e160, 1e200, 1e307])
def test_squares_that_overflow_float64(metric, size, rng):
    """Either neighbours that are rows of points, nearest first, or an error that says why not."""
    points = size * torch.randn(30, 3, generator=rng, dtype=torch.float64)
    try:
        out = alk.knn(points, points, 4, metric=metric)
    except ValueError as error:
        assert "float64" in str(error)
        return
    assert ((out.indices >= 0) & (out.indices < 30)).all()
    assert torch.equal(out.indices[:, 0], torch.arange(30))


@pytest.mark.parametrize("size", [1e-170, 1e-300])
def test_cosines_of_rows_whose_squares_underflow(size, rng):
    points = size * integers(rng, 30, 3).double()
    out = alk.knn(points, points, 5, metric="cosine")
    assert_neighbors(out, points, points, 5, "cosine", atol=1e-13)


def test_zero_rows_under_cosine():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    out = alk.knn(points[:2], points, 4, metric="cosine")
    assert out.indices.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]
    assert out.distances.tolist() == [[1.0] * 4, [0.0, 1.0, 1.0, 2.0]]


@pytest.mark.parametrize("k", [1, 7, 500])
def test_all_tied(k):
    points = torch.full((500, 3), 2.5)
    out = alk.knn(torch.zeros(70, 3), points, k)
    assert torch.equal(out.indices, torch.arange(k).expand(70, k))
    assert (out.distances == np.sqrt(3 * 2.5**2)).all()


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 4), (3, 0), (3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_asked_or_nobody_asking(n, m, dtype):
    out = alk.knn(torch.zeros(n, 2, dtype=dtype), torch.zeros(m, 2, dtype=dtype), 0)
    assert out.distances.shape == out.indices.shape == (n, 0)
    assert out.distances.dtype == torch.float64 and out.indices.dtype == torch.int64
    if m and not n:
        assert alk.knn(torch.zeros(n, 2), torch.zeros(m, 2), 3).indices.shape == (0, 3)


@pytest.mark.parametrize("layout", ["transposed", "every third column", "reversed by flip", "expanded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_agree(layout, dtype, rng):
    x = integers(rng, 90, 11).to(dtype)
    if layout == "transposed":
        y = x.t().contiguous().t()
    elif layout == "every third column":
        y = x.repeat_interleave(3, dim=1)[:, 1::3]
    elif layout == "expanded":
        x = x[:, :1].expand(90, 11)
        y = x
    else:
        x, y = x.flip(0).contiguous(), x.flip(0)
    expected, ours = alk.knn(x.contiguous(), x.contiguous(), 20), alk.knn(y, y, 20)
    assert torch.equal(ours.indices, expected.indices) and torch.equal(ours.distances, expected.distances)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["C", "F", "reversed", "read-only", "other byte order"])
def test_numpy(dtype, layout, rng):
    x, points = integers(rng, 50, 6).numpy().astype(dtype), integers(rng, 80, 6).numpy().astype(dtype)
    expected = alk.knn(torch.from_numpy(x), torch.from_numpy(points), 9)
    if layout == "F":
        x, points = np.asfortranarray(x), np.asfortranarray(points)
    elif layout == "reversed":
        x, points = x[::-1].copy()[::-1], points[:, ::-1].copy()[:, ::-1]
    elif layout == "read-only":
        x.flags.writeable = points.flags.writeable = False
    elif layout == "other byte order":
        x, points = x.astype(x.dtype.newbyteorder()), points.astype(points.dtype.newbyteorder())
    out = alk.knn(x, points, 9)
    assert isinstance(out, tuple) and all(isinstance(o, np.ndarray) for o in out)
    assert np.array_equal(out.indices, expected.indices) and np.array_equal(out.distances, expected.distances)
    mixed = alk.knn(torch.from_numpy(np.ascontiguousarray(x, dtype)), points, 9)
    assert isinstance(mixed.indices, torch.Tensor) and torch.equal(mixed.indices, expected.indices)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memmap_in_tiles(mode, rng, tmp_path, monkeypatch):
    queries, points = integers(rng, 200, 6, high=2), integers(rng, 300, 6, high=2)
    for name, x in (("queries", queries), ("points", points)):
        np.save(tmp_path / f"{name}.npy", x.numpy())
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in ("queries", "points")]
    expected = alk.knn(queries, points, 40)
    monkeypatch.setattr(module, "_BYTES_A_TILE", 16 * 6 * 13)
    for out in (alk.knn(*mapped, 40), alk.knn(queries, mapped[1], 40), alk.knn(mapped[0], points, 40)):
        assert np.array_equal(out.indices, expected.indices) and np.array_equal(out.distances, expected.distances)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("data", ["real", "ties", "one huge row"])
def test_tiles_smaller_than_the_input_change_nothing(metric, data, rng, monkeypatch, capsys):
    x = {"real": torch.randn(400, 6, generator=rng), "ties": integers(rng, 400, 6, high=1)}.get(data)
    x = one_huge_row(rng, 400, 200, 1e12) if x is None else x
    queries, points = x[:150], x[100:]
    whole = alk.knn(queries, points, 30, metric=metric)
    monkeypatch.setattr(module, "_BYTES_A_TILE", 16 * 6 * 17)
    monkeypatch.setattr(module, "operations_a_call", lambda device: 1)
    tiled = alk.knn(queries, points, 30, metric=metric, progress=True)
    assert torch.equal(tiled.indices, whole.indices) and torch.equal(tiled.distances, whole.distances)
    assert "45.0k/45.0k" in capsys.readouterr().err
    assert_neighbors(tiled, queries, points, 30, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_for_any_number_of_threads(metric, rng):
    queries, points = torch.randn(2000, 24, generator=rng), torch.randn(3000, 24, generator=rng)
    points[1000:1200] = points[:200]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(alk.knn(queries, points, 12, metric=metric))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    n, m, d = (data.draw(st.integers(1, high), name) for high, name in ((40, "n"), (90, "m"), (70, "d")))
    k = data.draw(st.integers(0, m), "k")
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    kind = data.draw(
        st.sampled_from(["normal", "integers", "duplicates", "constant", "huge row", "far", "tiny"]), "kind"
    )
    metric = data.draw(st.sampled_from(METRICS), "metric")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    x = torch.randn(n + m, d, generator=rng, dtype=torch.float64)
    if kind == "integers":
        x = integers(rng, n + m, d, high=2)
    elif kind == "duplicates":
        x = x[torch.randint(max(1, m // 5), (n + m,), generator=rng)]
    elif kind == "constant":
        x[:, :: data.draw(st.integers(1, 3))] = 5.3
    elif kind == "huge row":
        x[data.draw(st.integers(0, n + m - 1))] *= 1e12
    elif kind == "far":
        x += 1e4
    elif kind == "tiny":
        x *= 1e-30
    x = x.to(dtype)
    before = x.clone()
    out = alk.knn(x[:n], x[n:], k, metric=metric)
    assert torch.equal(x, before)
    assert_neighbors(out, x[:n], x[n:], k, metric)


def test_progress_bar(rng, capsys):
    x = torch.randn(100, 3, generator=rng)
    alk.knn(x, x, 5, progress=True)
    assert "10.0k/10.0k" in capsys.readouterr().err
    alk.knn(x, x, 5)
    assert capsys.readouterr().err == ""


def test_gradients_are_not_asked_for(rng):
    x = torch.randn(30, 3, generator=rng, requires_grad=True)
    assert not alk.knn(x, x, 5).distances.requires_grad
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: alk.knn(x, x, 5).distances, fullgraph=True, backend="aot_eager")
    assert not compiled(x).requires_grad


def test_compile(rng):
    x = torch.randn(60, 4, generator=rng)
    for metric in METRICS:
        torch._dynamo.reset()
        function = lambda x, m=metric: alk.knn(x, x[:40], 5, metric=m)  # noqa: E731
        ours, eager = torch.compile(function, fullgraph=True)(x), function(x)
        assert type(ours) is type(eager)
        assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


WARM = "alk.knn(torch.randn(600, 4), torch.randn(600, 4), 2)\n"


@pytest.mark.parametrize(("n", "m", "d", "k"), [(20_000, 20_000, 16, 10), (300, 400_000, 4, 5), (300, 9000, 2000, 5)])
def test_memory_beyond_input_and_result(n, m, d, k):
    out = run_python(
        MEASURE
        + WARM
        + f"x, y = torch.randn({n}, {d}), torch.randn({m}, {d})\n"
        + f"print(extra(lambda: alk.knn(x, y, {k})))"
    )
    assert int(out) <= 80e6 + 16 * n * k


@pytest.mark.parametrize(
    "points", ["torch.ones(60_000, 4)", "torch.cat([torch.randn(60_000, 4), torch.full((1, 4), 1e9)])"]
)
def test_memory_where_the_screen_lets_all_through(points):
    """All points tied, or one so far away that float32 tells no others apart."""
    out = run_python(
        MEASURE + WARM + f"x, y = torch.randn(512, 4), {points}\n" + "print(extra(lambda: alk.knn(x, y, 5)))"
    )
    assert int(out) <= 80e6 + 16 * 512 * 5


# ---- bad input ----


def bad():
    x, y = torch.ones(5, 3), torch.ones(7, 3)
    nan, infinite = y.clone(), x.clone()
    nan[4, 1], infinite[2, 0] = torch.nan, -torch.inf
    return {
        "k above M": ((x, y, 8), {}, ValueError, r"k must be between 0 and 7 \(rows of points\), got 8"),
        "k negative": ((x, y, -1), {}, ValueError, "k must be between 0 and 7 .*got -1"),
        "k not whole": ((x, y, 2.0), {}, TypeError, "k must be an integer, got float"),
        "k a bool": ((x, y, True), {}, TypeError, "k must be an integer"),
        "metric": ((x, y, 2), {"metric": "l1"}, ValueError, "metric must be 'euclidean' or 'cosine', got 'l1'"),
        "metric of others": (
            (x, y, 2),
            {"metric": "symmetric_kl"},
            ValueError,
            "metric must be 'euclidean' or 'cosine'",
        ),
        "width": ((x, y[:, :2], 2), {}, ValueError, "points must be as wide as queries, got width 2 and 3"),
        "NaN": ((x, nan, 2), {}, ValueError, "points must be finite, got nan in row 4, column 1"),
        "NaN and k 0": ((x, nan, 0), {}, ValueError, "points must be finite, got nan in row 4, column 1"),
        "infinity": ((infinite, y, 2), {}, ValueError, "queries must be finite, got -inf in row 2, column 0"),
        "integers": ((x.int(), y, 2), {}, TypeError, "queries must be of dtype float16, .*got torch.int32"),
        "numpy integers": ((x, y.int().numpy(), 2), {}, TypeError, "points must be of dtype .*got int32"),
        "list": ((x, [[1.0], [2.0], [3.0]], 2), {}, TypeError, "points must be a torch.Tensor or a numpy.ndarray"),
        "pair": (((x, x), y, 2), {}, TypeError, "queries must be one array, got a pair"),
        "pair of points": ((x, (y, y), 2), {}, TypeError, "points must be one array, got a pair"),
        "one dimension": ((x[0], y, 2), {}, ValueError, r"queries must be two-dimensional.*got shape \(3,\)"),
        "three dimensions": ((x, y[None], 1), {}, ValueError, "points must be two-dimensional"),
        "no columns": ((x[:, :0], y[:, :0], 1), {}, ValueError, "queries must have at least one column"),
        "sparse": ((x.to_sparse(), y, 1), {}, TypeError, "queries must be a dense tensor"),
        "device": ((x.to("meta"), y, 1), {}, ValueError, "queries is on meta"),
    }


@pytest.mark.parametrize("case", bad())
def test_bad_input(case):
    args, options, error, message = bad()[case]
    with pytest.raises(error, match=message):
        alk.knn(*args, **options)


def test_op_checks_for_itself():
    x, y = torch.zeros(5, 3), torch.ones(7, 3)
    values, indices = torch.full((5, 2), torch.inf, dtype=torch.float64), torch.full((5, 2), -1)
    op = torch.ops.alkernels.nearest_points
    for args, message in (
        ((x, y[:, :2], None, 0, 0, False, values, indices), "points must be as wide as rows, got 2 and 3"),
        ((x, y, None, 9, 0, False, values, indices), "metric must be 0, 1, 2 or 3, got 9"),
        ((x, y, values[0], 0, 0, False, values, indices), "shift must be a vector of 3"),
        ((x, y, None, 0, 0, False, values.float(), indices), "values"),
        ((x, y, None, 0, 0, False, values, indices.int()), "indices"),
        ((x, y, None, 0, 0, False, values[:3], indices[:3]), "values"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
    op(x, y, None, 0, 100, False, values, indices)
    op(x, y[:1], None, 0, 3, False, values, indices)  # a lower number merges in front
    assert indices.tolist() == [[3, 100]] * 5 and (values == 3).all()
