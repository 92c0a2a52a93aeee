"""small-text 1.4 and 2.0 (as of its fourth development release): query strategies under its names."""

from __future__ import annotations

from typing import Any

import numpy as np

from alkernels._inputs import check_flag, check_integer
from alkernels.ops.bald import bald
from alkernels.ops.k_center_greedy import k_center_greedy
from alkernels.ops.knn import knn
from alkernels.ops.pairwise_kl import pairwise_kl
from alkernels.strategies._arguments import check_one_of
from alkernels.strategies._picking import top_scores
from alkernels.strategies.gradient import FIRST, badge
from alkernels.strategies.hybrid import diverse_minibatch

try:
    from sklearn.preprocessing import normalize as unit_rows
    from small_text import query_strategies as theirs
except ImportError as error:
    raise ImportError(
        "alkernels.integrations.small_text needs the package small-text: pip install 'alkernels[small-text]'"
    ) from error

# What says in small-text 2.0 that a strategy scores all rows; 1.4 has nothing of the kind.
_Scoring: Any = getattr(theirs, "ScoringMixin", type("ScoringMixin", (), {}))


def _seed() -> int:
    """small-text draws from NumPy's global state."""
    return int(np.random.randint(2**31 - 1))  # noqa: NPY002


def _embeddings(embeddings: Any, count: int) -> np.ndarray:
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise ValueError(
            f"embeddings must have a row for each unlabeled and then each labeled text, shape ({count}, D), got "
            f"{embeddings.shape}"
        )
    return embeddings


class _EmbeddingBased(theirs.EmbeddingBasedQueryStrategy):
    """small-text's own ``query`` around ``sample``: it embeds, raises for pools too small, and takes a whole pool."""

    def _options(self) -> dict[str, Any]:
        raise NotImplementedError

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self._options().items())
        return f"{type(self).__name__}({options})"


class GreedyCoreset(_EmbeddingBased):
    """``small_text.GreedyCoreset``: the texts farthest from all labelled ones and from each other.

    Same picks, but for ties. What differs: distances are kept from pick to pick, where small-text computes those to all
    centres again; an empty labelled set is fine (the first text is drawn); no warning about a default of old.

    Parameters
    ----------
    distance_metric : {"euclidean", "cosine"}, default "euclidean"
    normalize : bool, default True
        Scale embeddings to length one first.
    batch_size : int, default 100
        Is not used.

    References
    ----------
    .. [1] O. Sener, S. Savarese. Active learning for convolutional neural networks: a core-set approach. ICLR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.small_text import GreedyCoreset
    >>> embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    >>> GreedyCoreset().sample(None, None, np.array([1, 2]), np.array([0]), None, 1, embeddings).tolist()
    [0]
    """

    def __init__(self, distance_metric: str = "euclidean", normalize: bool = True, batch_size: int = 100) -> None:
        self.distance_metric = check_one_of(distance_metric, "distance_metric", ("euclidean", "cosine"))
        self.normalize = check_flag(normalize, "normalize")
        self.batch_size = batch_size

    def sample(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: np.ndarray,
        indices_labeled: np.ndarray,
        y: Any,
        n: int,
        embeddings: Any,
        embeddings_proba: Any = None,
    ) -> np.ndarray:
        """Positions in `indices_unlabeled`, in the order picked."""
        rows = _embeddings(embeddings, len(indices_unlabeled) + len(indices_labeled))
        if self.normalize and self.distance_metric == "euclidean":
            rows = unit_rows(rows)
        known = rows[indices_labeled] if len(indices_labeled) else None
        seed = _seed() if known is None else None
        picks = k_center_greedy(rows[indices_unlabeled], n, labeled=known, metric=self.distance_metric, generator=seed)
        return picks.indices

    def _options(self) -> dict[str, Any]:
        return {
            "distance_metric": self.distance_metric,
            "normalize": self.normalize,
            "batch_size": self.batch_size,
        }


