"""Learning curves: several strategies and random picks from the same starts, over several seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from alkernels._packages import package
from alkernels.learner import ActiveLearner
from alkernels.models.collecting import not_collected
from alkernels.models.fitting import fit
from alkernels.models.posterior import derived_seed
from alkernels.strategies._select import involved

# Of Okabe and Ito's palette, told apart by the colour-blind too; random is grey.
_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C564B"]
_RANDOM, _INK = "#777777", "#222222"
HEADS = ("linear", "mlp")


@dataclass
class Problem:
    """Rows with known labels, of which some are the pool and others tell how good a network is.

    Attributes
    ----------
    name : str
    features : Tensor of shape (N, D), float32
    labels : Tensor of shape (N,), int64
        Below `classes`.
    pool, test : Tensor
        Row numbers.
    """

    name: str
    features: Tensor
    labels: Tensor
    pool: Tensor
    test: Tensor

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


@dataclass
class Curves:
    """Accuracies of a problem: one curve a strategy and seed.

    Attributes
    ----------
    problem : str
    labeled : list of int
        How many labels there were at each point.
    accuracy : dict of str to Tensor of shape (seeds, points), float64
    seconds : dict of str to float
        Of picking, training and collecting, all seeds together.
    """

    problem: str
    labeled: list[int]
    accuracy: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def gain(self, name: str) -> tuple[float, float, float, float]:
        """Mean and standard error over seeds of the paired differences to random: of all points after the first on
        average, and of the last."""
        apart = (self.accuracy[name] - self.accuracy["random"])[:, 1:]
        values = [apart.mean(1), apart[:, -1]]
        errors = [v.std().item() / math.sqrt(len(v)) if len(v) > 1 else math.nan for v in values]
        return values[0].mean().item(), errors[0], values[1].mean().item(), errors[1]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "problem": self.problem,
            "labeled": self.labeled,
            "accuracy": {name: a.tolist() for name, a in self.accuracy.items()},
            "seconds": self.seconds,
        }


def check_strategy(name: str, options: dict[str, Any], head: str) -> None:
    """That a network's word is enough for it, and that network's."""
    strategies = involved(name, options)
    for e, lacking in not_collected(strategies):
        raise ValueError(
            f"strategies must be ones that a network's word is enough for; {e.name} needs {' and '.join(lacking)}"
        )
    for e in strategies.all:
        if head == "linear" and any({"mc_probs", "votes"} & {*group} for group in e.needs):
            raise ValueError(f"--head must be mlp, which has dropout to draw from, for {e.name}, got linear")


class _Mlp(nn.Sequential):
    """One hidden layer, with dropout for strategies that want draws."""

    def __init__(self, width: int, classes: int, hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))


def _make(head: str, width: int, classes: int) -> Callable[[], nn.Module]:
    return (lambda: _Mlp(width, classes)) if head == "mlp" else (lambda: nn.Linear(width, classes))


def _optimizer(head: str) -> Callable[[Any], torch.optim.Optimizer]:
    rate = 2e-3 if head == "mlp" else 5e-2
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2, fused=True)


def curves(
    problem: Problem,
    strategies: Sequence[tuple[str, str, dict[str, Any]]],
    *,
    rounds: int,
    batch_size: int,
    seeds: int,
    start: int,
    head: str,
    epochs: int,
    draws: int,
    seed: int,
    progress: bool,
) -> Curves:
    """Runs every strategy, given by label, name and options, and random, from the same labels and seeds."""
    chosen = [("random", "random", {}), *(s for s in strategies if s[0] != "random")]
    for _, name, options in chosen:
        check_strategy(name, options, head)
    x, y = problem.features, problem.labels
    if start + rounds * batch_size > len(problem.pool):
        raise ValueError(
            f"rounds x batch_size and the start must be at most the {len(problem.pool)} rows of the pool, got "
            f"{rounds} x {batch_size} + {start}"
        )
    found = Curves(problem.name, [start + i * batch_size for i in range(rounds + 1)])
    pool, test = x[problem.pool], x[problem.test]
    known = y[problem.pool]

    def train(net: nn.Module, data: Any) -> None:
        # draws from the learner's random numbers: others in each round and repetition
        fit(net, data, epochs=epochs, batch_size=max(1, len(data[0])), optimizer=_optimizer(head))

    def accuracy(net: nn.Module) -> float:
        with torch.inference_mode():
            return float((net(test).argmax(1) == y[problem.test]).double().mean())

    with tqdm(total=len(chosen) * seeds, desc=problem.name, unit="run", disable=not progress) as bar:
        for label, name, options in chosen:
            began = time.perf_counter()
            rows = []
            for s in range(seeds):
                learner = ActiveLearner(
                    pool,
                    make=_make(head, x.shape[1], problem.classes),
                    fit=train,
                    strategy=name,
                    batch_size=batch_size,
                    labeled=first_rows(known, start, derived_seed(seed, "start", s)),
                    oracle=lambda picks: known[picks],
                    evaluate=accuracy,
                    options=options,
                    collect_options={"draws": draws, "batch_size": 1024},
                    generator=derived_seed(seed, "run", s),
                )
                rows.append([r["score"] for r in learner.run(rounds)])
                bar.update()
            found.accuracy[label] = torch.tensor(rows, dtype=torch.float64)
            found.seconds[label] = time.perf_counter() - began
    return found


def first_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """Random rows, but of each class in turn as long as there are any, so that no network starts without one."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=g)
    turn = torch.empty_like(order)
    for c in labels.unique():
        mine = (labels[order] == c).nonzero().flatten()
        turn[mine] = torch.arange(len(mine))
    return order[turn.sort(stable=True).indices[:count]]


