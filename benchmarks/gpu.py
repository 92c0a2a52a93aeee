"""Times every op on a GPU, against plain PyTorch on the same GPU and against what the chip can do.

    python benchmarks/gpu.py                        # all cases; writes benchmarks/results/<gpu>.json and .txt
    python benchmarks/gpu.py --smoke                # each op once on small integers, equal to the CPU: for sanitizers
    python benchmarks/gpu.py --device cpu --small   # the same code without a GPU; writes nothing

Pools are synthetic (a decaying spectrum, heavy-tailed norms), drawn on the device. A case that does not fit into the
memory or into the time left is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import alkernels as alk
from alkernels import _streaming, reference
from alkernels._bench import report
from alkernels._bench.measure import Sgemm, peak_memory, seconds_of, synchronized
from alkernels._inputs import Pool, Selection
from alkernels.ops import k_center_greedy as k_center
from alkernels.ops import kmeans_plusplus as kmeans

RESULTS = Path(__file__).with_name("results")
_CHUNK = 400_000_000  # numbers that a plain twin may hold of a matrix of pairs, 1.6 GB


@dataclass
class Floor:
    """What the device does at best, measured in the same run."""

    flops: float  # a second, of one large float32 product (TF32 off)
    copy: float  # bytes a second, read and written, of a copy on the device
    upload: float  # bytes a second from pinned host memory


@dataclass
class Plain:
    """A rival. `share` of the work is done, and the time is extrapolated from it."""

    name: str
    call: Callable[[], Any]
    share: float = 1.0


@dataclass
class Case:
    """One op on one pool.

    Attributes
    ----------
    name, pool : str
    make : callable
        From (device, small) to the data.
    ours : callable
        From the data to the result.
    plain : callable
        From the data to the rivals.
    flops : callable
        Operations that the task takes; 0 where there is no telling.
    size : callable
        Bytes of the input.
    passes : callable, optional
        Runs it once, and says how often the pool was walked.
    check : callable, optional
        check(ours, theirs) raises an AssertionError where the results disagree.
    gigabytes : float
        Memory that the case needs in all, the rivals' chunks included.
    seconds : float
        A guess of the time that the case needs in all.
    uploads : bool
        The pool comes from host memory at each pass.
    """

    name: str
    pool: str
    make: Callable[[str, bool], Any]
    ours: Callable[[Any], Any]
    plain: Callable[[Any], list[Plain]]
    flops: Callable[[Any], float]
    size: Callable[[Any], float]
    passes: Callable[[Any], int] | None = None
    check: Callable[[Any, Any], None] | None = None
    gigabytes: float = 8.0
    seconds: float = 10.0
    uploads: bool = False


@dataclass
class Row:
    """What came out: of ours, or of a rival. Rates are of the task's operations, whoever does fewer."""

    case: str
    pool: str
    side: str
    ms: float
    times: list[float] = field(repr=False)
    extrapolated: bool = False
    ratio: float | None = None
    tflops: float | None = None
    gbs: float | None = None
    passes: int | None = None
    peak_mb: float | None = None
    of_floor: float | None = None
    note: str = ""


# ---- data ----


