"""The libraries' strategies, each a call that the library and our adapter for it both take.

Classifiers are heads that are given (data.py): they predict at the price of a matrix product, which counts into both
times. Host libraries are imported when a case is prepared.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import data as d
import numpy as np
import torch
from data import Data, Quality, said

import alkernels as alk
from alkernels._bench import torchvision_ops
from alkernels.strategies import committee

OURS, THEIRS = "ours", "theirs"
Query = Callable[[int], np.ndarray]  # from a seed to rows of the pool


class Case(NamedTuple):
    """The same call to both."""

    host: str
    strategy: str
    picks: int | float  # how many, or the share of the pool
    most: int  # rows of the pool: what the host has the memory and the time for
    call: Callable[[str, Data, int], Query]  # ready to be timed, of "ours" or "theirs"
    quality: Quality
    what: str  # the quality
    best: Callable[[float, float], float]  # min or max


def _module(side: str, ours: str, theirs: str) -> Any:
    torchvision_ops.declare()
    return importlib.import_module(f"alkernels.integrations.{ours}" if side == OURS else theirs)


def _seed_all(seed: int) -> None:
    """Most hosts draw from the global states."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


# ---- scikit-activeml ----


@functools.cache
def _skactiveml_classifier() -> Any:
    from skactiveml.base import SkactivemlClassifier

    class Linear(SkactivemlClassifier):  # type: ignore[misc]
        def __init__(
            self, heads: Any = None, classes: Any = None, missing_label: Any = np.nan, random_state: Any = None
        ):
            super().__init__(classes=classes, missing_label=missing_label, random_state=random_state)
            self.heads = heads

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            self.classes_ = np.arange(d.CLASSES)
            return self

        def predict_proba(self, X: Any) -> Any:
            return said(X, self.heads[:1])[0]

        def draws(self, X: Any) -> Any:
            return said(X, self.heads)

    return Linear


def _skactiveml(strategy: str, of: str = "", ball: bool = False, few: int = 0, **options: Any) -> Any:
    def call(side: str, data: Data, k: int) -> Query:
        make = getattr(_module(side, "skactiveml", "skactiveml.pool"), strategy)
        more: dict[str, Any] = {}
        if of:
            model = _skactiveml_classifier()(data.heads, classes=list(range(d.CLASSES))).fit(None, None)
            more = {of: model, f"fit_{of}": False}
        if few:
            more["candidates"] = data.unlabeled[:few]
        given = {**options, "deltas": [d.ball(data.name, len(data.X))]} if ball else options
        return lambda seed: make(random_state=seed, **given).query(data.X, data.y, batch_size=k, **more)

    return call


# ---- the others ----


def _anomalib(side: str, data: Data, k: int) -> Query:
    sampler = _module(side, "anomalib", "anomalib.models.components").KCenterGreedy
    embedding = torch.from_numpy(data.X)

    def query(seed: int) -> np.ndarray:
        _seed_all(seed)
        return np.array(sampler(embedding, (k + 0.5) / len(embedding)).select_coreset_idxs())

    return query


def _redux(function: str, *options: int) -> Any:
    def call(side: str, data: Data, k: int) -> Query:
        batch = getattr(_module(side, "batchbald_redux", "batchbald_redux.batchbald"), function)
        log_probs = torch.from_numpy(said(data.X, data.heads).swapaxes(0, 1).copy()).log()

        def query(seed: int) -> np.ndarray:
            _seed_all(seed)
            return np.array(batch(log_probs, k, *options, dtype=torch.double, device="cpu").indices)

        return query

    return call


def _targets(data: Data) -> np.ndarray:
    return data.X[data.labeled]


