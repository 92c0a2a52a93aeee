"""modAL 0.4: query strategies for its learners and committees. Needs no modAL itself, but scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alkernels._inputs import check_flag, check_integer
from alkernels.ops.kmeans_plusplus import kmeans_plusplus
from alkernels.strategies import committee as of_committee
from alkernels.strategies import gradient, uncertainty
from alkernels.strategies._picking import top_scores
from alkernels.strategies.diversity import k_center_greedy

try:
    from sklearn.exceptions import NotFittedError
except ImportError as error:
    raise ImportError(
        "alkernels.integrations.modal needs the package scikit-learn: pip install 'alkernels[modal]'"
    ) from error

Picked = tuple[np.ndarray, np.ndarray]


def _seed() -> int:
    """modAL draws from NumPy's global state."""
    return int(np.random.randint(2**31 - 1))  # noqa: NPY002


def _count(X: Any, n_instances: Any) -> int:
    rows = X.shape[0] if hasattr(X, "shape") else len(X)
    n_instances = check_integer(n_instances, "n_instances")
    if not 0 <= n_instances <= rows:
        raise ValueError(f"n_instances must be between 0 and {rows} (rows of X), got {n_instances}")
    return n_instances


def _best(scores: Any, n_instances: int, random_tie_break: bool) -> Picked:
    if not check_flag(random_tie_break, "random_tie_break"):
        return tuple(top_scores(np.asarray(scores), n_instances))
    return tuple(top_scores(np.asarray(scores), n_instances, tie_break="random", generator=_seed()))


def _of_model(score: Callable[..., Any], classifier: Any, X: Any, options: dict[str, Any]) -> np.ndarray:
    """Scores of predictions; without a fitted model all rows are the same, as in modAL."""
    try:
        proba = classifier.predict_proba(X, **options)
    except NotFittedError:
        return np.zeros(X.shape[0])
    return np.asarray(score(np.asarray(proba)))


def _of_members(score: Callable[..., Any], committee: Any, X: Any, options: dict[str, Any]) -> np.ndarray:
    try:
        draws = committee.vote_proba(X, **options)
    except NotFittedError:
        return np.zeros(X.shape[0])
    return np.asarray(score(np.asarray(draws)))


def uncertainty_sampling(
    classifier: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_proba_kwargs: Any
) -> Picked:
    """``modAL.uncertainty.uncertainty_sampling``: the rows of the least likely predictions, best first.

    What differs in all of these: rows come best first (modAL: in no order, or with `random_tie_break` best last),
    equal ones in the order of the pool, and a wrong `n_instances` is a ValueError that names it.

    Parameters
    ----------
    classifier : modAL learner or scikit-learn estimator
        With ``predict_proba``.
    X : array of N rows
        The pool, whatever the classifier takes.
    n_instances : int, default 1
        How many rows to pick, at most N.
    random_tie_break : bool, default False
        Which of equal scores come first is decided by NumPy's global random state.
    **predict_proba_kwargs
        For ``predict_proba``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and their scores, ``1 - max p``.

    Raises
    ------
    ValueError
        `n_instances` out of range, distributions that do not sum to 1 within 1e-3.

    Examples
    --------
    >>> from modAL.models import ActiveLearner  # doctest: +SKIP
    >>> from alkernels.integrations.modal import uncertainty_sampling
    >>> learner = ActiveLearner(classifier, uncertainty_sampling, x, y)  # doctest: +SKIP
    """
    n_instances = _count(X, n_instances)
    scores = _of_model(uncertainty.least_confident, classifier, X, predict_proba_kwargs)
    return _best(scores, n_instances, random_tie_break)


def margin_sampling(
    classifier: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_proba_kwargs: Any
) -> Picked:
    """``modAL.uncertainty.margin_sampling``: the rows of the smallest difference of the two largest probabilities.

    Parameters, errors and differences as for :func:`uncertainty_sampling`.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and their margins, ascending.
    """
    n_instances = _count(X, n_instances)
    scores = _of_model(lambda p: uncertainty.margin(p) - 1, classifier, X, predict_proba_kwargs)
    indices, turned = _best(scores, n_instances, random_tie_break)
    return indices, -turned