def table(found: Curves) -> list[str]:
    """The curves in words, a line a strategy."""
    shown = sorted({0, len(found.labeled) // 2, len(found.labeled) - 1})
    heads = [f"{found.labeled[i]} labels" for i in shown]
    width = max(len(name) for name in found.accuracy) + 2
    seeds = len(next(iter(found.accuracy.values())))
    lines = [
        f"{found.problem}: accuracy, mean of {seeds} seeds; beside random, paired, with the standard error",
        f"{'strategy':<{width}}" + "".join(f"{h:>12}" for h in heads)
        + f"{'mean - random':>20}{'last - random':>20}{'seconds':>9}",
    ]  # fmt: skip
    for name, accuracy in found.accuracy.items():
        cells = "".join(f"{accuracy[:, i].mean():>12.3f}" for i in shown)
        if name == "random":
            gains = f"{'':>40}"
        else:
            mean, error, last, last_error = found.gain(name)
            gains = f"{f'{mean:+.3f} ± {error:.3f}':>20}{f'{last:+.3f} ± {last_error:.3f}':>20}"
        lines.append(f"{name:<{width}}{cells}{gains}{found.seconds[name]:>9.1f}")
    return lines


def figure(all_found: Sequence[Curves]) -> Any:
    """Accuracies above, paired differences to random below; a column a problem."""
    matplotlib = package("matplotlib", "demo")
    figures = package("matplotlib.figure", "demo")
    with matplotlib.rc_context(
        {"font.size": 12, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": "#888888"}
    ):
        plot = figures.Figure(figsize=(6.8 * len(all_found), 9.5), layout="constrained")
        axes = plot.subplots(2, len(all_found), squeeze=False, sharex="col", height_ratios=[3, 2])
        for (above, below), found in zip(axes.T, all_found, strict=True):
            colors = iter(_COLORS * (1 + len(found.accuracy) // len(_COLORS)))
            seeds = len(found.accuracy["random"])
            above.set_title(f"{found.problem}, {seeds} seeds", fontsize=16)
            for name, accuracy in found.accuracy.items():
                color = _RANDOM if name == "random" else next(colors)
                style = {"color": color, "linewidth": 2.2, "linestyle": "--" if name == "random" else "-"}
                above.plot(found.labeled, accuracy.mean(0), label=name, **style)
                apart = accuracy - found.accuracy["random"]
                below.plot(found.labeled, 100 * apart.mean(0), **style)
                if seeds > 1 and name != "random":
                    error = 100 * apart.std(0) / math.sqrt(seeds)
                    low, high = 100 * apart.mean(0) - error, 100 * apart.mean(0) + error
                    below.fill_between(found.labeled, low, high, color=color, alpha=0.15, linewidth=0)
            above.set_ylabel("accuracy")
            below.set_ylabel("difference to random, points\n(band: standard error, paired)")
            below.set_xlabel("labels")
            for ax in (above, below):
                ax.grid(color="#DDDDDD", linewidth=0.8)
                ax.set_axisbelow(True)
                ax.spines[["top", "right"]].set_visible(False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        plot.legend(handles, labels, loc="outside lower center", ncols=3 * len(all_found), frameon=False)
    return plot


def scaled(features: Tensor) -> Tensor:
    """Shifted and scaled as a whole, so that entries have mean 0 and variance 1; distances keep their proportions."""
    values = features.double()
    values = values - values.mean(0)
    deviation = values.std(correction=0)
    return (values / (deviation if deviation > 0 else 1)).float()
