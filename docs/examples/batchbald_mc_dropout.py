"""BatchBALD on draws of MC dropout, where many images are there three times.

BALD looks at each image alone, and so picks copies of the most informative one. BatchBALD counts what a batch says as
a whole: the second copy says nothing new. The pool is 600 of scikit-learn's digits, each three times with a little
noise; a small network with dropout starts from 20 labels and asks for 10 at a time.

About a minute and a half on two cores; with --small ten seconds or so. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import alkernels as alk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="fewer rounds, seeds and draws")
parser.add_argument("--out", default="batchbald_mc_dropout.png", help="the picture (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
args = parser.parse_args()
seeds, rounds, draws, epochs = (2, 2, 20, 150) if args.small else (5, 8, 50, 300)

# ---- data: digits of 8 x 8 pixels; the pool is 600 of them, three times with noise ----

pixels, labels = load_digits(return_X_y=True)
pixels, labels = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels)


def split(seed: int) -> tuple[torch.Tensor, ...]:
    """Pool, its classes, where it is labelled at the start (two images a class), and the rest, to measure on."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    images, test = order[:600], order[600:]
    copies = images.repeat(3)  # row i shows the image i % 600
    pool = pixels[copies] + 0.03 * torch.randn(len(copies), 64, generator=generator)
    start = torch.cat([(labels[images] == c).nonzero().flatten()[:2] for c in range(10)])
    return pool, labels[copies], start, pixels[test], labels[test]


# ---- a network with dropout, its training, and draws from it ----


def make() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(128, 10),
    )  # fmt: skip


def adam(parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)  # fused: less to do around tiny steps


def fit(net: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> alk.models.MCDropout:
    alk.models.fit(net, data, epochs=epochs, batch_size=len(data[0]), optimizer=adam)
    # a draw drops the same units for every row, so that draws say how labels of different rows go together
    return alk.models.MCDropout(net, draws=draws)


# ---- one batch by hand ----

pool, classes, start, test, test_classes = split(args.seed)
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(args.seed)
    posterior = fit(make(), (pool[start], classes[start]))
mc_probs = alk.collect(posterior, pool, "mc_probs")["mc_probs"]
unlabeled = torch.ones(len(pool), dtype=torch.bool)
unlabeled[start] = False
batches = {
    "bald": alk.select("bald", 10, mc_probs=mc_probs, candidates=unlabeled).indices,
    "batchbald": alk.select("batchbald", 10, mc_probs=mc_probs, candidates=unlabeled, generator=args.seed).indices,
}
print(f"draws {tuple(mc_probs.shape)}: rows, draws, classes")
for name, rows in batches.items():
    print(f"{name:<10} picks the images {(rows % 600).tolist()}")

# ---- and the loop: train, pick, label, again ----

strategies = ["random", "bald", "batchbald"]
accuracy = torch.zeros(len(strategies), seeds, rounds + 1, dtype=torch.float64)
copies = torch.zeros(len(strategies), seeds, rounds, dtype=torch.float64)
for s in range(seeds):
    pool, classes, start, test, test_classes = split(args.seed + s)

    def evaluate(
        posterior: alk.models.MCDropout, test: torch.Tensor = test, known: torch.Tensor = test_classes
    ) -> float:
        mean = alk.collect(posterior, test, "mc_probs")["mc_probs"].mean(1)
        return float((mean.argmax(1) == known).double().mean())

    for i, name in enumerate(strategies):
        learner = alk.ActiveLearner(
            pool,
            make=make,
            fit=fit,
            strategy=name,
            batch_size=10,
            labeled=start,
            oracle=lambda rows, classes=classes: classes[rows],
            evaluate=evaluate,
            generator=args.seed + s,
        )
        history = learner.run(rounds)
        accuracy[i, s] = torch.tensor([record["score"] for record in history], dtype=torch.float64)
        for r, batch in enumerate(learner.labeled[len(start) :].split(10)):
            copies[i, s, r] = 10 - len((batch % 600).unique())

labeled = [len(start) + 10 * r for r in range(rounds + 1)]
apart = (accuracy - accuracy[:1])[:, :, 1:].mean(2)  # beside random, paired by seed, averaged over the curve
shown = sorted({0, rounds // 2, rounds})
print(f"\naccuracy, mean of {seeds} seeds; beside random, paired, with the standard error")
print(
    f"{'strategy':<10}"
    + "".join(f"{labeled[r]:>4} labels" for r in shown)
    + "    curve - random  copies in a batch of 10"
)
for i, name in enumerate(strategies):
    cells = "".join(f"{accuracy[i, :, r].mean():>11.3f}" for r in shown)
    gain = f"{apart[i].mean():+.3f} ± {apart[i].std() / seeds**0.5:.3f}" if i else ""
    print(f"{name:<10}{cells}{gain:>18}{copies[i].mean():>24.1f}")

# ---- the picture ----

colors = {"random": "#777777", "bald": "#D55E00", "batchbald": "#0072B2"}
figure = Figure(figsize=(11, 4.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[5, 6])
axes = left.subplots()
for i, name in enumerate(strategies):
    mean = accuracy[i].mean(0)
    axes.plot(labeled, mean, "--" if name == "random" else "-", color=colors[name], linewidth=2.2, label=name)
    error = accuracy[i].std(0) / seeds**0.5
    axes.fill_between(labeled, mean - error, mean + error, color=colors[name], alpha=0.15, linewidth=0)
axes.set(xlabel="labels", ylabel=f"accuracy (mean of {seeds} seeds, band: standard error)")
axes.set_title("600 digits, each three times")
axes.legend(frameon=False)
axes.grid(color="#DDDDDD")
axes.spines[["top", "right"]].set_visible(False)
pool = split(args.seed)[0]
parts = right.subfigures(2, 1)
for part, (name, rows) in zip(parts, batches.items(), strict=True):
    images = (rows % 600).tolist()
    distinct = len(set(images))
    part.suptitle(f"First batch of {name}: {distinct} different images of 10", color=colors[name], fontsize=12)
    for k, panel in enumerate(part.subplots(2, 5).flat):
        panel.imshow(pool[rows[k]].view(8, 8), cmap="gray_r")
        panel.set(xticks=[], yticks=[])
        again = images[k] in images[:k]
        panel.spines[:].set(color="#D55E00" if again else "#BBBBBB", linewidth=3 if again else 1)
        panel.set_xlabel("copy" if again else " ", color="#D55E00", fontsize=9, labelpad=1)
figure.savefig(args.out, dpi=100)
print(f"\nsaved {args.out}")