def entropy_sampling(
    classifier: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_proba_kwargs: Any
) -> Picked:
    """``modAL.uncertainty.entropy_sampling``: the rows of the largest entropy.

    Parameters, errors and differences as for :func:`uncertainty_sampling`.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and their entropies in nats, descending.
    """
    n_instances = _count(X, n_instances)
    scores = _of_model(uncertainty.entropy, classifier, X, predict_proba_kwargs)
    return _best(scores, n_instances, random_tie_break)


def vote_entropy_sampling(
    committee: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_kwargs: Any
) -> Picked:
    """``modAL.disagreement.vote_entropy_sampling``: the rows on which members vote most differently.

    Labels of any type are counted (modAL: numbers only). Parameters, errors and differences as for
    :func:`uncertainty_sampling`, with a ``modAL.models.Committee`` and keywords for its members' ``predict``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and the entropies of their votes in nats, descending.
    """
    n_instances = _count(X, n_instances)
    try:
        votes = np.stack([np.asarray(member.predict(X, **predict_kwargs)) for member in committee], 1)
    except NotFittedError:
        return _best(np.zeros(X.shape[0]), n_instances, random_tie_break)
    numbers = np.unique(votes, return_inverse=True)[1].reshape(votes.shape)
    return _best(of_committee.vote_entropy(votes=numbers), n_instances, random_tie_break)


def consensus_entropy_sampling(
    committee: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_proba_kwargs: Any
) -> Picked:
    """``modAL.disagreement.consensus_entropy_sampling``: the rows of the largest entropy of the mean prediction.

    Parameters, errors and differences as for :func:`uncertainty_sampling`, with a ``modAL.models.Committee``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and their entropies in nats, descending.
    """
    n_instances = _count(X, n_instances)
    scores = _of_members(of_committee.consensus_entropy, committee, X, predict_proba_kwargs)
    return _best(scores, n_instances, random_tie_break)


def max_disagreement_sampling(
    committee: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_proba_kwargs: Any
) -> Picked:
    """``modAL.disagreement.max_disagreement_sampling``: the rows that one member sees most unlike the mean.

    Parameters, errors and differences as for :func:`uncertainty_sampling`, with a ``modAL.models.Committee``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and their largest KL divergences in nats, descending.
    """
    n_instances = _count(X, n_instances)
    scores = _of_members(of_committee.max_disagreement, committee, X, predict_proba_kwargs)
    return _best(scores, n_instances, random_tie_break)


def bald_sampling(
    committee: Any, X: Any, n_instances: int = 1, random_tie_break: bool = False, **predict_proba_kwargs: Any
) -> Picked:
    """The rows of the largest mean KL divergence from the members to their mean: BALD, which modAL has not.

    Parameters, errors and differences as for :func:`uncertainty_sampling`, with a ``modAL.models.Committee``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) and their scores in nats, descending.
    """
    n_instances = _count(X, n_instances)
    scores = _of_members(of_committee.kl_consensus, committee, X, predict_proba_kwargs)
    return _best(scores, n_instances, random_tie_break)


def _features(classifier: Any, X: Any, features: Callable[[Any], Any] | None) -> np.ndarray:
    if features is not None:
        X = features(X)
    elif getattr(classifier, "on_transformed", False):
        X = classifier.transform_without_estimating(X)
    rows = np.asarray(X.toarray() if hasattr(X, "toarray") else X)
    return rows if rows.dtype.kind == "f" else rows.astype(np.float64)


