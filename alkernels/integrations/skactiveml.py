"""Query strategies of scikit-activeml on our kernels: its names, its parameters, its contract.

In place of ``from skactiveml.pool import CoreSet`` write ``from alkernels.integrations.skactiveml import CoreSet``.

What all have in common:

- Utilities, of shape (batch_size, n_samples or n_candidates), are computed when `return_utilities` asks for them, and
  not otherwise. NaN stands where a sample is no candidate, or is picked already.
- `random_state` gives one seed for each query, as the host derives it; the same call gives the same answer. The numbers
  drawn from it are others than the host's.
- Ties are broken at random, each of the tied samples as likely as the others.
- A `batch_size` above the number of candidates is lowered with a warning. Without candidates the batch is empty.
- Nothing that comes in is changed: `batch_bald` and `average_kl_divergence` of the host clip the caller's
  probabilities.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch

from alkernels._probabilities import Probabilities
from alkernels._sources import RowsOf
from alkernels._warnings import warn_user
from alkernels.ops import batchbald as batchbald_op
from alkernels.ops.greedy_coverage import greedy_coverage
from alkernels.ops.joint_entropy import MAX_CONFIGURATIONS, NUM_SAMPLES, Configurations
from alkernels.ops.kmeans_plusplus import kmeans_plusplus
from alkernels.ops.knn import knn
from alkernels.ops.lazy_greedy import LazyGreedy
from alkernels.ops.pairwise_kl import pairwise_kl
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.strategies import bayesian, committee, diversity, gradient, uncertainty
from alkernels.strategies._picking import top_scores

try:
    from skactiveml.base import SingleAnnotatorPoolQueryStrategy, SkactivemlClassifier, SkactivemlRegressor
    from skactiveml.pool import QueryByCommittee as _HostCommittee
    from skactiveml.pool import expected_average_precision
    from skactiveml.pool._query_by_committee import _check_ensemble
    from skactiveml.utils import (
        MISSING_LABEL,
        check_cost_matrix,
        check_equal_missing_label,
        check_scalar,
        check_type,
        is_labeled,
    )
except ImportError as error:
    raise ImportError(
        "alkernels.integrations.skactiveml needs the package scikit-activeml: pip install 'alkernels[skactiveml]'"
    ) from error

# the host needs scikit-learn itself
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances, pairwise_distances_argmin_min, pairwise_kernels
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, column_or_1d

__all__ = [
    "Badge",
    "BatchBALD",
    "ContrastiveAL",
    "CoreSet",
    "GreedyBALD",
    "MaxHerding",
    "ProbCover",
    "QueryByCommittee",
    "TypiClust",
    "UncertaintySampling",
    "average_kl_divergence",
    "batch_bald",
]

_DELTAS = np.arange(0.2, 2.2, 0.2)
# A ball of radius 0 holds the copies of its centre; the square of this is a number still.
_SMALLEST_BALL = 1e-140
_BYTES_A_TILE = 32 << 20
_EPSILON = 1e-7


class _Task(NamedTuple):
    """One call of `query`, checked by the host's own rules."""

    X: np.ndarray
    y: np.ndarray
    labeled: np.ndarray  # mask of X
    rows: np.ndarray  # the candidates
    mapping: np.ndarray | None  # where they are in X
    batch_size: int
    utilities: bool  # asked for
    seed: int

    @property
    def width(self) -> int:
        return len(self.rows) if self.mapping is None else len(self.X)


class _Strategy(SingleAnnotatorPoolQueryStrategy):
    """What the strategies share: from the host's arguments to a task, and from picks to the host's answer."""

    def _task(
        self,
        X: Any,
        y: Any,
        candidates: Any,
        batch_size: Any,
        return_utilities: Any,
        *,
        enforce_mapping: bool = False,
        unlabeled_only: bool = False,
        as_features: bool = False,
    ) -> _Task:
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        rows, mapping = self._transform_candidates(candidates, X, y, enforce_mapping=enforce_mapping)
        labeled = is_labeled(y, self.missing_label_)
        if unlabeled_only and mapping is not None and labeled[mapping].any():
            free = ~labeled[mapping]
            rows, mapping = rows[free], mapping[free]
            if len(rows) < batch_size:
                warn_user(f"batch_size is {batch_size}: all {len(rows)} candidates without a label are picked")
                batch_size = len(rows)
        seed = int(self.random_state_.randint(2**31 - 1))
        if as_features:  # a classifier gets samples as they are: they may be numbers of words
            X, rows = _floats(X), _floats(rows)
        return _Task(X, y, labeled, rows, mapping, batch_size, return_utilities, seed)

    def _answer(self, task: _Task, picks: Any, utilities: np.ndarray | None = None) -> Any:
        """Picks are positions among the candidates, and so are the utilities' columns."""
        picks = np.asarray(picks, dtype=np.int64)
        indices = picks if task.mapping is None else task.mapping[picks]
        if not task.utilities:
            return indices
        if utilities is None:
            utilities = np.empty((0, len(task.rows)))
        for step, pick in enumerate(picks):
            utilities[step + 1 :, pick] = np.nan
        if task.mapping is None:
            return indices, utilities
        whole = np.full((len(utilities), len(task.X)), np.nan)
        whole[:, task.mapping] = utilities
        return indices, whole

    def _best(self, task: _Task, scores: np.ndarray) -> Any:
        """The answer of a strategy that scores each candidate."""
        picked = top_scores(scores, task.batch_size, tie_break="random", generator=task.seed)
        utilities = np.tile(np.asarray(scores, dtype=np.float64), (task.batch_size, 1)) if task.utilities else None
        return self._answer(task, picked.indices, utilities)


def _floats(rows: Any) -> np.ndarray:
    """Numbers as the kernels take them: whole ones as float64."""
    rows = np.asarray(rows)
    return rows if rows.dtype in (np.float16, np.float32, np.float64) else rows.astype(np.float64)


def _shuffled(count: int, seed: int) -> torch.Tensor:
    """An order in which ties that go to the first row go to any."""
    # another stream than the strategy's draws: the seed's low 32 bits decide it
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed ^ 0x5DEECE66))


