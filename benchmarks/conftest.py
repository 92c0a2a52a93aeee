"""Collects what the benchmarks measured and prints it as one table: ours against the rivals, in the same run."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

import pytest
import torch
from data import SMALL

ROWS: list[dict] = []


def pytest_configure(config):
    torch.set_num_threads(2)


def _status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def peak_memory(function) -> int:
    """Bytes that one call needs beyond what the process held before it; 0 where the system does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier calls left in the heap
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return 0
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


@pytest.fixture
def measure(benchmark):
    """measure(op, pool, who, function, operations, ...): times `function`, returns its result."""

    def run(op, pool, who, function, operations, *, rounds=9, floor=None, **facts):
        memory = peak_memory(function)
        result = function()
        benchmark.group = f"{op}, {pool}"
        benchmark.pedantic(function, warmup_rounds=1, rounds=1 if SMALL else rounds)
        if benchmark.stats is not None:
            stats = benchmark.stats.stats
            row = {
                "op": op,
                "pool": pool,
                "who": who,
                "seconds": stats.median,
                "spread": stats.iqr / stats.median,
                "GFLOP/s": operations / stats.median / 1e9,
                "MB": memory / 1e6,
                **({"of sgemm": stats.median / floor} if floor else {}),
                **facts,
            }
            benchmark.extra_info.update(row)
            ROWS.append(row)
        return result

    return run


@pytest.fixture(scope="session")
def sgemm_seconds():
    """Seconds that one large matrix product of so many operations takes: the floor."""
    n = 256 if SMALL else 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begin)
    rate = 2 * n**3 / sorted(times)[len(times) // 2]
    return lambda operations: operations / rate


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{torch.get_num_threads()} threads, torch {torch.__version__}; x = times the time of alkernels, medians")
    write(f"{'':44} {'ms':>9} {'spread':>7} {'x':>7} {'GFLOP/s':>8} {'MB':>7} {'passes':>7} {'of sgemm':>9}")
    for op, pool in dict.fromkeys((r["op"], r["pool"]) for r in ROWS):
        rows = [r for r in ROWS if (r["op"], r["pool"]) == (op, pool)]
        ours = next((r["seconds"] for r in rows if r["who"] == "alkernels"), float("nan"))
        write(f"{op}, {pool}")
        for r in rows:
            of_sgemm = f"{r['of sgemm']:9.2f}" if "of sgemm" in r else " " * 9
            write(
                f"  {r['who']:42} {1e3 * r['seconds']:9.1f} {r['spread']:7.2f} {r['seconds'] / ours:7.2f}"
                f" {r['GFLOP/s']:8.0f} {r['MB']:7.1f} {r.get('passes', ''):>7} {of_sgemm}"
            )
