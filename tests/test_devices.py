"""Every public op on every device: the twin's answer on data that is exact in float32, and the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import assert_farthest_first, true_squared

import alkernels as alk
from alkernels import reference
from alkernels._inputs import Pool
from alkernels.ops.running_distances import RunningDistances

GPU = alk.has_cuda_kernels() and torch.cuda.is_available()

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
N, D, K, C = 400, 9, 6, 5


def integers(rng, *shape, high=8):
    return torch.randint(-high, high + 1, shape, generator=rng).float()


def distributions(rng, *shape):
    """Multiples of 1/64, exact in every dtype, zeros among them; the last dimension sums to 1."""
    drawn = torch.randn(*shape, generator=rng).mul_(1.5).softmax(-1).flatten(0, -2)
    counts = torch.multinomial(drawn, 64, replacement=True, generator=rng)
    return torch.nn.functional.one_hot(counts, shape[-1]).sum(1).div(64).view(shape)


def data(rng):
    """Exact in all dtypes; every call of ``CALLS`` takes what it needs of it."""
    return {
        "x": integers(rng, N, D),
        "known": integers(rng, 7, D),
        "a": integers(rng, N, 4, high=3),
        "worth": torch.randint(0, 5, (N,), generator=rng).float(),
        "probs": distributions(rng, 60, K, C),
        "others": distributions(rng, 3, K, C),
        "p": distributions(rng, 90, 12),
        "q": distributions(rng, 70, 12),
        "near": torch.randint(0, 70, (90, 4), generator=rng),
    }


def divergences(p, q):
    """KL(p_i || q_j) from the definition: 0 log 0 = 0, infinite where q rules out what p allows."""
    p, q = p[:, None].double(), q[None].double()
    terms = torch.where(p > 0, p * (torch.where(p > 0, p, 1.0).log() - q.log()), 0.0)
    return terms.sum(-1)


def neighbours(queries, points, k, metric="euclidean"):
    d2 = torch.stack([true_squared(points.double(), q, metric) for q in queries.double()])
    values, indices = d2.sort(dim=1, stable=True)
    return values[:, :k].div(2) if metric == "cosine" else values[:, :k].sqrt(), indices[:, :k]


def smallest(t, k, largest=False):
    values, indices = divergences(t["p"], t["q"]).sort(dim=1, stable=True, descending=largest)
    return values[:, :k], indices[:, :k]


# name -> (ours, the twin); both from the data to a tensor or a tuple of tensors
CALLS = {
    "k-center": (
        lambda t: alk.k_center_greedy(t["x"], 60, start=5),
        lambda t: reference.k_center_greedy(t["x"], 60, start=5),
    ),
    "k-center, all rows": (
        lambda t: alk.k_center_greedy(t["x"], N, start=0),
        lambda t: reference.k_center_greedy(t["x"], N, start=0),
    ),
    "k-center, labelled": (
        lambda t: alk.k_center_greedy(t["x"], 60, labeled=t["known"]),
        lambda t: reference.k_center_greedy(t["x"], 60, labeled=t["known"]),
    ),
    "k-center, outer products": (
        lambda t: alk.k_center_greedy((t["a"], t["x"]), 60, labeled=(t["a"][:5], t["known"][:5])),
        lambda t: reference.k_center_greedy((t["a"], t["x"]), 60, labeled=(t["a"][:5], t["known"][:5])),
    ),
    "coverage, tophat": (
        lambda t: alk.greedy_coverage(t["x"], 20, kernel="tophat", bandwidth=9.5),
        lambda t: reference.greedy_coverage(t["x"], 20, kernel="tophat", bandwidth=9.5),
    ),
    "coverage, weights and candidates": (
        lambda t: alk.greedy_coverage(
            t["x"], 20, kernel="tophat", bandwidth=9.5, weights=t["worth"], candidates=torch.arange(0, N, 3)
        ),
        lambda t: reference.greedy_coverage(
            t["x"], 20, kernel="tophat", bandwidth=9.5, weights=t["worth"], candidates=torch.arange(0, N, 3)
        ),
    ),
    "coverage, cosine": (
        lambda t: alk.greedy_coverage(t["x"], 20),
        lambda t: reference.greedy_coverage(t["x"], 20),
    ),
    "coverage, rbf": (
        lambda t: alk.greedy_coverage(t["x"], 20, kernel="rbf", bandwidth=6.0),
        lambda t: reference.greedy_coverage(t["x"], 20, kernel="rbf", bandwidth=6.0),
    ),
    "knn": (lambda t: alk.knn(t["known"], t["x"], 30), lambda t: neighbours(t["known"], t["x"], 30)),
    "knn, all points": (lambda t: alk.knn(t["x"], t["known"], 7), lambda t: neighbours(t["x"], t["known"], 7)),
    "bald": (lambda t: alk.bald(t["probs"]), lambda t: reference.bald(t["probs"])),
    "epig": (lambda t: alk.epig(t["probs"], t["others"]), lambda t: reference.epig(t["probs"], t["others"])),
    "batchbald": (lambda t: alk.batchbald(t["probs"], 3), lambda t: reference.batchbald(t["probs"], 3)),
    "joint entropy": (
        lambda t: alk.joint_entropy(t["probs"], t["others"]),
        lambda t: reference.joint_entropy(t["probs"], t["others"]),
    ),
    "kl": (lambda t: alk.pairwise_kl(t["p"], t["q"]), lambda t: divergences(t["p"], t["q"])),
    "kl, mean": (
        lambda t: alk.pairwise_kl(t["p"], t["q"], reduce="mean"),
        lambda t: divergences(t["p"], t["q"]).mean(1),
    ),
    "kl, min": (
        lambda t: alk.pairwise_kl(t["p"], t["q"], reduce="min"),
        lambda t: smallest(t, 1)[0][:, 0],
    ),
    "kl, max": (
        lambda t: alk.pairwise_kl(t["p"], t["q"], reduce="max"),
        lambda t: smallest(t, 1, largest=True)[0][:, 0],
    ),
    "kl, k smallest": (
        lambda t: alk.pairwise_kl(t["p"], t["q"], reduce="topk", k=3),
        lambda t: smallest(t, 3),
    ),
    "kl, neighbours": (
        lambda t: alk.pairwise_kl(t["p"], t["q"], neighbors=t["near"]),
        lambda t: divergences(t["p"], t["q"]).gather(1, t["near"]),
    ),
}
# how far apart two devices may be: all pairs are each within 1e-4 of their own value
BETWEEN = {"kl": 2e-4}


def to(t, device, dtype=None):
    return {name: v.to(device, dtype if v.is_floating_point() else None) for name, v in t.items()}


def assert_same(found, expected, device, rtol=1e-4):
    """Indices equal, values close; on the device."""
    found, expected = ((r,) if isinstance(r, torch.Tensor) else tuple(r) for r in (found, expected))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.type == device
        if ours.is_floating_point():
            torch.testing.assert_close(ours.cpu().double(), theirs.cpu().double(), rtol=rtol, atol=2e-6)
        else:
            assert torch.equal(ours.cpu(), theirs.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_equals_the_twin_and_the_cpu(name, dtype, rng, device):
    ours, twin = CALLS[name]
    exact = data(rng)
    found = ours(to(exact, device, dtype))
    assert_same(found, twin(to(exact, "cpu", torch.float64)), device)
    if device != "cpu":
        assert_same(found, ours(to(exact, "cpu", dtype)), device, rtol=BETWEEN.get(name, 1e-5))


@pytest.mark.parametrize("layout", ["transposed", "every third column", "every other row", "offset", "expanded"])
@pytest.mark.parametrize("name", ["k-center, labelled", "k-center, outer products", "coverage, tophat", "knn", "kl"])
def test_layouts(name, layout, rng, device):
    def lay(v):
        if v.dim() < 2:
            return v
        if layout == "transposed":
            return v.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "every third column":
            return v.repeat_interleave(3, dim=-1)[..., 1::3]
        if layout == "every other row":
            return v.repeat_interleave(2, dim=0)[::2]
        if layout == "offset":  # rows that begin at no multiple of 16 bytes
            return torch.cat([v[..., :1], v], -1)[..., 1:]
        return v[:, :1].expand_as(v) if not bool((v >= 0).all()) else v

    t = {n: lay(v) for n, v in to(data(rng), device).items()}
    ours, twin = CALLS[name]
    assert_same(ours(t), twin(to(t, "cpu", torch.float64)), device)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "symmetric_kl"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_k_center_on_real_values(metric, dtype, rng, device):
    if metric == "symmetric_kl":
        x = distributions(rng, 500, 12).add_(1 / 64).mul_(64 / 76).double()
        x = x.to(dtype) if dtype == torch.float64 else x.float()
    else:
        x = torch.randn(700, 37, generator=rng).to(dtype)
    known = x[::97].clone()
    for labeled, start in ((None, 3), (known, None)):
        there = None if labeled is None else labeled.to(device)
        ours = alk.k_center_greedy(x.to(device), 150, start=start, labeled=there, metric=metric)
        assert ours.indices.device.type == device
        assert_farthest_first(x, ours, start=start, labeled=labeled, metric=metric)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factors", [1, 2])
def test_kmeans_plusplus(factors, dtype, rng, device):
    t = to(data(rng), "cpu", dtype)
    rows = (t["a"], t["x"]) if factors == 2 else t["x"]
    there = tuple(f.to(device) for f in rows) if factors == 2 else rows.to(device)
    ours = alk.kmeans_plusplus(there, 80, generator=3, return_distances=True)
    assert ours.indices.device.type == device
    for again in (3, torch.Generator().manual_seed(3)):
        expected = alk.kmeans_plusplus(rows, 80, generator=again, return_distances=True)
        if isinstance(again, int):  # integers: the same draws on every device
            assert_same(ours, expected, device, rtol=1e-9)
    wide = tuple(f.double() for f in rows) if factors == 2 else rows.double()
    d2 = torch.full((N,), torch.inf, dtype=torch.float64)
    for pick, score in zip(ours.indices.tolist(), ours.scores.tolist(), strict=True):
        assert score == d2[pick]
        center = tuple(f[pick] for f in wide) if factors == 2 else wide[pick]
        d2 = torch.minimum(d2, true_squared(wide, center))
    assert torch.equal(ours.distances.cpu(), d2)
    assert len(ours.indices.unique()) == 80


@pytest.mark.parametrize("generator", [7, "generator"])
def test_a_seed_decides_on_every_device(generator, rng, device):
    x, probs = integers(rng, N, D), distributions(rng, 40, K, C)

    def picks(where):
        def seed():
            return torch.Generator().manual_seed(7) if generator == "generator" else generator

        return [
            alk.k_center_greedy(x.to(where), 9, generator=seed()).indices.tolist(),
            alk.kmeans_plusplus(x.to(where), 9, generator=seed()).indices.tolist(),
            alk.batchbald(
                probs.to(where), 4, max_configurations=10, num_samples=600, generator=seed()
            ).indices.tolist(),
        ]

    assert picks(device) == picks("cpu")


def test_sampled_configurations_agree(rng, device):
    probs, chosen = distributions(rng, 40, K, C), distributions(rng, 5, K, C)

    def entropies(where):
        return alk.joint_entropy(
            probs.to(where), chosen.to(where), max_configurations=100, num_samples=6000, generator=1
        )

    assert_same(entropies(device), entropies("cpu"), device)


def test_cosine_neighbours(rng, device):
    x, y = torch.randn(50, 20, generator=rng), torch.randn(300, 20, generator=rng)
    found = alk.knn(x.to(device), y.to(device), 12, metric="cosine")
    assert_same(found, neighbours(x, y, 12, "cosine"), device)


def test_gradients_of_divergences(rng, device):
    t = to(data(rng), device)
    p, q = (t[n].double().add(0.1).requires_grad_() for n in "pq")
    p, q = (x / x.sum(1, keepdim=True) for x in (p, q))
    weight = torch.randn(90, 70, generator=rng, dtype=torch.float64).to(device)
    ours = torch.autograd.grad((alk.pairwise_kl(p, q) * weight).sum(), (p, q), retain_graph=True)
    theirs = torch.autograd.grad((divergences(p, q) * weight).sum(), (p, q))
    assert_same(ours, theirs, device, rtol=1e-9)


EDGES = {
    "k-center, no picks": (lambda x, p: alk.k_center_greedy(x, 0).indices, [0]),
    "k-center, one row": (lambda x, p: alk.k_center_greedy(x[:1], 1).indices, [1]),
    "k-center, empty labelled set": (lambda x, p: alk.k_center_greedy(x, 3, labeled=x[:0], start=0).indices, [3]),
    "k-means++, no draws": (lambda x, p: alk.kmeans_plusplus(x, 0).indices, [0]),
    "k-means++, one row": (lambda x, p: alk.kmeans_plusplus(x[:1], 1).indices, [1]),
    "k-means++, all rows": (lambda x, p: alk.kmeans_plusplus(x, len(x)).indices.unique(), [30]),
    "k-means++, one point many times": (lambda x, p: alk.kmeans_plusplus(x[:1].repeat(9, 1), 9).indices.unique(), [9]),
    "one column": (lambda x, p: alk.k_center_greedy(x[:, :1], 4, start=0).indices, [4]),
    "coverage, no picks": (lambda x, p: alk.greedy_coverage(x, 0).indices, [0]),
    "coverage, one row": (lambda x, p: alk.greedy_coverage(x[:1], 1).indices, [1]),
    "coverage, all rows": (lambda x, p: alk.greedy_coverage(x, len(x)).indices.unique(), [30]),
    "knn, no queries": (lambda x, p: alk.knn(x[:0], x, 2).indices, [0, 2]),
    "knn, no neighbours": (lambda x, p: alk.knn(x, x, 0).indices, [30, 0]),
    "knn, no points": (lambda x, p: alk.knn(x, x[:0], 0).indices, [30, 0]),
    "knn, one point": (lambda x, p: alk.knn(x, x[:1], 1).indices, [30, 1]),
    "bald, no rows": (lambda x, p: alk.bald(p[:0]), [0]),
    "bald, one draw": (lambda x, p: alk.bald(p[:, :1]), [20]),
    "bald, one class": (lambda x, p: alk.bald(torch.ones_like(p[..., :1])), [20]),
    "epig, no rows": (lambda x, p: alk.epig(p[:0], p), [0]),
    "batchbald, no picks": (lambda x, p: alk.batchbald(p, 0).indices, [0]),
    "batchbald, one row": (lambda x, p: alk.batchbald(p[:1], 1).indices, [1]),
    "joint entropy, nothing chosen": (lambda x, p: alk.joint_entropy(p, p[:0]), [20]),
    "joint entropy, no rows": (lambda x, p: alk.joint_entropy(p[:0], p[:2]), [0]),
    "kl, no rows": (lambda x, p: alk.pairwise_kl(p[:0, 0], p[:, 0]), [0, 20]),
    "kl, no columns": (lambda x, p: alk.pairwise_kl(p[:, 0], p[:0, 0]), [20, 0]),
    "kl, one pair": (lambda x, p: alk.pairwise_kl(p[:1, 0], p[:1, 0], reduce="topk", k=1).indices, [1, 1]),
    "kl, no neighbours": (lambda x, p: alk.pairwise_kl(p[:, 0], p[:, 0], neighbors=np.zeros((20, 0), int)), [20, 0]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name, rng, device):
    call, shape = EDGES[name]
    found = call(integers(rng, 30, D).to(device), distributions(rng, 20, K, C).to(device))
    assert (found.device.type, list(found.shape)) == (device, shape)


# of (here, there): tensors on the device, and the same on another one
TWO_DEVICES = {
    "labeled": lambda a, b: alk.k_center_greedy(a["x"], 3, labeled=b["known"]),
    "labeled of k-means++": lambda a, b: alk.kmeans_plusplus(a["x"], 3, labeled=b["known"]),
    "labeled of coverage": lambda a, b: alk.greedy_coverage(a["x"], 3, labeled=b["known"]),
    "factors": lambda a, b: alk.kmeans_plusplus((a["a"], b["x"]), 3),
    "points": lambda a, b: alk.knn(a["x"], b["known"], 3),
    "targets": lambda a, b: alk.epig(a["probs"], b["others"]),
    "chosen": lambda a, b: alk.joint_entropy(a["probs"], b["others"]),
    "q": lambda a, b: alk.pairwise_kl(a["p"], b["q"]),
}


@pytest.mark.parametrize("there", ["meta", "cpu"])
@pytest.mark.parametrize("name", TWO_DEVICES)
def test_two_devices_are_refused(name, there, rng, device):
    if there == device:
        pytest.skip("one device")
    t = data(rng)
    with pytest.raises(ValueError, match=there) as found:
        TWO_DEVICES[name](to(t, device), to(t, there))
    assert device in str(found.value) or "is on meta" in str(found.value)


@pytest.mark.parametrize("name", CALLS)
def test_devices_without_kernels_are_refused(name, rng):
    with pytest.raises(ValueError, match="is on meta"):
        CALLS[name][0](to(data(rng), "meta"))


@pytest.mark.parametrize("name", [*CALLS, "k-means++"])
def test_another_stream(name, rng, device):
    """Inputs that are still being made on the caller's stream are waited for, and nothing else is."""
    if device != "cuda":
        pytest.skip("streams are CUDA's")
    ours = CALLS[name][0] if name in CALLS else lambda t: alk.kmeans_plusplus(t["x"], 50, generator=0)
    t = data(rng)
    expected = ours(t)
    late = {n: torch.zeros_like(v, device=device) for n, v in t.items()}
    ready = to(t, device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for n, v in late.items():
            v.copy_(ready[n])
        found = ours(late)
        stream.synchronize()
    assert_same(found, expected, device, rtol=BETWEEN.get(name, 1e-5))


@pytest.mark.skipif(not GPU or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one(rng):
    x = integers(rng, N, D)
    found = alk.k_center_greedy(x.to("cuda:1"), 60, start=5)
    assert found.indices.device == torch.device("cuda:1")
    assert torch.equal(found.indices.cpu(), alk.k_center_greedy(x, 60, start=5).indices)


@pytest.mark.parametrize("name", ["spectrum", "clusters"])
@pytest.mark.parametrize("rule", ["k-center", "k-means++"])
def test_playing_a_block_before_its_rows_are_known_well_changes_nothing(name, rule, rng, monkeypatch):
    """A GPU plays on while the host learns that distances must be measured first; here the CPU does."""
    x = torch.randn(1500, 40, generator=rng)
    if name == "spectrum":
        x *= torch.arange(1, 41).pow(-2.0)
    else:
        x = 1e3 * x[torch.randint(20, (1500,), generator=rng)] + 1e-2 * x
    measured = []
    settle = RunningDistances.settle

    def counted(self, level, doubtful):
        measured.append(doubtful)
        return settle(self, level, doubtful)

    monkeypatch.setattr(RunningDistances, "settle", counted)

    def run():
        if rule == "k-center":
            return alk.k_center_greedy(x, 600, start=3, return_distances=True)
        return alk.kmeans_plusplus(x, 600, start=3, generator=0, return_distances=True)

    plain = run()
    assert any(measured)  # or nothing was tried
    monkeypatch.setattr(Pool, "remote", property(lambda self: True))
    for a, b in zip(plain, run(), strict=True):
        assert torch.equal(a, b)


# every function that takes host memory to a GPU, on NumPy arrays
FROM_HOST = {
    "k_center_greedy": lambda t, **o: alk.k_center_greedy(t["x"], 40, start=5, return_distances=True, **o),
    "kmeans_plusplus": lambda t, **o: alk.kmeans_plusplus((t["a"], t["x"]), 20, start=5, generator=0, **o),
    "greedy_coverage": lambda t, **o: alk.greedy_coverage(t["x"], 9, kernel="tophat", bandwidth=9.0, **o),
    "knn": lambda t, **o: alk.knn(t["x"], t["known"], 3, **o),
    "joint_entropy": lambda t, **o: alk.joint_entropy(t["probs"], t["others"], generator=0, **o),
    "batchbald": lambda t, **o: alk.batchbald(t["probs"], 3, generator=0, **o),
    "bald": lambda t, **o: alk.bald(t["probs"], **o),
    "epig": lambda t, **o: alk.epig(t["probs"], t["others"], **o),
    "pairwise_kl": lambda t, **o: alk.pairwise_kl(t["p"], t["q"], reduce="topk", k=4, **o),
}


@pytest.mark.parametrize("name", FROM_HOST)
def test_device_takes_host_memory_to_a_gpu(name, rng):
    t = {key: value.numpy() for key, value in data(rng).items()}
    call = FROM_HOST[name]
    for wrong in ("cpu", "meta", "no device"):
        with pytest.raises(ValueError, match="device must be a CUDA device such as 'cuda' or 'cuda:0', got '"):
            call(t, device=wrong)
    with pytest.raises(TypeError, match=r"device must be a torch\.device or its name, such as 'cuda', got int"):
        call(t, device=3)
    if not GPU:
        with pytest.raises(ValueError, match="device must be"):
            call(t, device="cuda")
        return
    here, there = call(t), call(t, device="cuda")
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (here, there)), strict=True):
        assert isinstance(b, np.ndarray)
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-9)


def test_gradients_have_no_device(rng):
    p = torch.rand(4, 3, generator=rng).softmax(1).requires_grad_()
    with pytest.raises(ValueError, match="device must be None where p or q requires a gradient"):
        alk.pairwise_kl(p, p, device="cuda")