def _tiles(count: int, numbers_a_row: int) -> Iterator[slice]:
    size = max(1, _BYTES_A_TILE // (8 * max(1, numbers_a_row)))
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _fitted(strategy: Any, clf: Any, fit_clf: Any, task: _Task, sample_weight: Any) -> Any:
    """The classifier, checked; a clone of it where it is to be fitted."""
    check_type(clf, "clf", SkactivemlClassifier)
    check_equal_missing_label(clf.missing_label, strategy.missing_label_)
    check_scalar(fit_clf, "fit_clf", bool)
    if not fit_clf:
        return clf
    return clone(clf).fit(task.X, task.y, *([] if sample_weight is None else [sample_weight]))


def _embedding_options(flag: Any) -> dict[str, Any]:
    if flag is None:
        return {}
    check_type(flag, "clf_embedding_flag_name", dict, str)
    return {flag: True} if isinstance(flag, str) else flag


def _predicted(clf: Any, rows: np.ndarray, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and embeddings, which are the rows themselves where the classifier gives none."""
    probas = clf.predict_proba(rows, **options)
    if isinstance(probas, tuple):
        probas, rows = probas
    return _floats(probas), _floats(rows)


class CoreSet(_Strategy):
    """Core-set: each pick is the candidate farthest from the labelled samples and all earlier picks.

    Runs :func:`alkernels.k_center_greedy` for Euclidean and cosine distances; other metrics are measured by
    scikit-learn, once a pick.

    Parameters
    ----------
    metric : str or callable, default='euclidean'
        As for ``sklearn.metrics.pairwise_distances_argmin_min``.
    metric_dict : dict, default=None
        Its ``metric_kwargs``.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Decides the first pick without labelled samples, and ties.

    Notes
    -----
    The picks are the host's, but for ties and distances that agree to 1e-5. No array of shape (batch_size, n_samples)
    exists unless `return_utilities` asks for it. Candidates that are labelled are never picked, as in the host.

    References
    ----------
    .. [1] O. Sener, S. Savarese. Active learning for convolutional neural networks: a core-set approach. ICLR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.skactiveml import CoreSet
    >>> X, y = np.array([[0.0], [1.0], [5.0], [9.0]]), np.array([0, np.nan, np.nan, np.nan])
    >>> CoreSet(random_state=0).query(X, y, batch_size=2)
    array([3, 2])
    """

    def __init__(
        self,
        metric: Any = "euclidean",
        metric_dict: Any = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.metric = metric
        self.metric_dict = metric_dict

    def query(self, X: Any, y: Any, candidates: Any = None, batch_size: int = 1, return_utilities: bool = False) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            All samples, labelled and unlabelled.
        y : array-like of shape (n_samples,)
            Their labels, `missing_label` where there is none.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: distances to the nearest labelled or picked sample, 0 before the first of all.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities, unlabeled_only=True, as_features=True)
        if not task.batch_size:
            return self._answer(task, [])
        order = _shuffled(len(task.rows), task.seed).numpy()
        rows, known = task.rows[order], task.X[task.labeled]
        metric = {"l2": "euclidean"}.get(self.metric, self.metric) if isinstance(self.metric, str) else None
        if metric in ("euclidean", "cosine") and (self.metric_dict is None or self.metric_dict == {}):
            picked = diversity.k_center_greedy(
                rows,
                task.batch_size,
                labeled_features=known if len(known) else None,
                metric=metric,
                generator=task.seed,
            )
            picks = order[picked.indices]

            def to_nearest(centers: np.ndarray) -> np.ndarray:
                return knn(task.rows, centers, 1, metric=metric).distances[:, 0]

        else:

            def to_nearest(centers: np.ndarray) -> np.ndarray:
                return pairwise_distances_argmin_min(
                    task.rows, centers, metric=self.metric, metric_kwargs=self.metric_dict
                )[1]

            picks = _farthest_first(task, known, to_nearest, order)
        return self._answer(task, picks, _distances(task, known, picks, to_nearest) if task.utilities else None)


def _farthest_first(
    task: _Task, known: np.ndarray, to_nearest: Callable[[np.ndarray], np.ndarray], order: np.ndarray
) -> np.ndarray:
    """k-center greedy under any distance, one pass a pick; ties go to the first in an order."""
    apart = to_nearest(known) if len(known) else np.full(len(task.rows), np.inf)
    picks: list[int] = []
    for _ in range(task.batch_size):
        apart[picks] = -np.inf
        picks.append(int(order[apart[order].argmax()]))
        apart = np.minimum(apart, to_nearest(task.rows[picks[-1:]]))
    return np.array(picks)


def _distances(
    task: _Task, known: np.ndarray, picks: np.ndarray, to_nearest: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The utilities of a core-set: distances to the nearest centre before each pick."""
    utilities = np.empty((len(picks), len(task.rows)))
    utilities[0] = to_nearest(known) if len(known) else 0.0
    for step, pick in enumerate(picks[:-1], start=1):
        utilities[step] = to_nearest(task.rows[[pick]])
        if step > 1 or len(known):
            np.minimum(utilities[step], utilities[step - 1], out=utilities[step])
    return utilities


class Badge(_Strategy):
    """BADGE: k-means++ draws among the last layer's gradients for the likeliest labels.

    Parameters
    ----------
    clf_embedding_flag_name : str or dict or None, default=None
        The option of `clf.predict_proba`, or options, that make it return ``(proba, embeddings)``. None: whatever it
        returns; where it returns probabilities alone, the samples are the embeddings.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Makes the draws.

    Notes
    -----
    What differs from scikit-activeml 1.0.1, on purpose:

    - No sample is picked twice (its issue 586).
    - Utilities are the probabilities of the draw, and each row of them sums to 1 (587). Those of the first row are
      shares of the squared length, of which the largest is picked.
    - Later picks are drawn by the squared distance to the nearest pick. There, the origin stays a centre (588), so
      that long gradients are not told from far ones.
    - Gradients, C times as wide as the embeddings, are never built.

    Candidates that are labelled are never picked, as in the host.

    References
    ----------
    .. [1] J. T. Ash, C. Zhang, A. Krishnamurthy, J. Langford, A. Agarwal. Deep batch active learning by diverse,
       uncertain gradient lower bounds. ICLR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skactiveml.classifier import ParzenWindowClassifier
    >>> from alkernels.integrations.skactiveml import Badge
    >>> X, y = np.array([[0.0], [9.0], [4.0], [1.0]]), np.array([0, 1, np.nan, np.nan])
    >>> Badge(random_state=0).query(X, y, ParzenWindowClassifier(classes=[0, 1]))
    array([2])
    """

    def __init__(
        self, clf_embedding_flag_name: Any = None, missing_label: Any = MISSING_LABEL, random_state: Any = None
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.clf_embedding_flag_name = clf_embedding_flag_name

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any,
        fit_clf: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        clf : skactiveml.base.SkactivemlClassifier
            Predicts probabilities. It is not changed.
        fit_clf : bool, default=True
            Fit a clone of it to `X`, `y` and `sample_weight` first.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights for that.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: the probabilities of each draw.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities, unlabeled_only=True)
        options = _embedding_options(self.clf_embedding_flag_name)
        clf = _fitted(self, clf, fit_clf, task, sample_weight)
        if not task.batch_size:
            return self._answer(task, [])
        probas, features = _predicted(clf, task.rows, options)
        order = _shuffled(len(task.rows), task.seed).numpy()
        picked = gradient.badge(probas[order], features[order], task.batch_size, generator=task.seed)
        picks = order[picked.indices]
        utilities = _draw_probabilities(probas, features, picks) if task.utilities else None
        return self._answer(task, picks, utilities)


def _draw_probabilities(probas: np.ndarray, features: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The law of each of BADGE's draws, over all candidates; 0 for those that are picked."""
    factor = probas.astype(np.float64)
    factor[np.arange(len(factor)), probas.argmax(1)] -= 1
    squared = (factor**2).sum(1) * (features.astype(np.float64) ** 2).sum(1)
    nearest = np.full(len(factor), np.inf)
    free = np.ones(len(factor))
    utilities = np.empty((len(picks), len(factor)))
    for step, pick in enumerate(picks):
        weights = (squared if step == 0 else nearest) * free
        total = weights.sum()
        utilities[step] = weights / total if total > 0 else free / free.sum()
        free[pick] = 0
        if step + 1 < len(picks):
            center = (factor[[pick]], features[[pick]])
            run = kmeans_plusplus((factor, features), 0, labeled=center, return_distances=True)
            np.minimum(nearest, run.distances, out=nearest)  # type: ignore[union-attr]
    return utilities


class _Committee(_Strategy, _HostCommittee):
    """What the committees share: the host's rules about ensembles, and their predictions."""

    def _members(self, task: _Task, ensemble: Any, fit_ensemble: Any, sample_weight: Any, kinds: list[Any]) -> Any:
        """Ensemble, members, classes, and the ensemble's function that samples predictions, if it has one."""
        check_type(fit_ensemble, "fit_ensemble", bool)
        ensemble, members, classes, function, options = _check_ensemble(
            ensemble=ensemble,
            X=task.X,
            y=task.y,
            sample_weight=sample_weight,
            fit_ensemble=fit_ensemble,
            missing_label=self.missing_label_,
            estimator_types=kinds,
            sample_predictions_method_name=self.sample_predictions_method_name,
            sample_predictions_dict=self.sample_predictions_dict,
        )
        sample = None if function is None else lambda rows: function(rows, **options)
        return ensemble, members, classes, sample

    def _draws(self, task: _Task, ensemble: Any, members: Any, sample: Any) -> np.ndarray:
        """What the members say of the candidates, [N, K, C]."""
        probas = self._aggregate_predict_probas(task.rows, ensemble, members) if sample is None else sample(task.rows)
        probas = _floats(probas)
        if probas.ndim != 3:
            raise ValueError(f"sampled predictions must be of shape (members, samples, classes), got {probas.shape}")
        return probas.swapaxes(0, 1)

    def _check_eps(self) -> None:
        check_scalar(self.eps, "eps", min_val=0, max_val=0.1, target_type=(float, int), min_inclusive=False)


class _GeneralBALD(_Committee):
    def __init__(
        self,
        n_MC_samples: Any = None,
        eps: Any = 1e-7,
        sample_predictions_method_name: Any = None,
        sample_predictions_dict: Any = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            eps=eps,
            sample_predictions_method_name=sample_predictions_method_name,
            sample_predictions_dict=sample_predictions_dict,
            missing_label=missing_label,
            random_state=random_state,
        )
        self.n_MC_samples = n_MC_samples

    def query(
        self,
        X: Any,
        y: Any,
        ensemble: Any,
        fit_ensemble: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        ensemble : SkactivemlClassifier or list or tuple of them
            An ensemble with members (``estimators_``), one that samples predictions, or the members.
        fit_ensemble : bool, default=True
            Fit clones to `X`, `y` and `sample_weight` first.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights for that.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: mutual information in nats, of the batch so far together with each candidate.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities)
        if self.n_MC_samples is not None:
            check_scalar(self.n_MC_samples, "n_MC_samples", int, min_val=1)
        self._check_eps()
        ensemble, members, _, sample = self._members(
            task, ensemble, fit_ensemble, sample_weight, [SkactivemlClassifier]
        )
        if not task.batch_size:
            return self._answer(task, [])
        return self._informed(task, self._draws(task, ensemble, members, sample))

    def _informed(self, task: _Task, draws: np.ndarray) -> Any:
        raise NotImplementedError


class BatchBALD(_GeneralBALD):
    """BatchBALD: a batch whose labels together say the most about the ensemble's members.

    Runs :func:`alkernels.batchbald`.

    Parameters
    ----------
    n_MC_samples : int or None, default=None
        Up to how many label configurations of the batch are enumerated, and how many are sampled beyond. Default: 40000
        of each. (The host's default is the number of members, with which it samples from the second or third pick on.)
    eps : float, default=1e-7
        Checked as in the host, and not needed: ``0 log 0`` is 0 here.
    sample_predictions_method_name : str or None, default=None
        The ensemble's method that gives predictions of shape (members, samples, classes), such as "sample_proba".
    sample_predictions_dict : dict or None, default=None
        Its options.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Draws configurations, and breaks ties.

    Notes
    -----
    What differs from scikit-activeml 1.0.1, on purpose:

    - Fewer samples than members are no error: each member gives one then.
    - Where utilities are tied, later picks are conditioned on the picks that are returned, and none is made twice.
    - The predictions of `sample_predictions_method_name` are left as they are.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skactiveml.classifier import ParzenWindowClassifier
    >>> from alkernels.integrations.skactiveml import BatchBALD
    >>> X, y = np.array([[0.0], [9.0], [4.0], [1.0]]), np.array([0, 1, np.nan, np.nan])
    >>> members = [ParzenWindowClassifier(classes=[0, 1], metric_dict={"gamma": g}) for g in (0.01, 1.0)]
    >>> BatchBALD(random_state=0).query(X, y, members)
    array([2])
    """

    def _informed(self, task: _Task, draws: np.ndarray) -> Any:
        return self._answer(task, *_batch(draws, task.batch_size, self.n_MC_samples, task.seed, task.utilities))


def _batch(
    draws: np.ndarray, batch_size: int, n_MC_samples: int | None, seed: int, with_utilities: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """BatchBALD's picks, ties at random, and their utilities where they are asked for."""
    order = _shuffled(len(draws), seed)
    probs = Probabilities(RowsOf(draws, order), "mc_probs", 3, False)  # type: ignore[arg-type]
    most = MAX_CONFIGURATIONS if n_MC_samples is None else n_MC_samples
    samples = NUM_SAMPLES if n_MC_samples is None else n_MC_samples
    picked = batchbald_op.batchbald(probs, batch_size, max_configurations=most, num_samples=samples, generator=seed)
    utilities = None
    if with_utilities:
        utilities = np.empty((batch_size, len(draws)))
        configurations = Configurations(probs, most, samples, seed)
        utilities[:, order.numpy()] = _joint_information(probs, picked, configurations)
    return order.numpy()[picked.indices], utilities


def _joint_information(probs: Probabilities, picked: Any, configurations: Configurations) -> np.ndarray:
    """Mutual information of the picks before each step, together with each row's label, [b, N]."""
    noise = prediction_scores(probs, "mean_entropy").numpy()
    utilities = np.empty((len(picked.indices), probs.count))
    for step, so_far in enumerate(np.cumsum(picked.scores) - picked.scores):
        if step:
            last = torch.from_numpy(picked.indices[step - 1 : step])
            configurations.add(probs.gather(last, torch.float64)[0])
        for begin, end, tile in probs.tiles(torch.float64):
            utilities[step, begin:end] = configurations.conditional_entropy(tile, wide=True).numpy()
        utilities[step] += so_far - noise
    return utilities


def batch_bald(
    probas: Any, batch_size: int, n_MC_samples: int | None = None, random_state: Any = None, eps: float = 1e-7
) -> np.ndarray:
    """The utilities of BatchBALD for predictions that are there already; ``skactiveml.pool.batch_bald``.

    Parameters
    ----------
    probas : array-like of shape (n_estimators, n_samples, n_classes)
        Probabilities. They are left as they are.
    batch_size : int
        How many samples are picked; more than there are: all of them.
    n_MC_samples, eps
        As of :class:`BatchBALD`.
    random_state : None or int or np.random.RandomState, default=None
        Draws configurations, and breaks ties.

    Returns
    -------
    ndarray of shape (batch_size, n_samples)
        Mutual information in nats of the batch so far together with each sample, NaN for samples that are in it: the
        picks are where the rows are largest (up to ties).
    """
    draws = _members_first(probas)
    check_scalar(batch_size, "batch_size", int, min_val=1)
    check_scalar(eps, "eps", min_val=0, max_val=0.1, target_type=(float, int), min_inclusive=False)
    if n_MC_samples is not None:
        check_scalar(n_MC_samples, "n_MC_samples", int, min_val=1)
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    picks, utilities = _batch(draws, min(batch_size, len(draws)), n_MC_samples, seed, True)
    assert utilities is not None
    for step, pick in enumerate(picks):
        utilities[step + 1 :, pick] = np.nan
    return utilities


def average_kl_divergence(probas: Any, eps: float = 1e-7) -> np.ndarray:
    """The mean KL divergence from members to their mean; ``skactiveml.pool.average_kl_divergence``.

    Parameters
    ----------
    probas : array-like of shape (n_estimators, n_samples, n_classes)
        Probabilities. They are left as they are.
    eps : float, default=1e-7
        Checked as in the host, and not needed: ``0 log 0`` is 0 here.

    Returns
    -------
    ndarray of shape (n_samples,)
        In nats.
    """
    check_scalar(eps, "eps", min_val=0, max_val=0.1, target_type=(float, int), min_inclusive=False)
    return np.asarray(committee.kl_consensus(_members_first(probas)))


def _members_first(probas: Any) -> np.ndarray:
    """Predictions as the host has them, [K, N, C], as [N, K, C]."""
    probas = check_array(probas, ensure_2d=False, allow_nd=True)
    if probas.ndim != 3:
        raise ValueError(f"probas must be of shape (n_estimators, n_samples, n_classes), got {probas.shape}")
    return _floats(probas).swapaxes(0, 1)


class GreedyBALD(_GeneralBALD):
    """BALD: the candidates whose labels each say the most about the ensemble's members.

    Runs :func:`alkernels.bald`.

    Parameters
    ----------
    n_MC_samples : int or None, default=None
        Checked as in the host, and of no influence: a single label's entropy needs no samples.
    eps : float, default=1e-7
        Checked as in the host, and not needed: ``0 log 0`` is 0 here.
    sample_predictions_method_name : str or None, default=None
        The ensemble's method that gives predictions of shape (members, samples, classes), such as "sample_proba".
    sample_predictions_dict : dict or None, default=None
        Its options.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Breaks ties.

    References
    ----------
    .. [1] N. Houlsby, F. Huszár, Z. Ghahramani, M. Lengyel. Bayesian active learning for classification and preference
       learning. arXiv 1112.5745, 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from skactiveml.classifier import ParzenWindowClassifier
    >>> from alkernels.integrations.skactiveml import GreedyBALD
    >>> X, y = np.array([[0.0], [9.0], [4.0], [1.0]]), np.array([0, 1, np.nan, np.nan])
    >>> members = [ParzenWindowClassifier(classes=[0, 1], metric_dict={"gamma": g}) for g in (0.01, 1.0)]
    >>> GreedyBALD(random_state=0).query(X, y, members)
    array([2])
    """

    def _informed(self, task: _Task, draws: np.ndarray) -> Any:
        return self._best(task, bayesian.bald(draws))  # type: ignore[arg-type]


class QueryByCommittee(_Committee):
    """Query by committee: the candidates that the members of an ensemble disagree most about.

    Parameters
    ----------
    method : {'KL_divergence', 'vote_entropy', 'variation_ratios'}, default='KL_divergence'
        Mean KL divergence from the members to their mean, entropy of their votes, or the share of votes against the
        winner. Regressors are measured by the standard deviation of their predictions, whatever the method.
    eps : float, default=1e-7
        Checked as in the host, and not needed: ``0 log 0`` is 0 here.
    sample_predictions_method_name : str or None, default=None
        The ensemble's method that gives predictions of shape (members, samples, classes), such as "sample_proba".
    sample_predictions_dict : dict or None, default=None
        Its options.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Breaks ties.

    References
    ----------
    .. [1] A. K. McCallum, K. Nigam. Employing EM and pool-based active learning for text classification. ICML 1998.
    .. [2] S. P. Engelson, I. Dagan. Minimizing manual annotation cost in supervised training from corpora. ACL 1996.

    Examples
    --------
    >>> import numpy as np
    >>> from skactiveml.classifier import ParzenWindowClassifier
    >>> from alkernels.integrations.skactiveml import QueryByCommittee
    >>> X, y = np.array([[0.0], [9.0], [4.0], [1.0]]), np.array([0, 1, np.nan, np.nan])
    >>> members = [ParzenWindowClassifier(classes=[0, 1], metric_dict={"gamma": g}) for g in (0.01, 1.0)]
    >>> QueryByCommittee(random_state=0).query(X, y, members)
    array([2])
    """

    def __init__(
        self,
        method: Any = "KL_divergence",
        eps: Any = 1e-7,
        sample_predictions_method_name: Any = None,
        sample_predictions_dict: Any = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            method=method,
            eps=eps,
            sample_predictions_method_name=sample_predictions_method_name,
            sample_predictions_dict=sample_predictions_dict,
            missing_label=missing_label,
            random_state=random_state,
        )

    def query(
        self,
        X: Any,
        y: Any,
        ensemble: Any,
        fit_ensemble: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        ensemble : SkactivemlClassifier or SkactivemlRegressor, or list or tuple of them
            An ensemble with members (``estimators_``), one that samples predictions, or the members.
        fit_ensemble : bool, default=True
            Fit clones to `X`, `y` and `sample_weight` first.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights for that.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: the scores, entropies and divergences in nats.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities)
        kinds = [SkactivemlClassifier, SkactivemlRegressor]
        ensemble, members, classes, sample = self._members(task, ensemble, fit_ensemble, sample_weight, kinds)
        check_type(self.method, "method", target_vals=["KL_divergence", "vote_entropy", "variation_ratios"])
        if classes is not None and self.method == "KL_divergence":
            self._check_eps()
        if not task.batch_size:
            return self._answer(task, [])
        scores: Any
        if classes is None:
            # of regressors the host has sampled predictions the other way round
            found = np.array([m.predict(task.rows) for m in members]) if sample is None else sample(task.rows).T
            scores = np.std(found, axis=0)
        elif self.method == "KL_divergence":
            scores = committee.kl_consensus(self._draws(task, ensemble, members, sample))
        else:
            if sample is None:
                votes = np.array([m.predict(task.rows) for m in members]).T
            else:
                votes = self._draws(task, ensemble, members, sample).argmax(2)
            # labels of any type as numbers
            votes = np.unique(votes, return_inverse=True)[1].reshape(votes.shape)
            measure = committee.vote_entropy if self.method == "vote_entropy" else committee.variation_ratio
            scores = measure(votes=votes)
        return self._best(task, scores)


class UncertaintySampling(_Strategy):
    """Uncertainty sampling: the candidates that a classifier is least sure of.

    Parameters
    ----------
    method : str, default='least_confident'
        'least_confident', 'margin_sampling', 'entropy', or 'expected_average_precision', which is the host's own
        function and takes time in the cube of the number of candidates.
    cost_matrix : array-like of shape (n_classes, n_classes), default=None
        Costs ``cost_matrix[i, j]`` of predicting class j for class i. Not with 'entropy'.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Breaks ties.

    References
    ----------
    .. [1] B. Settles. Active learning literature survey. University of Wisconsin, 2010.
    .. [2] H. Wang, X. Jin, M. Zhao, B. Liu. Expected average precision. ECML PKDD 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from skactiveml.classifier import ParzenWindowClassifier
    >>> from alkernels.integrations.skactiveml import UncertaintySampling
    >>> X, y = np.array([[0.0], [9.0], [4.0], [1.0]]), np.array([0, 1, np.nan, np.nan])
    >>> clf = ParzenWindowClassifier(classes=[0, 1], metric_dict={"gamma": 0.1})
    >>> UncertaintySampling(random_state=0).query(X, y, clf)
    array([2])
    """

    def __init__(
        self,
        method: Any = "least_confident",
        cost_matrix: Any = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.method = method
        self.cost_matrix = cost_matrix

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any,
        fit_clf: bool = True,
        sample_weight: Any = None,
        utility_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        clf : skactiveml.base.SkactivemlClassifier
            Predicts probabilities. It is not changed.
        fit_clf : bool, default=True
            Fit a clone of it to `X`, `y` and `sample_weight` first.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights for that.
        utility_weight : array-like of shape (n_samples,) or (n_candidates,), default=None
            The utilities are multiplied by it: one a candidate where candidates are samples, else one a row of `X`.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities)
        weights = np.ones(task.width) if utility_weight is None else check_array(utility_weight, ensure_2d=False)
        if weights.shape != (task.width,):
            what = "n_candidates" if task.mapping is None else "n_samples"
            raise ValueError(f"utility_weight must be of shape ({what},) = ({task.width},), got {weights.shape}")
        if not isinstance(self.method, str):
            raise TypeError(f"method must be a string, got {type(self.method).__name__}")
        methods = ["least_confident", "margin_sampling", "entropy", "expected_average_precision"]
        if self.method not in methods:
            raise ValueError(f"method must be one of {', '.join(map(repr, methods))}, got {self.method!r}")
        clf = _fitted(self, clf, fit_clf, task, sample_weight)
        if not task.batch_size:
            return self._answer(task, [])
        probas = _floats(clf.predict_proba(task.rows))
        if self.method == "expected_average_precision":
            scores = expected_average_precision(clf.classes_, probas)
        elif self.cost_matrix is None:
            measure = {"margin_sampling": uncertainty.margin, "entropy": uncertainty.entropy}
            scores = measure.get(self.method, uncertainty.least_confident)(probas)
        else:
            scores = _costly(probas, self.method, self.cost_matrix)
        return self._best(task, scores * (weights if task.mapping is None else weights[task.mapping]))


def _costly(probas: np.ndarray, method: str, cost_matrix: Any) -> np.ndarray:
    """The smallest expected cost, or how close the second smallest comes to it."""
    if method == "entropy":
        raise ValueError("cost_matrix must be None for method 'entropy'")
    costs = np.partition(probas @ check_cost_matrix(cost_matrix, n_classes=probas.shape[1]), 1, axis=1)
    return costs[:, 0] if method == "least_confident" else costs[:, 0] - costs[:, 1]


class ContrastiveAL(_Strategy):
    """Contrastive active learning: candidates predicted unlike the labelled samples next to them.

    The score is the mean KL divergence from the predictions of the nearest labelled samples to the candidate's own.

    Parameters
    ----------
    nearest_neighbors_dict : dict or None, default=None
        Options of ``sklearn.neighbors.NearestNeighbors``, such as ``{"n_neighbors": 10}`` (default 5). Euclidean and
        cosine neighbours are found by :func:`alkernels.knn`, others by scikit-learn.
    clf_embedding_flag_name : str or dict or None, default=None
        The option of `clf.predict_proba`, or options, that make it return ``(proba, embeddings)``. None: whatever it
        returns; where it returns probabilities alone, the samples are the embeddings.
    eps : float, default=1e-7
        Probabilities below are raised to it, in a copy that is scaled to sum to 1 again.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Breaks ties.

    Notes
    -----
    Embeddings are compared as they are, as in the host; ``alkernels.select("cal", ...)`` scales them to length one. An
    array of shape (candidates, neighbours, classes) is not made. Without labelled samples all candidates score 0.

    References
    ----------
    .. [1] K. Margatina, G. Vernikos, L. Barrault, N. Aletras. Active learning by acquiring contrastive examples.
       EMNLP 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skactiveml.classifier import ParzenWindowClassifier
    >>> from alkernels.integrations.skactiveml import ContrastiveAL
    >>> X, y = np.array([[0.0], [9.0], [4.0], [1.0]]), np.array([0, 1, np.nan, np.nan])
    >>> clf = ParzenWindowClassifier(classes=[0, 1], metric_dict={"gamma": 0.1})
    >>> ContrastiveAL({"n_neighbors": 1}, random_state=0).query(X, y, clf)
    array([2])
    """

    def __init__(
        self,
        nearest_neighbors_dict: Any = None,
        clf_embedding_flag_name: Any = None,
        eps: Any = 1e-7,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.nearest_neighbors_dict = nearest_neighbors_dict
        self.clf_embedding_flag_name = clf_embedding_flag_name
        self.eps = eps

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any,
        fit_clf: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        clf : skactiveml.base.SkactivemlClassifier
            Predicts probabilities. It is not changed.
        fit_clf : bool, default=True
            Fit a clone of it to `X`, `y` and `sample_weight` first.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights for that.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: divergences in nats.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities)
        if not (self.nearest_neighbors_dict is None or isinstance(self.nearest_neighbors_dict, dict)):
            raise TypeError(
                "nearest_neighbors_dict must be a dict of options of sklearn.neighbors.NearestNeighbors or None, "
                f"got {type(self.nearest_neighbors_dict).__name__}"
            )
        search = NearestNeighbors(**(self.nearest_neighbors_dict or {}))
        check_scalar(self.eps, "eps", min_val=0, max_val=0.1, target_type=(float, int), min_inclusive=False)
        options = _embedding_options(self.clf_embedding_flag_name)
        clf = _fitted(self, clf, fit_clf, task, sample_weight)
        if not task.batch_size:
            return self._answer(task, [])
        if not task.labeled.any():
            return self._best(task, np.zeros(len(task.rows)))
        given, points = _predicted(clf, task.X[task.labeled], options)
        probas, features = _predicted(clf, task.rows, options)
        near = _neighbors(search, features, points)
        apart = pairwise_kl(_raised(given, self.eps), _raised(probas, self.eps), neighbors=near, gather="p")
        return self._best(task, apart.mean(1))  # type: ignore[union-attr, arg-type]


def _raised(probas: np.ndarray, eps: float) -> np.ndarray:
    """A copy without probabilities below `eps`."""
    probas = np.clip(probas.astype(np.float64), eps, 1)
    return probas / probas.sum(1, keepdims=True)


def _neighbors(search: NearestNeighbors, queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The nearest points of each query, as many as there are or as scikit-learn's search is told to find."""
    search.fit(points[:1])  # checks its options
    count = min(search.n_neighbors, len(points))
    metric = "euclidean" if (search.metric, search.p) == ("minkowski", 2) else search.metric
    metric = "euclidean" if metric == "l2" else metric
    if search.metric_params is None and isinstance(metric, str) and metric in ("euclidean", "cosine"):
        return knn(queries, points, count, metric=metric).indices
    return search.fit(points).kneighbors(queries, n_neighbors=count, return_distance=False)


def _check_clusterer(cluster_algo: Any, cluster_algo_dict: Any, n_cluster_param_name: Any) -> None:
    if not callable(cluster_algo):
        raise TypeError(f"cluster_algo must be a class of clusterings, got {cluster_algo!r}")
    if not (cluster_algo_dict is None or isinstance(cluster_algo_dict, dict)):
        got = type(cluster_algo_dict).__name__
        raise TypeError(f"cluster_algo_dict must be a dict of options of cluster_algo or None, got {got}")
    if not isinstance(n_cluster_param_name, str):
        raise TypeError(f"n_cluster_param_name must be a string, got {type(n_cluster_param_name).__name__}")


def _clustered(strategy: Any, X: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Each row's cluster, by the strategy's algorithm; scikit-learn's k-means is seeded by our k-means++."""
    algorithm, name = strategy.cluster_algo, strategy.n_cluster_param_name
    options = dict(strategy.cluster_algo_dict or {})
    takes_seed = "random_state" in inspect.signature(algorithm.__init__).parameters
    if strategy.random_state is not None and takes_seed and "random_state" not in options:
        options["random_state"] = deepcopy(strategy.random_state)
    count = min(count, len(X))
    if algorithm in (KMeans, MiniBatchKMeans) and name == "n_clusters" and options.get("init") is None:
        if options.get("n_init", "auto") in ("auto", 1):
            drawn = kmeans_plusplus(X, count, generator=seed)
            seeds = drawn.indices[drawn.scores > 0]  # rows at 0 coincide with others
            count = len(seeds)
            options |= {"init": X[seeds], "n_init": 1}
    options[name] = count
    return np.asarray(algorithm(**options).fit_predict(X))


class TypiClust(_Strategy):
    """TypiClust: the most typical sample of each of the largest clusters without labels.

    Parameters
    ----------
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Seeds the clustering, and breaks ties.
    cluster_algo : class, default=sklearn.cluster.KMeans
        Has ``fit_predict``. KMeans and MiniBatchKMeans are seeded by :func:`alkernels.kmeans_plusplus`, unless
        `cluster_algo_dict` says otherwise (``init``, or ``n_init`` above 1).
    cluster_algo_dict : dict or None, default=None
        Its options.
    n_cluster_param_name : str, default="n_clusters"
        What it calls the number of clusters, which is that of labels and picks together.
    k : int, default=5
        How many neighbours in its cluster typicality is measured by.

    Notes
    -----
    What differs from scikit-activeml 1.0.1, on purpose: no sample is picked twice (there, where clusters run out, as
    with copies of samples); clusters without candidates are passed over, where the host picks any candidate, also one
    picked before. When clusters run out, the rest of the batch is drawn evenly from the candidates left, all of utility
    1 as in the host. Candidates outside of the cluster in turn have utility -inf, as there.

    References
    ----------
    .. [1] G. Hacohen, A. Dekel, D. Weinshall. Active learning on a budget: opposite strategies suit high and low
       budgets. ICML 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.skactiveml import TypiClust
    >>> X, y = np.array([[0.0], [9.0], [9.5], [10.1]]), np.array([0, np.nan, np.nan, np.nan])
    >>> TypiClust(random_state=0).query(X, y)
    array([2])
    """

    def __init__(
        self,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
        cluster_algo: Any = KMeans,
        cluster_algo_dict: Any = None,
        n_cluster_param_name: Any = "n_clusters",
        k: Any = 5,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.cluster_algo = cluster_algo
        self.cluster_algo_dict = cluster_algo_dict
        self.n_cluster_param_name = n_cluster_param_name
        self.k = k

    def query(self, X: Any, y: Any, candidates: Any = None, batch_size: int = 1, return_utilities: bool = False) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        candidates : None or int array of shape (n_candidates,), default=None
            Rows of `X`. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: typicalities in the cluster in turn.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`.
        utilities : ndarray of shape (batch_size, n_samples)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities, enforce_mapping=True, as_features=True)
        check_scalar(self.k, "k", target_type=int, min_val=1)
        _check_clusterer(self.cluster_algo, self.cluster_algo_dict, self.n_cluster_param_name)
        if not task.batch_size:
            return self._answer(task, [])
        cluster = _clustered(self, task.X, int(task.labeled.sum()) + task.batch_size, task.seed)
        order = _shuffled(len(task.rows), task.seed).numpy()
        assert task.mapping is not None
        position = np.full(len(task.X), -1)
        position[task.mapping] = np.arange(len(task.mapping))
        ids, sizes = np.unique(cluster, return_counts=True)
        mixed = _shuffled(len(ids), task.seed).numpy()  # of clusters of one size any comes first
        turn = ids[mixed[np.argsort(-sizes[mixed], kind="stable")]]
        turn = turn[~np.isin(turn, cluster[task.labeled])]

        picks: list[int] = []
        utilities = np.full((task.batch_size, len(task.rows)), -np.inf) if task.utilities else None
        for c in turn:
            if len(picks) == task.batch_size:
                break
            inside = np.flatnonzero(cluster == c)
            among = position[inside] >= 0
            if not among.any():
                continue
            where = position[inside[among]]
            typical = _typicality(task.X[inside], self.k)[among]
            if utilities is not None:
                utilities[len(picks), where] = typical
            tied = where[typical == typical.max()]
            picks.append(int(order[np.isin(order, tied)][0]))
        if utilities is not None:
            utilities[len(picks) :] = 1
        free = order[~np.isin(order, picks)]
        return self._answer(task, [*picks, *free[: task.batch_size - len(picks)]], utilities)


def _typicality(rows: np.ndarray, k: int) -> np.ndarray:
    """One over the mean distance to the nearest neighbours, 1 for a lone row."""
    k = min(k, len(rows) - 1)
    if k == 0:
        return np.ones(1)
    return k / (knn(rows, rows, k + 1).distances.sum(1) + _EPSILON)


class ProbCover(_Strategy):
    """ProbCover: balls of one radius that cover as many samples as possible.

    Runs :func:`alkernels.greedy_coverage`: no array of shape (n_samples, n_samples) exists.

    Parameters
    ----------
    n_classes : int or None, default=None
        How many clusters the radius is chosen by. Default: the number of distinct labels in `y`, 2 at least.
    deltas : array-like or None, default=None
        Radii to choose from, the largest whose balls are pure. Default: 0.2, 0.4, ..., 2.
    alpha : float, default=0.95
        The share of samples, between 0 and 1, whose balls may hold samples of their own cluster only.
    cluster_algo : class, default=sklearn.cluster.KMeans
        Has ``fit_predict``. KMeans and MiniBatchKMeans are seeded by :func:`alkernels.kmeans_plusplus`, unless
        `cluster_algo_dict` says otherwise (``init``, or ``n_init`` above 1).
    cluster_algo_dict : dict or None, default=None
        Its options.
    n_cluster_param_name : str, default="n_clusters"
        What it calls the number of clusters.
    distance_func : callable, default=sklearn.metrics.pairwise_distances
        Takes `X`, gives all distances. For scikit-learn's ``pairwise_distances`` and ``euclidean_distances`` it is not
        called; another's matrix is made, as large as it is.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Seeds the clustering, and breaks ties.

    Attributes
    ----------
    delta_max_ : float
        The radius, of the first query or the last with `update`.

    Notes
    -----
    What differs from scikit-activeml 1.0.1, on purpose:

    - Labelled samples cover, and nothing else. There, samples that are neither labelled nor candidates cover too.
    - Distances are not kept between queries, so that the next may be about other samples; the radius is kept.
    - A single radius in `deltas` is taken as it is, without a warning about purity, which is not measured then.

    References
    ----------
    .. [1] O. Yehuda, A. Dekel, G. Hacohen, D. Weinshall. Active learning through a covering lens. NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.skactiveml import ProbCover
    >>> X, y = np.array([[0.0], [8.5], [9.0], [9.5]]), np.array([0, np.nan, np.nan, np.nan])
    >>> ProbCover(deltas=[0.5], random_state=0).query(X, y)
    array([2])
    """

    def __init__(
        self,
        n_classes: Any = None,
        deltas: Any = None,
        alpha: Any = 0.95,
        cluster_algo: Any = KMeans,
        cluster_algo_dict: Any = None,
        n_cluster_param_name: Any = "n_clusters",
        distance_func: Any = pairwise_distances,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.n_classes = n_classes
        self.deltas = deltas
        self.alpha = alpha
        self.cluster_algo = cluster_algo
        self.cluster_algo_dict = cluster_algo_dict
        self.n_cluster_param_name = n_cluster_param_name
        self.distance_func = distance_func

    def query(
        self,
        X: Any,
        y: Any,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
        update: bool = False,
    ) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        candidates : None or int array of shape (n_candidates,), default=None
            Rows of `X`. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: how many samples each candidate's ball would be the first to cover.
        update : bool, default=False
            Choose the radius anew. Otherwise it is that of the first query.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`.
        utilities : ndarray of shape (batch_size, n_samples)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities, enforce_mapping=True, as_features=True)
        n_classes = max(len(np.unique(task.y[task.labeled])), 2) if self.n_classes is None else self.n_classes
        check_scalar(n_classes, "n_classes", min_val=2, target_type=int)
        deltas = _DELTAS if self.deltas is None else np.sort(column_or_1d(self.deltas, dtype=float))
        if not len(deltas) or not (np.isfinite(deltas) & (deltas >= 0)).all():
            raise ValueError(f"deltas must hold at least one radius, finite and not negative, got {self.deltas!r}")
        check_scalar(
            self.alpha, "alpha", min_val=0, max_val=1, min_inclusive=False, max_inclusive=False, target_type=float
        )
        _check_clusterer(self.cluster_algo, self.cluster_algo_dict, self.n_cluster_param_name)
        if not callable(self.distance_func):
            raise TypeError(f"distance_func must be a function of X, got {self.distance_func!r}")
        check_scalar(update, "update", target_type=bool)
        euclidean = self.distance_func in (pairwise_distances, euclidean_distances)
        distances = None if euclidean else np.asarray(self.distance_func(task.X))
        pairs = (len(task.X), len(task.X))
        if distances is not None and distances.shape != pairs:
            raise ValueError(f"distance_func must give all pairs, shape {pairs}, got {distances.shape}")
        if update or not hasattr(self, "delta_max_"):
            self.delta_max_ = self._radius(task, n_classes, deltas, distances)
        if not task.batch_size:
            return self._answer(task, [])
        if distances is None:
            picks, utilities = _balls(task, self.delta_max_)
        else:
            picks, utilities = _balls_of(task, distances <= self.delta_max_)
        return self._answer(task, picks, utilities)

    def _radius(self, task: _Task, n_classes: int, deltas: np.ndarray, distances: np.ndarray | None) -> float:
        """The largest radius whose balls are pure: purity falls where it passes a distance to another cluster."""
        if len(deltas) == 1:
            return float(deltas[0])
        cluster = _clustered(self, task.X, n_classes, task.seed)
        apart = np.full(len(task.X), np.inf)
        for c in np.unique(cluster):
            inside = cluster == c
            if not inside.all():
                if distances is None:
                    apart[inside] = knn(task.X[inside], task.X[~inside], 1).distances[:, 0]
                else:
                    apart[inside] = distances[np.ix_(inside, ~inside)].min(1)
        purity = np.array([(apart > delta).mean() for delta in deltas])
        if purity[0] < self.alpha:
            warn_user(
                f"the purity of the smallest radius in deltas, {deltas[0]:.6g}, is {purity[0]:.6g}, which is below "
                f"alpha, {self.alpha}: it is taken, and smaller ones would be better"
            )
        return float(deltas[max(1, int((purity >= self.alpha).sum())) - 1])


def _balls(task: _Task, delta: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Picks of closed balls among Euclidean distances, and their utilities where they are asked for."""
    assert task.mapping is not None
    order = _shuffled(len(task.X), task.seed).numpy()
    may = np.zeros(len(task.X), dtype=bool)
    may[task.mapping] = True
    known = task.X[task.labeled]
    picked = greedy_coverage(
        task.X[order],
        task.batch_size,
        candidates=may[order],
        labeled=known if len(known) else None,
        kernel="tophat",
        bandwidth=max(math.nextafter(delta, math.inf), _SMALLEST_BALL),  # the kernel's is open
    )
    rows = order[picked.indices]
    position = np.empty(len(task.X), dtype=np.int64)
    position[task.mapping] = np.arange(len(task.mapping))
    if not task.utilities:
        return position[rows], None
    uncovered = np.ones((task.batch_size, len(task.X)))
    if len(known):
        uncovered[:, knn(task.X, known, 1).distances[:, 0] <= delta] = 0
    for step, pick in enumerate(rows[:-1], start=1):
        uncovered[step:, knn(task.X, task.X[[pick]], 1).distances[:, 0] <= delta] = 0
    utilities = np.empty((task.batch_size, len(task.rows)))
    wide = torch.from_numpy(task.X.astype(np.float64))
    for part in _tiles(len(task.rows), 3 * len(task.X)):
        points = torch.from_numpy(task.rows[part].astype(np.float64))
        inside = torch.cdist(points, wide, compute_mode="donot_use_mm_for_euclid_dist") <= delta
        utilities[:, part] = uncovered @ inside.double().numpy().T
    return position[rows], utilities


def _balls_of(task: _Task, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The same where all balls are known, [N, N]: each row's gain falls by what each pick covers."""
    assert task.mapping is not None
    order = _shuffled(len(task.rows), task.seed).numpy()
    covered = edges[task.labeled].any(0)
    balls = edges[task.mapping]
    gains = balls[:, ~covered].sum(1).astype(np.float64)
    utilities = np.empty((task.batch_size, len(task.rows))) if task.utilities else None
    picks: list[int] = []
    for step in range(task.batch_size):
        if utilities is not None:
            utilities[step] = gains
        left = gains[order]
        left[np.isin(order, picks)] = -np.inf
        picks.append(int(order[left.argmax()]))
        first = balls[picks[-1]] & ~covered
        gains = gains - balls[:, first].sum(1)
        covered |= first
    return np.array(picks), utilities


class MaxHerding(_Strategy):
    """MaxHerding: candidates whose kernels together cover the candidates.

    Runs :func:`alkernels.greedy_coverage` for Gaussian kernels; others are evaluated by scikit-learn, lazily. An array
    of shape (n_candidates, n_candidates) is not made.

    Parameters
    ----------
    normalize_samples : bool, default=True
        Scale samples to length one.
    metric : str or callable, default='rbf'
        As for ``sklearn.metrics.pairwise_kernels``, symmetric; not 'precomputed'.
    metric_dict : dict or None, default=None
        Its options, such as ``{"gamma": 1.0}``; the default gamma is ``1 / n_features``.
    missing_label : scalar or string or np.nan or None, default=np.nan
        What stands in `y` for a label that is missing.
    random_state : None or int or np.random.RandomState, default=None
        Breaks ties.

    Notes
    -----
    The picks are the host's, but for ties. As there, what is covered are the candidates, labelled samples cover, and
    without these the first pick is that of the largest mean kernel, negative values too.

    References
    ----------
    .. [1] W. Bae, J. Noh, D. J. Sutherland. Generalized coverage for more robust low-budget active learning. ECCV 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.skactiveml import MaxHerding
    >>> X, y = np.array([[0.0], [8.5], [9.0], [9.5]]), np.array([0, np.nan, np.nan, np.nan])
    >>> MaxHerding(normalize_samples=False, random_state=0).query(X, y)
    array([2])
    """

    def __init__(
        self,
        normalize_samples: Any = True,
        metric: Any = "rbf",
        metric_dict: Any = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.normalize_samples = normalize_samples
        self.metric = metric
        self.metric_dict = metric_dict

    def query(self, X: Any, y: Any, candidates: Any = None, batch_size: int = 1, return_utilities: bool = False) -> Any:
        """Pick the candidates to label next.

        Parameters
        ----------
        X, y : array-like of shapes (n_samples, n_features) and (n_samples,)
            All samples and their labels, `missing_label` where there is none.
        candidates : None, int array of shape (n_candidates,) or array of shape (n_candidates, n_features), default=None
            Rows of `X`, or samples of their own. Default: all that are not labelled.
        batch_size : int, default=1
            How many to pick.
        return_utilities : bool, default=False
            Also return the utilities: what each candidate would add to the mean coverage.

        Returns
        -------
        query_indices : ndarray of shape (batch_size,)
            Rows of `X`, or of `candidates` where these are samples.
        utilities : ndarray of shape (batch_size, n_samples or n_candidates)
            Only with `return_utilities`.
        """
        task = self._task(X, y, candidates, batch_size, return_utilities, as_features=True)
        options = {} if self.metric_dict is None else self.metric_dict
        check_type(options, "metric_dict", dict)
        check_type(self.normalize_samples, "normalize_samples", bool)
        if isinstance(self.metric, str) and self.metric == "precomputed":
            raise ValueError("metric must be a kernel of two samples, got 'precomputed'")
        if not task.batch_size:
            return self._answer(task, [])
        rows, known = task.rows, task.X[task.labeled]
        if self.normalize_samples:
            rows, known = normalize(rows), normalize(known) if len(known) else known

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return pairwise_kernels(a, b, metric=self.metric, **options)

        kernel(rows[:1], rows[:1])  # checks metric and options
        order = _shuffled(len(rows), task.seed).numpy()
        gamma = options.get("gamma")
        gamma = 1 / rows.shape[1] if gamma is None else gamma
        if self.metric == "rbf" and 1e-200 < gamma < 1e200:
            picked = greedy_coverage(
                rows[order],
                task.batch_size,
                labeled=known if len(known) else None,
                kernel="rbf",
                bandwidth=1 / math.sqrt(gamma),
            )
            picks = order[picked.indices]
        else:
            picks = order[_herded(rows[order], known, kernel, task.batch_size)]
        return self._answer(task, picks, _gains(rows, known, kernel, picks) if task.utilities else None)


_Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _most_similar(rows: np.ndarray, known: np.ndarray, kernel: _Kernel) -> np.ndarray:
    return np.concatenate([kernel(rows[part], known).max(1) for part in _tiles(len(rows), len(known))])


def _herded(rows: np.ndarray, known: np.ndarray, kernel: _Kernel, count: int) -> np.ndarray:
    """Greedy coverage under any kernel, ties to the first row; a gain from an earlier step bounds it now."""
    covered: np.ndarray | None = _most_similar(rows, known, kernel) if len(known) else None

    def gains(which: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in _tiles(len(which), len(rows)):
            similar = kernel(rows[which[part].numpy()], rows)
            parts.append((similar if covered is None else np.maximum(similar - covered, 0)).mean(1))
        return torch.from_numpy(np.concatenate(parts).astype(np.float64))

    picks: list[int] = []
    if covered is None:  # the first pick counts negative similarities, which may bound nothing
        picks.append(int(gains(torch.arange(len(rows))).argmax()))
        covered = np.maximum(kernel(rows, rows[picks])[:, 0], 0)
    greedy = LazyGreedy(torch.full((len(rows),), torch.inf, dtype=torch.float64), None, gains)
    for pick in picks:
        greedy.exclude(pick)
    while len(picks) < count:
        picks.append(greedy.best()[0])
        greedy.exclude(picks[-1])
        covered = np.maximum(covered, kernel(rows, rows[picks[-1:]])[:, 0])
    return np.array(picks)


def _gains(rows: np.ndarray, known: np.ndarray, kernel: _Kernel, picks: np.ndarray) -> np.ndarray:
    """The utilities of herding: what each row would have added before each pick."""
    covered = np.empty((len(picks), len(rows)))
    if len(known):
        covered[0] = _most_similar(rows, known, kernel)
    for step, pick in enumerate(picks[:-1], start=1):
        before = covered[step - 1] if step > 1 or len(known) else 0.0
        covered[step] = np.maximum(before, kernel(rows, rows[[pick]])[:, 0])
    utilities = np.empty((len(picks), len(rows)))
    for part in _tiles(len(rows), 2 * len(rows)):
        similar = kernel(rows[part], rows)
        for step in range(len(picks)):
            first = step == 0 and not len(known)
            utilities[step, part] = (similar if first else np.maximum(similar - covered[step], 0)).mean(1)
    return utilities
