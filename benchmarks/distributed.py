"""What ranks send each other: passes, collectives and bytes of alkernels.distributed for 1 to 8 ranks.

python benchmarks/distributed.py [--ranks 1 2 4 8] [--small] [--json FILE]

Starts that many processes of one thread each on this machine (gloo, loopback), with equal shards of real pools: GloVe
vectors, convolutional features of MNIST, a small network's draws on digits. Counts do not depend on the machine. Times
do: where there are more ranks than cores, or they share one memory, they do not fall with the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import alkernels as alk
from alkernels._bench.data import digit_draws, glove, mnist_features
from alkernels._bench.report import machine


def pools(small: bool) -> dict[str, torch.Tensor]:
    """The pools by their names."""
    return {
        "GloVe": glove(4000 if small else 100_000),
        "MNIST conv": mnist_features(2 if small else 4),
        "GloVe, fewer": glove(1000 if small else 20_000),
        "digits": digit_draws(200 if small else 1797, 50, 4.0),
    }


def cases(small: bool) -> list[tuple[str, str, int, dict[str, Any]]]:
    """Op, pool, picks, options."""
    k = 100 if small else 1000
    return [
        ("k_center_greedy", "GloVe", k, {"start": 0}),
        ("k_center_greedy", "MNIST conv", k, {"start": 0}),
        ("kmeans_plusplus", "GloVe", k, {"start": 0, "generator": 0}),
        ("kmeans_plusplus", "MNIST conv", k, {"start": 0, "generator": 0}),
        ("greedy_coverage", "GloVe, fewer", 5 if small else 20, {}),
        ("batchbald", "digits", 4, {"generator": 0}),
        ("knn", "GloVe, fewer", 10, {}),
    ]


def measure(rank: int, size: int, folder: Path, small: bool) -> None:
    """One rank: all cases, of which the first rank writes the numbers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'store-{size}'}", rank=rank, world_size=size)
    rows = []
    for op, pool, k, options in cases(small):
        x = torch.from_numpy(np.load(folder / f"{pool}.npy"))
        shard = x[len(x) * rank // size : len(x) * (rank + 1) // size].clone()
        arguments = (shard, shard) if op == "knn" else (shard,)
        call = getattr(alk.distributed, op)
        seconds = []
        for _ in range(3):
            dist.barrier()
            began = time.perf_counter()
            with alk.distributed.traffic() as sent:
                out = call(*arguments, k, **options)
            seconds.append(time.perf_counter() - began)
        row = {
            "op": op,
            "pool": f"{pool}, {' x '.join(map(str, x.shape))}",
            "k": k,
            "ranks": size,
            "blocks": sent.count({"batchbald": "pick", "knn": "points", "greedy_coverage": "gains"}.get(op, "block")),
            "collectives": sent.collectives,
            "bytes a rank": sent.bytes,
            "largest message": sent.largest,
            "pool bytes": x.nbytes,
            "seconds": sorted(seconds)[1],
        }
        picks = out.indices if op != "knn" else out.indices.sum().view(1)
        rows.append((row, picks.tolist()))
    if rank == 0:
        (folder / f"rows-{size}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], metavar="R")
    parser.add_argument("--small", action="store_true", help="small pools, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="where to write every number")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for pool, x in pools(args.small).items():
            np.save(folder / f"{pool}.npy", x.numpy())
        first: dict[str, list[int]] = {}
        for size in args.ranks:
            torch.multiprocessing.spawn(measure, args=(size, folder, args.small), nprocs=size)
            for row, picks in json.loads((folder / f"rows-{size}.json").read_text()):
                # of picks, how many stand where those of the first number of ranks do
                before = first.setdefault(f"{row['op']} {row['pool']}", picks)
                row["same picks"] = sum(a == b for a, b in zip(picks, before, strict=True)) / len(picks)
                if row["op"] == "knn":
                    del row["same picks"]  # each rank has its own queries
                table.append(row)
    table.sort(key=lambda row: (row["op"], row["pool"], row["ranks"]))
    columns = ["ranks", "blocks", "collectives", "MB a rank", "largest, MB", "of the pool", "seconds", "same picks"]
    print(f"{'op, pool':<50}" + "".join(f"{column:>13}" for column in columns))
    for row in table:
        cells = [
            str(row["ranks"]),
            str(row["blocks"]),
            str(row["collectives"]),
            f"{row['bytes a rank'] / 1e6:.3f}",
            f"{row['largest message'] / 1e6:.3f}",
            f"{row['bytes a rank'] / row['pool bytes']:.3f}",
            f"{row['seconds']:.3f}",
            f"{row['same picks']:.3f}" if "same picks" in row else "",
        ]
        print(f"{row['op'] + ', ' + row['pool']:<50}" + "".join(f"{cell:>13}" for cell in cells))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"one thread a rank on {cores} cores: times of more ranks than that say nothing about more machines")
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": about, "rows": table}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