class BADGE(_EmbeddingBased):
    """``small_text.integrations.pytorch.query_strategies.BADGE``: k-means++ draws among last-layer gradients.

    small-text 1.4 and 2.0 draw among ``-p ⊗ h``, and for two classes among the embeddings h alone; these draw among
    the gradients ``(p - e_ŷ) ⊗ h`` of the paper, which are never built: memory is ``N (C + D)`` instead of ``N C D``.

    Parameters
    ----------
    num_classes : int
    first : {"max_norm", "uniform"}, default "max_norm"
        The first pick: the longest gradient, as in the authors' code, or any text, as in small-text.

    Notes
    -----
    Decided by NumPy's global random state. Embeddings are to be the inputs of the classifier's last layer. A classifier
    whose ``embed`` gives no probabilities is asked for them.

    References
    ----------
    .. [1] J. T. Ash, C. Zhang, A. Krishnamurthy, J. Langford, A. Agarwal. Deep batch active learning by diverse,
       uncertain gradient lower bounds. ICLR 2020.
    """

    def __init__(self, num_classes: int, *, first: str = "max_norm") -> None:
        self.num_classes = check_integer(num_classes, "num_classes")
        self.first = check_one_of(first, "first", FIRST)

    def sample(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: np.ndarray,
        indices_labeled: np.ndarray,
        y: Any,
        n: int,
        embeddings: Any,
        embeddings_proba: Any = None,
    ) -> np.ndarray:
        """Positions in `indices_unlabeled`, in the order drawn."""
        rows = _embeddings(embeddings, len(indices_unlabeled) + len(indices_labeled))
        if embeddings_proba is None:
            proba = np.asarray(clf.predict_proba(dataset[indices_unlabeled]))
        else:
            proba = np.asarray(embeddings_proba)[indices_unlabeled]
        if proba.ndim != 2 or proba.shape[1] != self.num_classes:
            raise ValueError(
                f"num_classes must be that of the classifier's probabilities, got {self.num_classes} and {proba.shape}"
            )
        return badge(proba, rows[indices_unlabeled], n, first=self.first, generator=_seed()).indices

    def _options(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}


