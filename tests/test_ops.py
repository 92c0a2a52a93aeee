"""The ops as torch sees them: schemas, shapes for the compiler, threads, signals, memory, instruction sets."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import CAPABILITIES

import alkernels as alk

ops = torch.ops.alkernels


def samples():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=rng)
    y = torch.randn(50, 3, generator=rng)
    d2 = torch.rand(50, generator=rng, dtype=torch.float64)
    shift = torch.zeros(4, dtype=torch.float64)
    error = torch.zeros(50)
    nearest = torch.zeros(50, dtype=torch.int64)
    u = torch.rand(50, generator=rng, dtype=torch.float64)
    index = torch.arange(50)
    order = d2.sort(descending=True)
    p = torch.randn(50, 6, 3, generator=rng).softmax(2)
    posteriors = torch.rand(9, 6, generator=rng, dtype=torch.float64)
    mass, ones = torch.full((9,), 1 / 9, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    few = torch.arange(0, 50, 7)
    rows = p[:, 0].contiguous()
    learned = [r.clone().requires_grad_() for r in (rows, rows[:9])]
    into_q, into_p = torch.arange(100).view(50, 2) % 9, torch.arange(27).view(9, 3) * 7 % 50
    level = torch.tensor([0.1], dtype=torch.float64)
    best = [torch.full((50, 4), torch.inf, dtype=torch.float64), torch.full((50, 4), -1)]
    return {
        "k_center_greedy": (ops.k_center_greedy, (x, None, 7), {"start": 3}),
        "k_center_greedy cosine": (ops.k_center_greedy, (x, None, 7), {"metric": "cosine", "labeled": x[:5]}),
        "k_center_greedy pair": (ops.k_center_greedy, (x, y, 7), {"labeled": x[:5], "labeled2": y[:5]}),
        "k_center_greedy float64": (ops.k_center_greedy, (x.double(), None, 0), {"start": 3}),
        "kmeans_plusplus": (ops.kmeans_plusplus, (x, None, 7), {"seed": 1}),
        "kmeans_plusplus pair": (ops.kmeans_plusplus, (x.half(), y, 7), {"start": 1}),
        "lower_distances": (
            ops.lower_distances,
            (x, None, x[:3].clone(), None, shift, 0, 0, 1.0, d2, error, nearest),
            {},
        ),
        "lower_distances pair": (
            ops.lower_distances,
            (x, y, x[:3].clone(), y[:3].clone(), None, 2, 0, 1.0, d2, error, None),
            {},
        ),
        "paired_distances": (ops.paired_distances, (x, None, x.flip(0), None, 1), {}),
        "top_candidates": (ops.top_candidates, (d2, 9), {}),
        "k_center_block": (ops.k_center_block, (x, None, shift, 0, order.values, order.indices, level, level, 5), {}),
        "draw_by_weight": (ops.draw_by_weight, (d2, u), {}),
        "joint_entropy": (ops.joint_entropy, (p, p[:2]), {}),
        "joint_entropy sampled": (
            ops.joint_entropy,
            (p, p[:3]),
            {"max_configurations": 5, "num_samples": 60, "seed": 1},
        ),
        "joint_entropy log": (ops.joint_entropy, (p.double().log(),), {"log_input": True}),
        "batchbald": (ops.batchbald, (p, 3), {}),
        "batchbald sampled": (ops.batchbald, (p, 3), {"max_configurations": 3, "num_samples": 60, "seed": 1}),
        "batchbald none": (ops.batchbald, (p.double(), 0), {}),
        "bald": (ops.bald, (p,), {}),
        "epig": (ops.epig, (p, p[:4, :, :2] / p[:4, :, :2].sum(2, keepdim=True)), {}),
        "conditional_entropy": (ops.conditional_entropy, (p, posteriors, mass, False), {}),
        "conditional_entropy wide": (ops.conditional_entropy, (p.double(), posteriors, mass, True), {}),
        "prediction_scores": (ops.prediction_scores, (p, 4, False), {}),
        "prediction_scores log": (ops.prediction_scores, (p.double().log(), 1, True), {}),
        "greedy_coverage": (ops.greedy_coverage, (x, 5), {}),
        "greedy_coverage tophat": (ops.greedy_coverage, (x.half(), 5), {"similarity": "tophat", "bandwidth": 2.0}),
        "greedy_coverage all": (
            ops.greedy_coverage,
            (x, 5),
            {
                "candidates": few,
                "weights": u,
                "labeled": x[:3].clone(),
                "covered": d2,
                "similarity": "rbf",
                "bandwidth": 2.0,
            },
        ),
        "coverage_gains": (ops.coverage_gains, (x, ones, d2, x[:9].clone(), shift, 1, 2.0, True, True), {}),
        "coverage_gains bound": (ops.coverage_gains, (x, ones, d2, x[:9].clone(), None, 0, 1.0, False, False), {}),
        "raise_covered": (ops.raise_covered, (x, x[:3].clone(), shift, 1, 2.0, True, torch.zeros_like(d2)), {}),
        "raise_covered cosine": (
            ops.raise_covered,
            (x.half(), x[:3].clone(), None, 0, 1.0, False, torch.zeros_like(d2)),
            {},
        ),
        "kmeans_plusplus_block": (ops.kmeans_plusplus_block, (x, None, shift, 0, d2, index, u, level, 9), {}),
        "k_center_greedy symmetric KL": (
            ops.k_center_greedy,
            (rows, None, 7),
            {"metric": "symmetric_kl", "labeled": rows[:5].clone()},
        ),
        "pairwise_kl": (ops.pairwise_kl, (rows, rows[:9].clone()), {}),
        "pairwise_kl learned": (ops.pairwise_kl, tuple(learned), {}),
        "pairwise_kl log": (ops.pairwise_kl, (rows.log(), rows[:9].double().log()), {"log_input": True}),
        "gathered_kl": (ops.gathered_kl, (rows, rows[:9].clone(), into_q), {}),
        "gathered_kl learned": (ops.gathered_kl, (*learned, into_q), {}),
        "gathered_kl p": (ops.gathered_kl, (*learned, into_p), {"gather": "p"}),
        "gathered_kl log": (
            ops.gathered_kl,
            (rows.log(), rows[:9].double().log(), into_p),
            {"gather": "p", "log_input": True},
        ),
        "mean_kl": (ops.mean_kl, (rows, rows[:9].clone()), {}),
        "topk_kl": (ops.topk_kl, (rows, rows[:9].clone(), 4), {}),
        "topk_kl log": (ops.topk_kl, (rows.log(), rows[:9].log(), 9), {"largest": True, "log_input": True}),
        "knn": (ops.knn, (x, x[:9].clone(), 4), {}),
        "knn cosine": (ops.knn, (x.half(), x[:9].double(), 0), {"metric": "cosine"}),
        "divergences": (ops.divergences, (rows, rows[:9].clone(), False, torch.empty(50, 9)), {}),
        "nearest_divergences": (ops.nearest_divergences, (rows, rows[:9].clone(), False, False, 3, *best), {}),
        "nearest_points": (ops.nearest_points, (x, x[:9].clone(), shift, 0, 3, False, *best), {}),
        "nearest_points cosine": (ops.nearest_points, (x.half(), x[:9].clone(), None, 1, 0, True, *best), {}),
    }


@pytest.mark.parametrize("name", samples())
def test_opcheck(name):
    op, args, options = samples()[name]
    torch.library.opcheck(op.default, args, options)


def test_every_schema_has_a_cpu_kernel_and_a_shape_function():
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("alkernels::")
    }
    assert names == {name.split()[0] for name in samples()}
    for name in names:
        assert any(
            torch._C._dispatch_has_kernel_for_dispatch_key(f"alkernels::{name}", key)
            for key in ("CPU", "CompositeExplicitAutograd")
        )
        op = getattr(ops, name).default
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            _, args, options = samples()[next(s for s in samples() if s.split()[0] == name)]
            op(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args), **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_of_each_op(dynamic):
    for name, (op, args, options) in samples().items():
        if name.startswith(("lower_distances", "raise_covered", "divergences", "nearest_")):
            continue  # return nothing; below
        torch._dynamo.reset()
        compiled = torch.compile(lambda a, o, op=op: op(*a, **o), fullgraph=True, dynamic=dynamic)
        ours, eager = compiled(args, options), op(*args, **options)
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, eager)), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("lower_distances", 8),
        ("raise_covered", 6),
        ("raise_covered cosine", 6),
        ("divergences", 3),
        ("nearest_divergences", 5),
        ("nearest_points", 6),
        ("nearest_points cosine", 6),
    ],
)
def test_compile_of_ops_that_change_their_arguments(name, first):
    op, args, options = samples()[name]

    def run(*args):
        args = list(args)
        args[first:] = [a.clone() for a in args[first:]]
        op(*args, **options)
        return args[first:]

    for ours, eager in zip(torch.compile(run, fullgraph=True)(*args), run(*args), strict=True):
        assert torch.equal(ours, eager)


def test_compile_of_the_public_functions(rng):
    x = torch.randn(200, 5, generator=rng)
    k_center = torch.compile(lambda x: alk.k_center_greedy(x, 9, start=2, return_distances=True), fullgraph=True)
    for ours, eager in zip(k_center(x), alk.k_center_greedy(x, 9, start=2, return_distances=True), strict=True):
        assert torch.equal(ours, eager)
    kpp = torch.compile(lambda x: alk.kmeans_plusplus(x * 2, 9, labeled=x[:3], generator=4).indices + 1, fullgraph=True)
    assert torch.equal(kpp(x), alk.kmeans_plusplus(x * 2, 9, labeled=x[:3], generator=4).indices + 1)
    pair = torch.compile(lambda x: alk.k_center_greedy((x, x[:, :2]), 9, start=2).indices, fullgraph=True)
    assert torch.equal(pair(x), alk.k_center_greedy((x, x[:, :2]), 9, start=2).indices)
    with pytest.raises(Exception, match="generator must be an integer seed inside"):
        torch.compile(lambda x: alk.kmeans_plusplus(x, 9), fullgraph=True)(x)
    with pytest.raises(Exception, match="start must be a row of features, got -1"):
        torch.compile(lambda x: alk.k_center_greedy(x, 9, start=-1, generator=0), fullgraph=True)(x)


def test_compile_of_the_public_functions_of_probabilities(rng):
    p = torch.randn(60, 6, 3, generator=rng).softmax(2)
    for function in (
        lambda p: alk.bald(p),
        lambda p: alk.epig(p, p[:5]),
        lambda p: alk.epig(p.log(), p[:5].log(), log_input=True),
        lambda p: alk.joint_entropy(p, p[:2], generator=0) + 1,
        lambda p: alk.joint_entropy(p, p[:4], max_configurations=5, num_samples=60, generator=3),
        lambda p: alk.batchbald(p, 3, generator=0),
        lambda p: alk.batchbald(p.log(), 3, log_input=True, max_configurations=3, num_samples=60, generator=3),
    ):
        torch._dynamo.reset()
        ours, eager = torch.compile(function, fullgraph=True)(p), function(p)
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, eager)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the compiler's own p.log() rounds differently
        assert type(ours) is type(eager)
    for function in (alk.batchbald, alk.joint_entropy):
        torch._dynamo.reset()
        with pytest.raises(Exception, match="generator must be an integer seed inside"):
            torch.compile(lambda p, f=function: f(p, 3 if f is alk.batchbald else p[:2]), fullgraph=True)(p)


def test_compile_of_greedy_coverage(rng):
    x = torch.randn(80, 5, generator=rng)
    few, weights = torch.arange(0, 80, 3), torch.rand(80, generator=rng)
    for function in (
        lambda x: alk.greedy_coverage(x, 7),
        lambda x: alk.greedy_coverage(x, 7, kernel="rbf", return_covered=True),
        lambda x: alk.greedy_coverage(x, 7, kernel="tophat", bandwidth=2.0, candidates=few, weights=weights),
        lambda x: alk.greedy_coverage(x, 7, covered=-torch.ones(80), labeled=x[:3], return_covered=True),
    ):
        torch._dynamo.reset()
        ours, eager = torch.compile(function, fullgraph=True)(x), function(x)
        assert type(ours) is type(eager) and len(ours) == len(eager)
        assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="bandwidth must not be given for kernel 'cosine'"):
        torch.compile(lambda x: alk.greedy_coverage(x, 7, bandwidth=2.0), fullgraph=True)(x)


def test_ops_check_for_themselves():
    x, d2, error = torch.zeros(5, 3), torch.zeros(5, dtype=torch.float64), torch.zeros(5)
    lower = lambda *a: ops.lower_distances(*a)  # noqa: E731
    for args, message in [
        ((x[0], None, x, None, None, 0, 0, 1.0, d2, error, None), "rows must be two-dimensional"),
        ((x, None, x[:, :2], None, None, 0, 0, 1.0, d2, error, None), "centers must be as wide as rows, got 2 and 3"),
        ((x, None, x, None, None, 7, 0, 1.0, d2, error, None), "metric must be 0, 1, 2 or 3, got 7"),
        ((x, None, x, None, None, 2, 0, 1.0, d2, error, None), "rows must be two tensors"),
        ((x, None, x, None, None, 0, 0, 1.0, d2[:4], error, None), "d2 must be a vector of 5"),
        (
            (x, None, x, None, None, 0, 0, 1.0, d2.float(), error, None),
            "d2 must be contiguous and of type Double, got Float",
        ),
        (
            (x.int(), None, x, None, None, 0, 0, 1.0, d2, error, None),
            "rows must be float16, bfloat16, float32 or float64, got Int",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            lower(*args)
    with pytest.raises(RuntimeError, match="m must be between 1 and 5"):
        ops.top_candidates(d2, 6)
    p, w = torch.rand(5, 4, 3), torch.ones(2, 4, dtype=torch.float64)
    for args, message in [
        ((p[0], w, d2[:2], True), "probs must be three-dimensional, got a 2-d tensor"),
        ((p.half(), w, d2[:2], True), "probs must be float32 or float64, got Half"),
        ((p[:, :0], w, d2[:2], True), "probs must have at least one draw and one class, got 0 and 3"),
        ((p, w.float(), d2[:2], True), "weights must be float64, got Float"),
        ((p, w[:, :3], d2[:2], True), "weights must have a column for each draw, got 3 and 4"),
        ((p, w, d2, True), "mass must be a vector of 2"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.conditional_entropy(*args)
    for args, message in [
        ((p[0], 0, False), "probs must be three-dimensional and contiguous, got a 2-d tensor"),
        ((p.transpose(1, 2), 0, False), "probs must be three-dimensional and contiguous"),
        ((p.half(), 0, False), "probs must be float32 or float64, got Half"),
        ((p[:, :, :0].contiguous(), 0, False), "probs must have at least one draw and one class, got 4 and 0"),
        ((p, 9, False), "score must be between 0 and 8, got 9"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.prediction_scores(*args)
    for args, message in [
        ((x, d2, d2, x[:, :2], None, 0, 1.0, True, True), "candidates must be as wide as rows, got 2 and 3"),
        ((x, d2[:4], d2, x, None, 0, 1.0, True, True), "weights must be a vector of 5"),
        ((x, d2, d2.float(), x, None, 0, 1.0, True, True), "covered must be contiguous and of type Double, got Float"),
        ((x, d2, d2, x, None, 3, 1.0, True, True), "similarity must be 0, 1 or 2, got 3"),
        ((x, d2, d2, x, d2, 1, 1.0, True, True), "shift must be a vector of 3"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.coverage_gains(*args)
    with pytest.raises(RuntimeError, match="covered must be a vector of 5"):
        ops.raise_covered(x, x, None, 1, 1.0, False, d2[:4])


@pytest.mark.parametrize("m", [1, 2, 31, 500, 4000])
@pytest.mark.parametrize("values", ["distinct", "ties", "all equal", "rising", "with picked"])
def test_top_candidates(m, values, rng):
    n = 100_000 if m > 31 else 4000
    d2 = torch.rand(n, generator=rng, dtype=torch.float64)
    if values == "ties":
        d2 = torch.randint(20, (n,), generator=rng).double()
    elif values == "all equal":
        d2 = torch.zeros(n, dtype=torch.float64)
    elif values == "rising":
        d2 = d2.sort().values
    elif values == "with picked":
        d2[torch.randperm(n, generator=rng)[: n - 10]] = -1
    top, index = ops.top_candidates(d2, m)
    order = torch.sort(d2, descending=True, stable=True)
    assert torch.equal(top, order.values[:m]) and torch.equal(index, order.indices[:m])


def test_draw_by_weight(rng):
    w = torch.randint(0, 5, (100_000,), generator=rng).double()
    w[::3] = -1  # picked
    u = torch.cat(
        [torch.rand(500, generator=rng, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)]
    )
    index, total = ops.draw_by_weight(w, u)
    sums = w.clamp(min=0).cumsum(0)
    assert total == sums[-1]
    assert torch.equal(index, torch.searchsorted(sums, u * sums[-1], right=True))
    nothing, total = ops.draw_by_weight(-torch.ones(9, dtype=torch.float64), u)
    assert total == 0 and (nothing == -1).all()


def test_python_runs_meanwhile(rng):
    """The kernels let go of the GIL: another thread gets on with its work during a selection."""
    x = torch.randn(100_000, 64, generator=rng)
    ticks, done = 0, threading.Event()

    def tick():
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    alk.k_center_greedy(x, 2000, start=0)
    seconds = time.perf_counter() - begin
    done.set()
    thread.join()
    assert (
        ticks > 20 * seconds
    )  # a call that held the GIL would let it tick only between calls, each up to half a second


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ctrl_c_ends_a_long_run():
    code = """
    import signal, torch, alkernels
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have switched it off
    x = torch.randn(60_000, 1024)
    print("ready", flush=True)
    alkernels.k_center_greedy(x, 60_000, start=0)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)  # the whole run takes far longer
    assert process.returncode != 0 and "KeyboardInterrupt" in stderr