def k_center_sampling(
    classifier: Any,
    X: Any,
    n_instances: int = 1,
    *,
    metric: str = "euclidean",
    features: Callable[[Any], Any] | None = None,
) -> Picked:
    """Core-set: the rows farthest from the labelled ones and from each other, which modAL has not.

    Parameters
    ----------
    classifier : modAL learner or committee
        ``X_training`` are its labelled rows; a committee's are those of its first member.
    X : array of shape (N, D)
        The pool. Sparse rows are made dense.
    n_instances : int, default 1
        How many rows to pick, at most N.
    metric : {"euclidean", "cosine"}, default "euclidean"
    features : callable, optional
        Maps rows of X to feature vectors. Default: as they are, or as the learner's pipeline transforms them where it
        has ``on_transformed``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) in the order picked, and their distances when picked, ``inf`` for the first where nothing is
        labelled: it is then drawn by NumPy's global random state.

    Raises
    ------
    ValueError
        `n_instances` or `metric` out of range, NaN or infinity in the features.

    References
    ----------
    .. [1] O. Sener, S. Savarese. Active learning for convolutional neural networks: a core-set approach. ICLR 2018.
    """
    n_instances = _count(X, n_instances)
    known = getattr(classifier, "X_training", None)
    if known is None and hasattr(classifier, "learner_list"):
        known = classifier.learner_list[0].X_training
    rows = _features(classifier, X, features)
    labeled = None if known is None else _features(classifier, known, features).astype(rows.dtype)
    seed = _seed() if labeled is None else None
    picks = k_center_greedy(rows, n_instances, labeled_features=labeled, metric=metric, generator=seed)
    return picks.indices, picks.scores


def kmeans_plusplus_sampling(
    classifier: Any, X: Any, n_instances: int = 1, *, features: Callable[[Any], Any] | None = None
) -> Picked:
    """k-means++ draws: rows with probability proportional to the squared distance to the nearest one drawn before.

    Parameters
    ----------
    classifier : modAL learner or committee
    X : array of shape (N, D)
        The pool. Sparse rows are made dense.
    n_instances : int, default 1
        How many rows to draw, at most N.
    features : callable, optional
        As for :func:`k_center_sampling`.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) in the order drawn, by NumPy's global random state, and their squared distances when drawn.

    Raises
    ------
    ValueError
        `n_instances` out of range, NaN or infinity in the features.
    """
    n_instances = _count(X, n_instances)
    picks = kmeans_plusplus(_features(classifier, X, features), n_instances, generator=_seed())
    return np.asarray(picks.indices), np.asarray(picks.scores)


def badge_sampling(
    classifier: Any,
    X: Any,
    n_instances: int = 1,
    *,
    features: Callable[[Any], Any] | None = None,
    **predict_proba_kwargs: Any,
) -> Picked:
    """BADGE: k-means++ draws among the last layer's gradients for the likeliest labels, which modAL has not.

    For classifiers that end in a linear layer with softmax: a network with `features`, or logistic regression, whose
    last layer's inputs are the rows themselves. For others (trees, neighbours) there is no such gradient.

    Parameters
    ----------
    classifier : modAL learner
        Fitted, with ``predict_proba``.
    X : array of N rows
        The pool.
    n_instances : int, default 1
        How many rows to pick, at most N.
    features : callable, optional
        Maps rows of X to the inputs of the last layer. Default: as for :func:`k_center_sampling`.
    **predict_proba_kwargs
        For ``predict_proba``.

    Returns
    -------
    tuple of ndarray
        Rows (n_instances,) in the order drawn, by NumPy's global random state, and their squared distances when drawn,
        ``inf`` for the first.

    Raises
    ------
    ValueError
        `n_instances` out of range, arrays that disagree, NaN.
    sklearn.exceptions.NotFittedError
        A classifier without predictions.

    References
    ----------
    .. [1] J. T. Ash, C. Zhang, A. Krishnamurthy, J. Langford, A. Agarwal. Deep batch active learning by diverse,
       uncertain gradient lower bounds. ICLR 2020.
    """
    n_instances = _count(X, n_instances)
    proba = np.asarray(classifier.predict_proba(X, **predict_proba_kwargs))
    picks = gradient.badge(proba, _features(classifier, X, features), n_instances, generator=_seed())
    return picks.indices, picks.scores