def spectrum(n: int, d: int, device: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of a decaying spectrum with heavy-tailed norms, away from the origin."""
    rng = torch.Generator(device).manual_seed(seed)
    x = torch.empty(n, d, device=device)
    x.normal_(generator=rng)
    x.mul_(torch.arange(1, d + 1, device=device).pow(-0.5)).add_(0.1)
    x.mul_(torch.empty(n, 1, device=device).normal_(generator=rng).mul_(0.5).exp_())
    return x if dtype == x.dtype else x.to(dtype)


def distributions(*shape: int, device: str, peak: float = 3.0, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator(device).manual_seed(seed)
    logits = torch.empty(shape, device=device).normal_(generator=rng)
    if len(shape) == 3:  # the draws of a row have much in common
        logits.add_(torch.empty(shape[0], 1, shape[2], device=device).normal_(generator=rng))
    return logits.mul_(peak).softmax(-1)


def badge(n: int, c: int, d: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of gradient embeddings: p - onehot(argmax p), and features."""
    a = distributions(n, c, device=device)
    a[torch.arange(n, device=device), a.argmax(1)] -= 1
    return a, spectrum(n, d, device, seed=1)


# ---- plain twins for a GPU: chunks that fill it, nothing that waits for the host ----


def plain_k_center(x: torch.Tensor, k: int, start: int = 0) -> Selection:
    norms = torch.cat([some.float().square().sum(1) for some in x.split(1 << 16)])
    d2 = torch.full_like(norms, torch.inf)
    pick = torch.tensor([start], device=x.device)
    picks, squared = [], []
    for _ in range(k):
        picks.append(pick)
        squared.append(d2[pick])
        product = torch.mv(x, x[pick].squeeze(0)).float()
        torch.minimum(d2, torch.add(norms + norms[pick], product, alpha=-2).clamp_(min=0), out=d2)
        d2[pick] = -1
        pick = d2.argmax(0, keepdim=True)
    return Selection(torch.cat(picks), torch.cat(squared).sqrt())


def plain_knn(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    norms = y.square().sum(1)
    parts = [
        torch.addmm(norms, some, y.t(), alpha=-2).add_(some.square().sum(1, keepdim=True)).topk(k, largest=False)
        for some in x.split(max(1, _CHUNK // len(y)))
    ]
    return torch.cat([p[0] for p in parts]).clamp_(min=0).sqrt_(), torch.cat([p[1] for p in parts])


def plain_kl(p: torch.Tensor, q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    log_q = q.log().t()
    parts = [
        torch.addmm(-torch.special.entr(some).sum(1, keepdim=True), some, log_q, alpha=-1).topk(k, largest=False)
        for some in p.split(max(1, _CHUNK // len(q)))
    ]
    return torch.cat([v[0] for v in parts]), torch.cat([v[1] for v in parts])


def plain_coverage(x: torch.Tensor, k: int) -> Selection:
    x = torch.nn.functional.normalize(x)
    level = x.new_zeros(len(x))
    open_ = torch.ones_like(level, dtype=torch.bool)
    picks, gains = [], []
    for _ in range(k):
        gain = torch.cat([(s @ x.t()).sub_(level).clamp_(min=0).sum(1) for s in x.split(max(1, _CHUNK // len(x)))])
        pick = gain.masked_fill_(~open_, -1).argmax(0, keepdim=True)
        picks.append(pick)
        gains.append(gain[pick])
        open_[pick] = False
        level = torch.maximum(level, (x @ x[pick].t()).squeeze(1))
    return Selection(torch.cat(picks), torch.cat(gains))


# ---- checks: near-ties part two sequences of picks, so their values are compared ----


def same_scores(rtol: float) -> Callable[[Any, Any], None]:
    def check(ours: Any, theirs: Any) -> None:
        a, b = ours.scores.double().cpu(), theirs.scores.double().cpu()
        n = min(len(a), len(b))
        torch.testing.assert_close(b[:n], a[:n], rtol=rtol, atol=1e-3)

    return check


def same_values(ours: Any, theirs: Any) -> None:
    a, b = ours[0].double(), theirs[0].double()
    torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-2 * float(a.median()) + 1e-3)


# ---- cases ----


def seeding(
    name: str,
    n: int,
    d: int,
    k: int,
    *,
    fewer: int | None = None,
    dtype: torch.dtype = torch.float32,
    seconds: float = 10.0,
    host: bool = False,
) -> Case:
    """k-center greedy or k-means++; the plain loops make `fewer` picks."""
    small_n, small_k = 3000, 60

    def sizes(data: tuple[torch.Tensor, int, int]) -> tuple[float, float]:
        x, picks, _ = data
        return 2.0 * x.numel() * picks, float(x.nbytes)

    def make(device: str, small: bool) -> tuple[torch.Tensor, int, int]:
        x = spectrum(small_n if small else n, min(d, 64) if small else d, device, dtype=dtype)
        x = x.cpu() if host else x
        return x, small_k if small else k, small_k // 2 if small else fewer or k

    def pool(x: torch.Tensor) -> Pool:
        return Pool(x, "features", device="cuda" if host and torch.cuda.is_available() else None)

    def run(data: tuple[torch.Tensor, int, int]) -> Any:
        x, picks, _ = data
        if name == "k_center_greedy":
            return k_center.select(pool(x), picks, None, 0, "euclidean", None, track=False, progress=False)
        return kmeans.select(pool(x), picks, None, None, 0, track=False, progress=False)

    def ours(data: tuple[torch.Tensor, int, int]) -> Any:
        x, picks, _ = data
        if host:
            found = run(data)
            return Selection(found.indices.cpu(), found.squared.sqrt().cpu())
        if name == "k_center_greedy":
            return alk.k_center_greedy(x, picks, start=0)
        return alk.kmeans_plusplus(x, picks, generator=0)

    def plain(data: tuple[torch.Tensor, int, int]) -> list[Plain]:
        x, picks, some = data
        share = some / picks
        if host:
            return []
        if name == "k_center_greedy":
            twins = [Plain("plain PyTorch", lambda: plain_k_center(x, some), share)]
            if dtype == torch.float32:  # the twin of the tests: waits for each pick
                twins.append(Plain("plain, a wait a pick", lambda: reference.k_center_greedy(x, some, start=0), share))
            return twins
        seed = torch.Generator().manual_seed(0)
        return [Plain("plain PyTorch", lambda: reference.kmeans_plusplus(x, some, generator=seed), share)]

    kind = str(dtype).removeprefix("torch.")
    size = n * d * dtype.itemsize / 1e9
    most = size + n * d * 4 / 1e9  # the twin squares the pool; a bfloat16 one is rounded from float32
    return Case(
        name=name,
        pool=f"synthetic {n} x {d} {kind}, k = {k}" + (", streamed from host memory" if host else ""),
        make=make,
        ours=ours,
        plain=plain,
        flops=lambda data: sizes(data)[0],
        size=lambda data: sizes(data)[1],
        passes=lambda data: run(data).state.passes,
        # products of bfloat16 rows come out rounded to bfloat16
        check=same_scores(2e-3) if name == "k_center_greedy" and dtype == torch.float32 else None,
        gigabytes=most + 2,
        seconds=seconds,
        uploads=host,
    )


def badge_case() -> Case:
    def make(device: str, small: bool) -> Any:
        return (badge(2000, 30, 40, device), 50) if small else (badge(100_000, 1000, 512, device), 1000)

    return Case(
        name="kmeans_plusplus",
        pool="BADGE, synthetic 100000 x (1000 and 512), k = 1000",
        make=make,
        ours=lambda d: alk.kmeans_plusplus(d[0], d[1], generator=0),
        plain=lambda d: [
            Plain(
                "plain PyTorch, factored",
                lambda: reference.kmeans_plusplus(d[0], d[1], generator=torch.Generator().manual_seed(0)),
            )
        ],
        flops=lambda d: 2.0 * sum(f.numel() for f in d[0]) * d[1],
        size=lambda d: sum(f.nbytes for f in d[0]),
        passes=lambda d: (
            kmeans.select(Pool(d[0], "features"), d[1], None, None, 0, track=False, progress=False).state.passes
        ),
        gigabytes=6,
    )


def batchbald_case(b: int, rivals: bool) -> Case:
    return Case(
        name="batchbald",
        pool=f"synthetic 50000 x 100 draws x 10 classes, b = {b}",
        make=lambda device, small: distributions(*((300, 20, 4) if small else (50_000, 100, 10)), device=device),
        ours=lambda p: alk.batchbald(p, b, generator=0),
        plain=lambda p: [Plain("plain PyTorch, enumerated", lambda: reference.batchbald(p, b))] if rivals else [],
        flops=lambda p: 0.0,  # lazy: how many candidates are looked at depends on the data
        size=lambda p: p.nbytes,
        check=same_scores(1e-2),
        gigabytes=4,
        seconds=25,
    )


def knn_case() -> Case:
    def make(device: str, small: bool) -> Any:
        n, d = (1000, 16) if small else (100_000, 128)
        return spectrum(n, d, device), spectrum(n, d, device, seed=1)

    return Case(
        name="knn",
        pool="synthetic 100000 x 100000 x 128, k = 10",
        make=make,
        ours=lambda d: alk.knn(*d, 10),
        plain=lambda d: [Plain("plain PyTorch", lambda: plain_knn(*d, 10))],
        flops=lambda d: 2.0 * d[0].numel() * len(d[1]),
        size=lambda d: d[0].nbytes + d[1].nbytes,
        check=same_values,
    )


def kl_case() -> Case:
    def make(device: str, small: bool) -> Any:
        n, c = (1000, 10) if small else (100_000, 100)
        return tuple(distributions(n, c, device=device, peak=1.0, seed=s) for s in (0, 1))

    return Case(
        name="pairwise_kl",
        pool="synthetic 100000 x 100000 x 100, 10 smallest",
        make=make,
        ours=lambda d: alk.pairwise_kl(*d, reduce="topk", k=10),
        plain=lambda d: [Plain("plain PyTorch", lambda: plain_kl(*d, 10))],
        flops=lambda d: 2.0 * d[0].numel() * len(d[1]),
        size=lambda d: d[0].nbytes + d[1].nbytes,
        check=same_values,
    )


def coverage_case() -> Case:
    def make(device: str, small: bool) -> Any:
        return (spectrum(1000, 16, device), 10, 3) if small else (spectrum(100_000, 128, device), 100, 5)

    return Case(
        name="greedy_coverage",
        pool="synthetic 100000 x 128, cosine, 100 picks",
        make=make,
        ours=lambda d: alk.greedy_coverage(d[0], d[1]),
        plain=lambda d: [Plain("plain PyTorch", lambda: plain_coverage(d[0], d[2]), d[2] / d[1])],
        flops=lambda d: 2.0 * d[0].numel() * len(d[0]),  # of the first pick: no rule can do with less
        size=lambda d: d[0].nbytes,
        check=same_scores(1e-3),
        seconds=20,
    )


CASES = [
    seeding("k_center_greedy", 50_000, 256, 1000),
    seeding("k_center_greedy", 1_000_000, 768, 10_000, fewer=1000, seconds=15),
    seeding("k_center_greedy", 1_281_167, 2048, 10_000, fewer=200, seconds=25),
    seeding("kmeans_plusplus", 50_000, 256, 1000),
    seeding("kmeans_plusplus", 1_000_000, 768, 10_000, fewer=1000, seconds=15),
    badge_case(),
    seeding("k_center_greedy", 1_281_167, 2048, 10_000, fewer=200, dtype=torch.bfloat16, seconds=25),
    knn_case(),
    kl_case(),
    coverage_case(),
    batchbald_case(4, rivals=True),
    batchbald_case(10, rivals=False),
    seeding("kmeans_plusplus", 1_281_167, 2048, 10_000, fewer=200, seconds=25),
    seeding("k_center_greedy", 1_000_000, 768, 10_000, host=True, seconds=20),
]


# ---- measuring ----


def measure_floor(device: str, small: bool) -> Floor:
    product = Sgemm(device, small)
    for _ in range(3):
        product.call()
    flops = product.rate([seconds_of(product.call) for _ in range(10)])
    a = torch.rand((1 << 22) if small else (1 << 29), device=device)
    b = torch.empty_like(a)
    times = [seconds_of(synchronized(lambda: b.copy_(a), device)) for _ in range(12)][2:]
    copy = 2 * a.nbytes / float(np.median(times))
    if device == "cpu":
        return Floor(flops, copy, copy)
    host = torch.rand(1 << 26, pin_memory=True)
    times = [seconds_of(synchronized(lambda: b[: 1 << 26].copy_(host, non_blocking=True), device)) for _ in range(7)]
    return Floor(flops, copy, host.nbytes / float(np.median(times[2:])))


def rounds_of(call: Callable[[], Any], seconds: float) -> list[float]:
    """At least two rounds (one where it takes long), then more while they fit into `seconds`; nine at most."""
    times = [seconds_of(call)]
    while len(times) < 9 and (len(times) < 2 or sum(times) < seconds) and sum(times) < 4 * seconds:
        times.append(seconds_of(call))
    return times


def measure(case: Case, device: str, small: bool, floor: Floor) -> list[Row]:
    data = case.make(device, small)
    ours = synchronized(lambda: case.ours(data), device)
    results: list[Any] = []
    peak = peak_memory(lambda: results.append(ours()), device)  # warms up, too
    passes = case.passes(data) if case.passes else None
    times = rounds_of(ours, 0.1 if small else 3.0)
    seconds = float(np.median(times))
    flops, size = case.flops(data), case.size(data)
    once = size / (floor.upload if case.uploads else floor.copy)
    walked = size * (passes or 1)
    best = max(flops / floor.flops, once * (passes or 1) if case.uploads else once)
    rows = [
        Row(
            case=case.name,
            pool=case.pool,
            side="alkernels",
            ms=1e3 * seconds,
            times=times,
            ratio=1.0,
            tflops=flops / seconds / 1e12 if flops else None,
            gbs=walked / seconds / 1e9 if passes else None,
            passes=passes,
            peak_mb=None if peak is None else peak / 1e6,
            of_floor=best / seconds,
        )
    ]
    for plain in case.plain(data):
        call = synchronized(plain.call, device)
        theirs = call()
        note = ""
        if case.check is not None:
            try:
                case.check(results[0], theirs)
            except AssertionError as error:
                note = "DISAGREES: " + " ".join(str(error).split())[:200]
        del theirs
        times = rounds_of(call, 0.05 if small else 2.0)
        seconds = float(np.median(times)) / plain.share
        rows.append(
            Row(
                case=case.name,
                pool=case.pool,
                side=plain.name,
                ms=1e3 * seconds,
                times=times,
                extrapolated=plain.share < 1,
                ratio=1e3 * seconds / rows[0].ms,
                tflops=flops / seconds / 1e12 if flops and case.name != "greedy_coverage" else None,
                of_floor=best / seconds,
                note=note or (f"extrapolated from {plain.share:.3g} of the picks" if plain.share < 1 else ""),
            )
        )
    return rows


# ---- the table ----


def cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def table(about: dict[str, Any], floor: Floor, rows: list[Row], skipped: list[str]) -> list[str]:
    lines = [
        report.title(about),
        f"float32 product {floor.flops / 1e12:.1f} TFLOP/s (TF32 off), copy {floor.copy / 1e9:.0f} GB/s, "
        f"from pinned host memory {floor.upload / 1e9:.1f} GB/s",
        "medians; x = times the time of alkernels; TFLOP/s and floor: of the task's operations at the product's rate,",
        "or of one reading of the input where that is longer; MB beyond the input; GB/s of the pool's passes",
        f"{'':28} {'ms':>10} {'x':>8} {'TFLOP/s':>8} {'GB/s':>7} {'passes':>7} {'peak MB':>8} {'of floor':>9}",
    ]
    previous = None
    for r in rows:
        if (r.case, r.pool) != previous:
            previous = (r.case, r.pool)
            lines.append(f"{r.case}, {r.pool}")
        lines.append(
            f"  {r.side:26} {r.ms:10.2f} {cell(r.ratio, '.2f'):>8} {cell(r.tflops, '.2f'):>8} {cell(r.gbs, '.0f'):>7} "
            f"{cell(r.passes, 'd'):>7} {cell(r.peak_mb, '.0f'):>8} {cell(r.of_floor, '.3f'):>9}  {r.note}".rstrip()
        )
    return lines + [f"left out: {reason}" for reason in skipped]


def save(about: dict[str, Any], floor: Floor, rows: list[Row], skipped: list[str]) -> None:
    slug = re.sub(r"[^a-z0-9]+", "-", about["gpu"].lower()).strip("-")
    numbers = {"machine": about, "floor": asdict(floor), "rows": [asdict(r) for r in rows], "left out": skipped}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{slug}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    (RESULTS / f"{slug}.txt").write_text("\n".join(table(about, floor, rows, skipped)) + "\n")


# ---- small integers: every path gives the same picks ----


def integer_calls() -> dict[str, Callable[[Callable[[torch.Tensor], torch.Tensor]], Any]]:
    """Each op once or more, from a function that moves tensors to a device."""
    rng = torch.Generator().manual_seed(0)

    def integers(*shape: int, high: int = 8) -> torch.Tensor:
        return torch.randint(-high, high + 1, shape, generator=rng).float()

    x, known, a = integers(700, 33), integers(20, 33), integers(700, 5, high=3)
    wide = integers(150, 300)
    counts = torch.randint(1, 9, (200, 8, 5), generator=rng).float()
    probs = counts / counts.sum(-1, keepdim=True)
    p, q = probs[:, 0], probs[:90, 1]
    near = torch.randint(0, 90, (200, 3), generator=rng)
    calls: dict[str, Any] = {
        "k_center_greedy": lambda to: alk.k_center_greedy(to(x), 200, start=0, return_distances=True),
        "k_center_greedy, labelled": lambda to: alk.k_center_greedy(to(x), 100, labeled=to(known)),
        "k_center_greedy, wide": lambda to: alk.k_center_greedy(to(wide), 150, start=3),
        "k_center_greedy, cosine": lambda to: alk.k_center_greedy(to(x), 2, start=0, metric="cosine").scores,
        "k_center_greedy, symmetric_kl": lambda to: alk.k_center_greedy(to(p), 5, start=0, metric="symmetric_kl"),
        "kmeans_plusplus": lambda to: alk.kmeans_plusplus(to(x), 200, generator=0, return_distances=True),
        "kmeans_plusplus, outer": lambda to: alk.kmeans_plusplus((to(a), to(x)), 100, generator=0),
        "greedy_coverage, tophat": lambda to: alk.greedy_coverage(to(x), 15, kernel="tophat", bandwidth=30.5),
        "greedy_coverage, rbf": lambda to: alk.greedy_coverage(to(x), 5, kernel="rbf", bandwidth=20.0),
        "greedy_coverage, cosine": lambda to: alk.greedy_coverage(to(x), 5),
        "knn": lambda to: alk.knn(to(known), to(x), 20),
        "bald": lambda to: alk.bald(to(probs)),
        "epig": lambda to: alk.epig(to(probs), to(probs[:7])),
        "joint_entropy": lambda to: alk.joint_entropy(to(probs), to(probs[:3])),
        "batchbald": lambda to: alk.batchbald(to(probs), 4),
        "pairwise_kl": lambda to: alk.pairwise_kl(to(p), to(q)),
        "pairwise_kl, mean": lambda to: alk.pairwise_kl(to(p), to(q), reduce="mean"),
        "pairwise_kl, topk": lambda to: alk.pairwise_kl(to(p), to(q), reduce="topk", k=4),
        "pairwise_kl, neighbours": lambda to: alk.pairwise_kl(to(p), to(q), neighbors=to(near)),
    }
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        calls[f"k_center_greedy, {name}"] = lambda to, dtype=dtype: alk.k_center_greedy(to(x.to(dtype)), 100, start=0)
        calls[f"knn, {name}"] = lambda to, dtype=dtype: alk.knn(to(known.to(dtype)), to(x.to(dtype)), 5)
    return calls


def smoke(device: str) -> list[str]:
    """Runs every op once; the names of those that differ from the CPU."""
    wrong = []
    for name, call in integer_calls().items():
        try:
            found, expected = (r if isinstance(r, tuple) else (r,) for r in (call(lambda t: t.to(device)), call(_same)))
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.device.type == device, f"on {ours.device}"
                if ours.is_floating_point():
                    torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-4, atol=2e-6)
                else:
                    assert torch.equal(ours.cpu(), theirs), "other indices"
            print(f"  {name}: as on the CPU", flush=True)
        except Exception as error:  # the other ops still count
            wrong.append(name)
            print(f"  {name}: WRONG: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
            if device == "cuda" and "CUDA error" in str(error):
                print("  the device is gone: nothing more can be run in this process", flush=True)
                return wrong
    return wrong


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget", type=float, default=200.0, help="seconds; cases that do not fit are left out")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run")
    parser.add_argument("--smoke", action="store_true", help="only compare every op with the CPU on small integers")
    parser.add_argument("--case", default="", help="only cases whose op and pool match this regular expression")
    args = parser.parse_args()
    began = time.monotonic()
    if args.device == "cuda" and not (torch.cuda.is_available() and alk.has_cuda_kernels()):
        missing = "CUDA kernels in this build" if torch.cuda.is_available() else "GPU that torch can use"
        print(f"no {missing}: nothing is measured; --device cpu --small runs the same code")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore", message=r"after \d+ of \d+ picks the batch holds")  # is how BatchBALD goes on
    wrong = smoke(args.device)
    if args.smoke or wrong:
        print(f"{len(wrong)} of {len(integer_calls())} wrong")
        return int(bool(wrong))
    about = report.machine()
    if args.device == "cpu":
        about["gpu"] = None
    floor = measure_floor(args.device, args.small)
    rows: list[Row] = []
    skipped: list[str] = []
    if args.small:
        print("tiny stand-ins for the pools named: the numbers mean nothing")
    print("\n".join(table(about, floor, rows, skipped)), flush=True)
    for case in CASES:
        label = f"{case.name}, {case.pool}"
        if not re.search(args.case, label):
            continue
        left = args.budget - (time.monotonic() - began)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0] / 1e9
            if not args.small and free < case.gigabytes:
                skipped.append(f"{label}: needs {case.gigabytes:.0f} GB, {free:.0f} are free")
        if not args.small and left < case.seconds:
            skipped.append(f"{label}: needs some {case.seconds:.0f} s, {max(0.0, left):.0f} are left")
        if skipped and skipped[-1].startswith(label):
            print(f"left out: {skipped[-1]}", flush=True)
            continue
        share = _streaming.SHARE
        _streaming.SHARE = 0.0 if case.uploads else share  # it would fit, but it is the streaming that is timed
        try:
            new = measure(case, args.device, args.small, floor)
            rows += new
            print("\n".join(table(about, floor, new, [])[5:]), flush=True)
        except Exception as error:  # a case that fails leaves the others
            skipped.append(f"{label}: FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            print(skipped[-1], flush=True)
        finally:
            _streaming.SHARE = share
        if args.device == "cuda" and not args.small:
            save(about, floor, rows, skipped)
    print(f"{time.monotonic() - began:.0f} s")
    return int(any("DISAGREES" in r.note for r in rows) or any("FAILED" in s for s in skipped))


if __name__ == "__main__":
    sys.exit(main())
