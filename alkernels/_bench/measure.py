"""Times, memory and agreement of a case's sides."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alkernels._bench.cases import OURS, Case, Side
from alkernels._load import has_cuda_kernels

_SHORT = 0.05  # seconds
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass
class Row:
    """What one side took on one pool.

    Attributes
    ----------
    op, pool, device, side : str
    seconds : float
        The median.
    spread : float
        The distance of the quartiles over the median.
    ratio : float, optional
        `seconds` over those of alkernels on the same pool and device; None where those are not known.
    rate : float
        Work a second.
    unit : str
        Of `rate`.
    peak_mb : float, optional
        Memory needed beyond what was held before the call; None where the system does not tell.
    passes : int, optional
    of_sgemm : float, optional
        `seconds` over those of one large float32 matrix product of as many operations.
    times : list of float
        Seconds of each round.
    """

    op: str
    pool: str
    device: str
    side: str
    seconds: float
    spread: float
    ratio: float | None
    rate: float
    unit: str
    peak_mb: float | None
    passes: int | None
    of_sgemm: float | None
    times: list[float]


def devices() -> list[str]:
    """Where kernels are and can run."""
    return ["cpu", "cuda"] if has_cuda_kernels() and torch.cuda.is_available() else ["cpu"]


def moved(data: Any, device: str) -> Any:
    return type(data)(*(v.to(device) if isinstance(v, torch.Tensor) else v for v in data))


def label(pool: str, data: Any) -> str:
    """The pool's name with the sizes of its data, of the first two arrays."""
    shapes = [" x ".join(map(str, v.shape)) for v in data if isinstance(v, torch.Tensor)][:2]
    numbers = [f", {n} = {v}" for n, v in data._asdict().items() if isinstance(v, int)]
    return f"{pool} {' and '.join(shapes)}{''.join(numbers)}"


def sides_on(case: Case, device: str, main_only: bool = False) -> dict[str, Side]:
    """The sides that run on a device; with `main_only` ours and the plain twin."""
    sides = list(case.sides.items())[: 2 if main_only else None]
    return {name: side for name, side in sides if device == "cpu" or not side.cpu_only}


def synchronized(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The call, over when the device is done."""
    if device == "cpu":
        return call

    def finished() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return finished


def check_agreement(case: Case, pool: str, side: str, data: Any, ours: Any, theirs: Any) -> None:
    try:
        case.check(data, ours, theirs)
    except AssertionError as error:
        raise ValueError(f"{case.op} on {pool}: {OURS} and {side} do not agree: {error}") from error


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024


def peak_memory(call: Callable[[], Any], device: str) -> int | None:
    """Bytes that one call needs beyond what was held before it; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held
    try:
        libc = ctypes.CDLL(None)
        # what is freed goes back at once: small blocks between large ones would keep the heap from shrinking, by as
        # much as chance and earlier calls have it
        libc.mallopt(_M_MMAP_THRESHOLD, 2**17)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (AttributeError, OSError, TypeError):  # not Linux with glibc, or not allowed
        return None
    try:
        call()
    finally:
        # where glibc's own rule ends up once large blocks were freed
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**26)
    return max(0, _status("VmHWM") - before)


def seconds_of(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    del result  # freed outside the time
    return seconds


def _turn(call: Callable[[], Any]) -> float:
    """Seconds of one call; of a second one where it is so short that it feels what others left in the caches."""
    seconds = seconds_of(call)
    return seconds if seconds > _SHORT else seconds_of(call)


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: tuple[int, int], budget: float
) -> dict[str, list[float]]:
    """Seconds of each call, all of them once a round so that noise hits all alike.

    As few rounds as ``rounds[0]``; more, up to ``rounds[1]``, until `budget` seconds are spent.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() - began > budget:
            break
        for name, call in calls.items():
            times[name].append(_turn(call))
    return times


class Sgemm:
    """One large float32 matrix product, the floor of all that multiplies and adds."""

    def __init__(self, device: str, quick: bool) -> None:
        n = 8192 if device == "cuda" else 1024 if quick else 2048
        a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
        self.call = synchronized(partial(torch.matmul, a, b), device)
        self.operations = 2 * n**3

    def rate(self, times: Sequence[float]) -> float:
        """Operations a second at the median of these times."""
        return self.operations / float(np.median(times))


def row(
    case: Case,
    pool: str,
    device: str,
    side: str,
    data: Any,
    times: Sequence[float],
    peak: int | None,
    sgemm_rate: float,
) -> Row:
    """A row of the table; `sgemm_rate` in operations a second."""
    low, seconds, high = (float(q) for q in np.quantile(times, [0.25, 0.5, 0.75]))
    work = case.work(data)
    passes = case.sides[side].passes
    return Row(
        op=case.op,
        pool=pool,
        device=device,
        side=side,
        seconds=seconds,
        spread=(high - low) / seconds,
        ratio=None,
        rate=work / seconds / 1e9,
        unit=case.unit,
        peak_mb=None if peak is None else peak / 1e6,
        passes=None if passes is None else passes(data),
        of_sgemm=seconds * sgemm_rate / work if case.unit == "GFLOP/s" else None,
        times=list(times),
    )


def compare(rows: Iterable[Row]) -> None:
    """Fills in the ratios."""
    rows = list(rows)
    ours = {(r.op, r.pool, r.device): r.seconds for r in rows if r.side == OURS}
    for r in rows:
        base = ours.get((r.op, r.pool, r.device))
        r.ratio = None if base is None else r.seconds / base


def race(case: Case, pool: str, data: Any, device: str, quick: bool) -> list[Row]:
    """Checks that the sides agree, then times them in turns.

    Parameters
    ----------
    case : Case
    pool : str
        The pool's label.
    data : named tuple
        On `device` already.
    device : str
    quick : bool
        Ours and the plain twin only, fewer rounds.

    Raises
    ------
    ValueError
        If a side does not agree with ours.
    """
    sides = sides_on(case, device, main_only=quick)
    calls = {name: synchronized(side.prepare(data), device) for name, side in sides.items()}
    peaks = {}
    ours = calls[OURS]()
    for name, call in calls.items():
        if name != OURS:
            result = call()
            if sides[name].checked:
                check_agreement(case, pool, name, data, ours, result)
            del result
        peaks[name] = peak_memory(call, device)
    product = Sgemm(device, quick)
    # the product in turn with the others, under the same noise
    times = interleaved({**calls, "": product.call}, rounds=(2, 9) if quick else (3, 15), budget=1.5 if quick else 20.0)
    rate = product.rate(times.pop(""))
    rows = [row(case, pool, device, name, data, seconds, peaks[name], rate) for name, seconds in times.items()]
    compare(rows)
    return rows