MEASURE = """
import re, numpy as np, torch, alkernels as alk

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def extra(function):
    "Peak memory of a call beyond what the process held before, in bytes."
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before

torch.manual_seed(0)
alk.k_center_greedy(torch.randn(500, 4), 20, start=0)  # threads and lazy imports
alk.kmeans_plusplus(torch.randn(500, 4), 20)
"""


@pytest.mark.parametrize(
    ("n", "d", "k", "dtype"),
    [
        (1_000_000, 16, 100, "float32"),
        pytest.param(4_000_000, 1, 50, "float32", marks=pytest.mark.slow),
        (40_000, 768, 1000, "float32"),
        pytest.param(40_000, 768, 1000, "float16", marks=pytest.mark.slow),
        pytest.param(2000, 16_384, 600, "bfloat16", marks=pytest.mark.slow),
        pytest.param(40_000, 512, 500, "float64", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("function", ["k_center_greedy", "kmeans_plusplus"])
def test_memory_beyond_the_pool(n, d, k, dtype, function):
    """At most 64 MB + 40 bytes a point, as measured on the process."""
    out = run_python(
        MEASURE
        + f"x = torch.randn({n}, {d}).to(torch.{dtype})\n"
        + f"print(extra(lambda: alk.{function}(x, {k}, start=0, return_distances=True)))"
    )
    assert int(out) <= 64e6 + 40 * n


def test_a_memory_map_is_never_loaded_whole(tmp_path):
    n, d = 100_000, 640
    array = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(n, d))
    rng = np.random.default_rng(0)
    for begin in range(0, n, 10_000):
        array[begin : begin + 10_000] = rng.standard_normal((10_000, d), dtype=np.float32)
    array.flush()
    del array
    out = run_python(
        MEASURE
        + f"x = np.load({str(tmp_path / 'x.npy')!r}, mmap_mode='r')\n"
        + "print(extra(lambda: alk.k_center_greedy(x, 300, start=0, memory_limit=90_000_000)))\n"
        + "print(extra(lambda: alk.k_center_greedy(x, 300, start=0)))\n"
        + "print(extra(lambda: alk.k_center_greedy(torch.randn(500, 640), 3, labeled=x)))"
    )
    limited, unlimited, of_labeled = map(int, out.split())
    assert limited <= 90e6 < n * d * 4 / 2
    assert unlimited <= 64e6 + 40 * n + 2 * (64 << 20) < n * d * 4  # two slabs
    assert of_labeled <= 64e6 + 40 * 500


def test_importing_adds_little_to_torch():
    """Nothing heavy is imported beside torch, NumPy and tqdm."""
    out = run_python("""
    import sys, torch, numpy
    before = set(sys.modules)
    import alkernels
    print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """)
    assert not set(out.split()) & {"matplotlib", "scipy", "sklearn", "pandas", "mlxtend", "safetensors", "pytest"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    """The same picks on integers and the specification on real values, on each path this machine can run."""
    out = run_python(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch, alkernels as alk
        from conftest import assert_farthest_first
        rng = torch.Generator().manual_seed(0)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            for n, d, k in ((1, 1, 1), (40, 1, 40), (333, 15, 200), (900, 16, 300), (2000, 33, 500), (300, 300, 100)):
                x = torch.randint(-8, 9, (n, d), generator=rng).to(dtype)
                out = alk.k_center_greedy(x, k, start=0, return_distances=True)
                assert torch.equal(out.indices, alk.reference.k_center_greedy(x.double(), k, start=0).indices), (n, d)
                y = torch.randn(n, d, generator=rng).to(dtype)
                assert_farthest_first(y, alk.k_center_greedy(y, k, start=0), start=0)
                assert_farthest_first((y, y[:, :5]), alk.k_center_greedy((y, y[:, :5]), k, start=0), start=0)
        print(alk.build_info()["cpu_capability"])
        """,
        ATEN_CPU_CAPABILITY=capability,
    )
    assert (
        out.strip()
        in {"default": {"portable"}, "avx2": {"portable", "avx2"}, "avx512": {"portable", "avx2", "avx512"}}[capability]
    )


def test_build_info():
    info = alk.build_info()
    assert set(info) == {"version", "torch", "compiler", "cpu_capability", "cuda"}
    assert info["version"] == alk.__version__ != "0"
    if torch.version.cuda is None:
        assert not alk.has_cuda_kernels()


def test_cuda_kernels_that_do_not_load_are_left_out(tmp_path, monkeypatch):
    from alkernels import _load

    library = tmp_path / "libalkernels_cuda.so"
    library.write_bytes(b"of another torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _load._load_cuda(library)  # torch without CUDA: not even tried
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        assert not _load._load_cuda(tmp_path / "none.so")
    with pytest.warns(RuntimeWarning, match=r"do not load beside torch .* rebuild"):
        assert not _load._load_cuda(library)


def test_compiled_ops_that_are_not_differentiable_say_nothing_else(rng):
    """As in eager mode, features and probabilities are detached: no gradient is promised, and torch does not warn."""
    x = torch.randn(40, 5, generator=rng, requires_grad=True)
    draws = torch.rand(6, 3, 4, generator=rng).softmax(2).requires_grad_()
    calls = {
        "k_center_greedy": lambda: alk.k_center_greedy(x, 3, start=0).scores,
        "knn": lambda: alk.knn(x, x, 2).distances,
        "greedy_coverage": lambda: alk.greedy_coverage(x, 2).scores,
        "bald": lambda: alk.bald(draws),
        "epig": lambda: alk.epig(draws, draws),
        "joint_entropy": lambda: alk.joint_entropy(draws, draws[:1], generator=0),
        "batchbald": lambda: alk.batchbald(draws, 2, generator=0).scores,
        "mean_kl": lambda: alk.pairwise_kl(draws[:, 0], draws[:, 1], reduce="mean"),
    }
    for name, call in calls.items():
        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*autograd kernel was not registered.*")
            assert not torch.compile(call, fullgraph=True)().requires_grad, name