def _stacked(rows: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Predictions [N, C, K] as baal's models give them."""
    return np.stack(list(said(rows, heads).astype(np.float32)), axis=-1)


def _baal(heuristic: str, targets: bool = False, batch: bool = False) -> Any:
    def call(side: str, data: Data, k: int) -> Query:
        make = getattr(_module(side, "baal", "baal.active.heuristics"), heuristic)
        draws = _stacked(data.X, data.heads)
        known = _stacked(_targets(data), data.heads) if targets else None

        def query(seed: int) -> np.ndarray:
            _seed_all(seed)
            return make(*([k] if batch else [])).get_ranks(draws, known)[0][:k]

        return query

    return call


class _Texts:
    """A classifier of small-text's kind: a text is the number of its row, its embedding the row."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def _rows(self, dataset: Any) -> np.ndarray:
        return self.data.X[dataset.x.toarray()[:, 0].astype(int)]

    def embed(self, dataset: Any, return_proba: bool = False, pbar: Any = None) -> Any:
        rows = self._rows(dataset)
        return (rows, self.predict_proba(dataset)) if return_proba else rows

    def predict_proba(self, dataset: Any, dropout_sampling: int = 1) -> np.ndarray:
        draws = said(self._rows(dataset), self.data.heads[:dropout_sampling])
        return draws[0] if dropout_sampling == 1 else draws.swapaxes(0, 1)


def _small_text(strategy: str, *options: Any, theirs: str = "small_text", **more: Any) -> Any:
    def call(side: str, data: Data, k: int) -> Query:
        from scipy.sparse import csr_matrix
        from small_text import SklearnDataset

        made = getattr(_module(side, "small_text", theirs), strategy)(*options)
        texts = SklearnDataset(
            csr_matrix(np.arange(len(data.X), dtype=np.float64)[:, None]),
            np.zeros(len(data.X), dtype=int),
            np.arange(d.CLASSES),
        )
        labels = data.y[data.labeled].astype(int)

        def query(seed: int) -> np.ndarray:
            _seed_all(seed)
            return made.query(_Texts(data), texts, data.unlabeled, data.labeled, labels, n=k, **more)

        return query

    return call


class _Head:
    """A scikit-learn estimator as far as modAL looks."""

    def __init__(self, head: np.ndarray) -> None:
        self.heads = head[None]
        self.classes_ = np.arange(d.CLASSES)

    def fit(self, X: Any, y: Any) -> _Head:
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return said(X, self.heads)[0]

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.predict_proba(X).argmax(1)


def _modal(strategy: str, theirs: str) -> Any:
    def call(side: str, data: Data, k: int) -> Query:
        from modAL.models import ActiveLearner, Committee

        function = getattr(_module(side, "modal", theirs), strategy)
        if theirs == "modAL.uncertainty":
            learner = ActiveLearner(_Head(data.heads[0]), function)
        else:
            learner = Committee([ActiveLearner(_Head(head)) for head in data.heads], function)
        return lambda seed: np.asarray(learner.query(data.X, n_instances=k)[0])

    return call


def _sklearn(side: str, data: Data, k: int) -> Query:
    seeding = _module(side, "sklearn", "sklearn.cluster").kmeans_plusplus
    return lambda seed: seeding(data.X, k, random_state=seed)[1]


def _epig(data: Data, picks: np.ndarray) -> float:
    draws, targets = (said(rows, data.heads).swapaxes(0, 1).copy() for rows in (data.X[picks], _targets(data)))
    return float(alk.epig(draws, targets).mean())


_RADIUS = (d.cover_radius, "cover radius", min)
_INFORMATION = (d.joint_information, "joint information", max)
_BALD = (partial(d.mean_score, score=alk.bald), "BALD", max)
_COST = (d.gradient_cost, "gradients' k-means cost", min)
_SAMPLED = {"sample_predictions_method_name": "draws", "n_MC_samples": 10_000}
_ALL = 20_000

CASES = [
    *(
        Case("scikit-activeml", strategy, picks, most, _skactiveml(strategy, **how), *quality)
        for strategy, picks, most, quality, how in [
            ("CoreSet", 100, _ALL, _RADIUS, {}),
            ("Badge", 100, _ALL, _COST, {"of": "clf"}),
            ("BatchBALD", 5, _ALL, _INFORMATION, {"of": "ensemble", "few": 500, **_SAMPLED}),
            ("GreedyBALD", 100, _ALL, _BALD, {"of": "ensemble", **_SAMPLED}),
            (
                "UncertaintySampling",
                1000,
                _ALL,
                (d.mean_margin, "margin", min),
                {"of": "clf", "method": "margin_sampling"},
            ),
            (
                "ContrastiveAL",
                100,
                _ALL,
                (d.divergence, "divergence", max),
                {"of": "clf", "nearest_neighbors_dict": {"n_neighbors": 10}},
            ),
            ("TypiClust", 50, _ALL, (d.mean_distance, "mean distance", min), {}),
            ("ProbCover", 50, 5000, (d.covered_share, "share covered", max), {"ball": True}),
            ("MaxHerding", 50, 5000, (d.mean_coverage, "mean coverage", max), {}),
        ]
    ),
    Case("anomalib", "KCenterGreedy", 0.1, _ALL, _anomalib, partial(d.cover_radius, labeled=False), *_RADIUS[1:]),
    Case("batchbald_redux", "get_batchbald_batch", 5, 1000, _redux("get_batchbald_batch", 10_000), *_INFORMATION),
    Case("batchbald_redux", "get_bald_batch", 100, _ALL, _redux("get_bald_batch"), *_BALD),
    Case("baal", "BatchBALD", 5, 300, _baal("BatchBALD", batch=True), *_INFORMATION),
    Case("baal", "BALD", 100, _ALL, _baal("BALD"), *_BALD),
    Case(
        "baal",
        "Entropy",
        100,
        _ALL,
        _baal("Entropy"),
        partial(d.mean_score, score=committee.consensus_entropy),
        "entropy",
        max,
    ),
    Case("baal", "Margin", 100, _ALL, _baal("Margin"), partial(d.mean_margin, members=None), "margin", min),
    Case("baal", "EPIG", 100, 5000, _baal("EPIG", targets=True), _epig, "EPIG", max),
    Case(
        "small-text",
        "GreedyCoreset",
        100,
        _ALL,
        _small_text("GreedyCoreset", pbar=None),
        partial(d.cover_radius, unit=True),
        *_RADIUS[1:],
    ),
    Case(
        "small-text",
        "BADGE",
        100,
        _ALL,
        _small_text("BADGE", d.CLASSES, theirs="small_text.integrations.pytorch.query_strategies", pbar=None),
        *_COST,
    ),
    Case(
        "small-text",
        "ContrastiveActiveLearning",
        100,
        _ALL,
        _small_text("ContrastiveActiveLearning"),
        partial(d.divergence, unit=True),
        "divergence",
        max,
    ),
    Case(
        "small-text",
        "EmbeddingKMeans",
        100,
        _ALL,
        _small_text("EmbeddingKMeans", pbar=None),
        partial(d.mean_distance, unit=True),
        "mean distance",
        min,
    ),
    Case("small-text", "BALD", 100, _ALL, _small_text("BALD", 20), *_BALD),
    Case(
        "modAL",
        "margin_sampling",
        100,
        _ALL,
        _modal("margin_sampling", "modAL.uncertainty"),
        d.mean_margin,
        "margin",
        min,
    ),
    *(
        Case(
            "modAL",
            f"{name}_sampling",
            100,
            _ALL,
            _modal(f"{name}_sampling", "modAL.disagreement"),
            partial(d.mean_score, score=getattr(committee, name)),
            name.replace("_", " "),
            max,
        )
        for name in ("vote_entropy", "max_disagreement")
    ),
    Case("scikit-learn", "kmeans_plusplus", 100, _ALL, _sklearn, d.kmeans_cost, "k-means cost", min),
]