class ContrastiveActiveLearning(_EmbeddingBased):
    """``small_text.ContrastiveActiveLearning`` (CAL): texts predicted unlike the labelled texts nearest to them.

    As in the paper, neighbours are labelled texts only; small-text looks for them among all texts, the text itself
    included. Embeddings that are given to ``query`` are used, and then the classifier is asked for probabilities. Texts
    come best first.

    Parameters
    ----------
    k : int, default 10
        How many neighbours; with fewer labelled texts, all of them.
    embed_kwargs : dict, optional
        For the classifier's ``embed``.
    normalize : bool, default True
        Scale embeddings to length one first.
    batch_size : int, default 100
        Is not used.
    pbar : "tqdm" or None, default "tqdm"
        For the classifier's ``embed``.

    Notes
    -----
    At least one labelled text is needed.

    References
    ----------
    .. [1] K. Margatina, G. Vernikos, L. Barrault, N. Aletras. Active learning by acquiring contrastive examples.
       EMNLP 2021.
    """

    def __init__(
        self,
        k: int = 10,
        embed_kwargs: dict[str, Any] | None = None,
        normalize: bool = True,
        batch_size: int = 100,
        pbar: str | None = "tqdm",
    ) -> None:
        self.k = check_integer(k, "k")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.normalize = check_flag(normalize, "normalize")
        self.embed_kwargs = {} if embed_kwargs is None else dict(embed_kwargs)
        self.batch_size, self.pbar = batch_size, pbar
        self.scores_: np.ndarray | None = None

    def query(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: np.ndarray,
        indices_labeled: np.ndarray,
        y: Any,
        n: int = 10,
        pbar: str | None = "tqdm",
        embeddings: Any = None,
        embed_kwargs: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """As small-text's, with the constructor's `pbar` and `embed_kwargs`."""
        return super().query(
            clf,
            dataset,
            indices_unlabeled,
            indices_labeled,
            y,
            n=n,
            pbar=self.pbar,
            embeddings=embeddings,
            embed_kwargs=self.embed_kwargs | (embed_kwargs or {}),
        )

    def sample(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: np.ndarray,
        indices_labeled: np.ndarray,
        y: Any,
        n: int,
        embeddings: Any,
        embeddings_proba: Any = None,
    ) -> np.ndarray:
        """Positions in `indices_unlabeled`, best first; ``scores_`` holds the mean divergences in nats, (U,)."""
        rows = _embeddings(embeddings, len(indices_unlabeled) + len(indices_labeled))
        if not len(indices_labeled):
            raise ValueError("indices_labeled must hold a text at least, got none: CAL compares with labelled texts")
        proba = np.asarray(clf.predict_proba(dataset) if embeddings_proba is None else embeddings_proba)
        if self.normalize:
            rows = unit_rows(rows)
        near = knn(rows[indices_unlabeled], rows[indices_labeled], min(self.k, len(indices_labeled))).indices
        apart = pairwise_kl(proba[indices_labeled], proba[indices_unlabeled], neighbors=near, gather="p")
        self.scores_ = np.asarray(apart).mean(1)
        return top_scores(self.scores_, n).indices

    def _options(self) -> dict[str, Any]:
        return {"k": self.k, "embed_kwargs": self.embed_kwargs, "normalize": self.normalize}


class EmbeddingKMeans(_EmbeddingBased):
    """``small_text.EmbeddingKMeans``: the texts next to the centres of k-means clusters, one for each.

    What differs: k-means starts from one exact k-means++ seeding, which NumPy's global random state decides; the text
    next to a centre is that at the smallest Euclidean distance, also where embeddings are not of length one; and where
    two centres have the same next text, texts are assigned so that their distances sum up to the least.

    Parameters
    ----------
    normalize : bool, default True
        Scale embeddings to length one first.

    References
    ----------
    .. [1] M. Yuan, H.-T. Lin, J. Boyd-Graber. Cold-start active learning through self-supervised language modeling.
       EMNLP 2020.
    """

    def __init__(self, normalize: bool = True) -> None:
        self.normalize = check_flag(normalize, "normalize")

    def sample(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: np.ndarray,
        indices_labeled: np.ndarray,
        y: Any,
        n: int,
        embeddings: Any,
        embeddings_proba: Any = None,
    ) -> np.ndarray:
        """Positions in `indices_unlabeled`, ascending."""
        rows = _embeddings(embeddings, len(indices_unlabeled) + len(indices_labeled))[indices_unlabeled]
        if self.normalize:
            rows = unit_rows(rows)
        # without scores and with all rows kept, that is the rows next to the centres
        return diverse_minibatch(
            rows, np.zeros(len(rows)), n, beta=len(rows), weighted=False, generator=_seed()
        ).indices

    def _options(self) -> dict[str, Any]:
        return {"normalize": self.normalize}


class BALD(_Scoring, theirs.QueryStrategy):
    """``small_text.BALD``: texts about whose label the classifier's dropout draws disagree most.

    Texts come best first, ties in the order of `indices_unlabeled`. Scores are in nats (small-text: bits), exact for
    probabilities of 0, and never below it.

    Parameters
    ----------
    dropout_samples : int, default 10
        Draws a text, ``clf.predict_proba(dataset, dropout_sampling=dropout_samples)``.

    Attributes
    ----------
    scores_, last_scores : ndarray of shape (len(dataset),) or None
        Of the last query, or the last call of ``score``.

    References
    ----------
    .. [1] N. Houlsby, F. Huszár, Z. Ghahramani, M. Lengyel. Bayesian active learning for classification and preference
       learning. arXiv 1112.5745, 2011.
    """

    def __init__(self, dropout_samples: int = 10) -> None:
        self.dropout_samples = check_integer(dropout_samples, "dropout_samples")
        if self.dropout_samples < 1:
            raise ValueError(f"dropout_samples must be at least 1, got {dropout_samples}")
        self.scores_: np.ndarray | None = None

    @property
    def last_scores(self) -> np.ndarray | None:
        """What ``score`` returned last."""
        return self.scores_

    def score(
        self, clf: Any, dataset: Any, indices_unlabeled: np.ndarray, indices_labeled: np.ndarray, y: Any
    ) -> np.ndarray:
        """The score of every text of the dataset."""
        draws = np.asarray(clf.predict_proba(dataset, dropout_sampling=self.dropout_samples))
        self.scores_ = np.asarray(bald(draws))
        return self.scores_

    def query(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: np.ndarray,
        indices_labeled: np.ndarray,
        y: Any,
        n: int = 10,
    ) -> np.ndarray:
        """Indices of `n` unlabelled texts in the dataset."""
        self._validate_query_input(indices_unlabeled, n)
        scores = self.score(clf, dataset, indices_unlabeled, indices_labeled, y)
        if len(indices_unlabeled) == n:
            return np.array(indices_unlabeled)
        return np.asarray(indices_unlabeled)[top_scores(scores[indices_unlabeled], n).indices]

    def __str__(self) -> str:
        return f"BALD(dropout_samples={self.dropout_samples})"
