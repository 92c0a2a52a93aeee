"""baal 2.1: its heuristics under its names, ranks best first."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from alkernels._inputs import check_integer
from alkernels._probabilities import Probabilities
from alkernels.ops import bald as bald_op
from alkernels.ops.batchbald import batchbald
from alkernels.ops.joint_entropy import MAX_CONFIGURATIONS, NUM_SAMPLES
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.strategies._arguments import check_above_zero
from alkernels.strategies.hybrid import power, softmax, softrank

try:
    from baal.active import heuristics
except ImportError as error:
    raise ImportError("alkernels.integrations.baal needs the package baal: pip install 'alkernels[baal]'") from error

# Probabilities may sum to 1 as roughly as this, of half precision; what is further off is taken for logits.
_SUM_TOLERANCE = 4e-3
# Sums closer to 1 are left as they are; the kernels take 1e-3.
_CLOSE = 1e-4
# So many predictions are copied at a time, and read at a time: those stay in cache.
_COPIED, _READ = 1 << 22, 1 << 17


class _Heuristic(heuristics.AbstractHeuristic):
    """What all heuristics share: tensors of any device, and equal scores in the order of the pool."""

    def get_uncertainties(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Scores of an array of predictions, reduced; what is not finite comes last, with a warning."""
        scores = np.asarray(self.reduction(self.compute_score(predictions, target_predictions)))
        sound = np.isfinite(scores)
        if not sound.all():
            last = 0.0 if self.reversed else 10000.0
            warnings.warn(f"Invalid value in the score, will be put to {last:g}", UserWarning, stacklevel=2)
            scores = np.where(sound, scores, last)
        return scores

    def reorder_indices(self, scores: Any) -> np.ndarray:
        """Rows by their scores, the most uncertain first, ties to the lowest."""
        if self.shuffle_prop > 0:
            return super().reorder_indices(scores)
        scores = np.concatenate(scores) if isinstance(scores, Sequence) else scores
        if scores.ndim > 1:
            raise ValueError(
                f"scores must be one a row to be ordered, got {scores.ndim} dimensions; "
                f"reduction must bring them down, got {self._reduction_name!r}"
            )
        return np.argsort(-scores if self.reversed else scores, kind="stable")


class _OfProbabilities(_Heuristic):
    """A heuristic by one of the kernel's scores; ``1 - score`` where baal's runs the other way."""

    _kernel_score = ""
    _high_is_uncertain = True
    _one_is_enough = True

    def __init__(self, shuffle_prop: Any = heuristics.heuristics.DEPRECATED, reduction: Any = "none") -> None:
        super().__init__(shuffle_prop=shuffle_prop, reverse=self._high_is_uncertain, reduction=reduction)

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores [n] of sound probabilities [n, K, C]."""
        scores = prediction_scores(Probabilities(rows, "predictions", 3, False), self._kernel_score)
        return scores if self._high_is_uncertain else 1 - scores

    def compute_score(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Scores of predictions.

        Parameters
        ----------
        predictions : ndarray or Tensor of shape (N, C, ..., K), or (N, C) where one prediction is enough
            Probabilities or logits.
        target_predictions : object
            Is not used.

        Returns
        -------
        ndarray of shape (N, ...), float64
            NaN for rows that are none of both.
        """
        array = _single(predictions)
        if array.dim() == 2 and self._one_is_enough:
            array = array[:, :, None]
        if array.dim() < 3:
            raise ValueError(f"predictions must have shape [N, C, ..., K], got {tuple(array.shape)}")
        parts = [np.empty((0, *array.shape[2:-1]))]
        off_one = _off_one(array)
        if self._one_is_enough and off_one <= _CLOSE:
            array = _averaged(array)
        for tile in _tiles(array, _COPIED):
            rows = _rows_of(tile, off_one)
            if bool(rows.sum().isfinite()):
                scores = self._score(rows)
            else:
                scores = torch.full((len(rows),), torch.nan, dtype=torch.float64, device=rows.device)
                sound = rows.isfinite().flatten(1).all(1)
                if bool(sound.any()):
                    scores[sound] = self._score(rows[sound])
            parts.append(scores.reshape(len(tile), *tile.shape[2:-1]).cpu().numpy())
        return np.concatenate(parts)


def _single(predictions: Any) -> torch.Tensor:
    """One array of predictions as a tensor; of a list, its only one."""
    if isinstance(predictions, (list, tuple)):
        if len(predictions) != 1:
            raise ValueError(
                f"predictions must be a single array [N, C, ..., K], got {len(predictions)}; for models of several "
                "outputs there is baal.active.heuristics.CombineHeuristics"
            )
        predictions = predictions[0]
    array = torch.as_tensor(predictions).detach()
    if not array.is_floating_point():
        raise TypeError(f"predictions must be floating-point, got dtype {array.dtype}")
    return array


def _tiles(array: torch.Tensor, numbers: int) -> Iterator[torch.Tensor]:
    """Some rows at a time."""
    return iter(array.split(max(1, numbers // max(1, math.prod(array.shape[1:])))))


def _averaged(array: torch.Tensor) -> torch.Tensor:
    """The mean prediction [N, C, ..., 1], in float64."""
    return torch.cat([tile.mean(-1, keepdim=True, dtype=torch.float64) for tile in _tiles(array, _READ)])


def _off_one(array: torch.Tensor) -> float:
    """How far sums over classes are off 1; ``inf`` for logits, which baal tells by that, for all rows at once."""
    furthest = 0.0
    for tile in _tiles(array, _READ):
        if not tile.numel():
            continue
        low, high = tile.aminmax()
        if low.isnan():
            tile = tile[~tile.isnan().flatten(1).any(1)]
            if not len(tile):
                continue
            low, high = tile.aminmax()
        if low < 0 or high > 1:
            return math.inf
        if array.shape[1] > 1:
            sums = tile.sum(1, dtype=torch.promote_types(tile.dtype, torch.float32))
            furthest = max(furthest, float((sums - 1).abs().max()))
    return furthest if furthest <= _SUM_TOLERANCE else math.inf


def _rows_of(tile: torch.Tensor, off_one: float) -> torch.Tensor:
    """[n, C, ..., K] as probabilities [n * ..., K, C] that sum to 1, at least float32; one class is of a sigmoid."""
    rows = tile.to(torch.promote_types(tile.dtype, torch.float32)).movedim(1, -1).flatten(0, -3)
    if rows.shape[-1] == 1:
        p = rows.sigmoid() if math.isinf(off_one) else rows
        return torch.cat([1 - p, p], -1)
    if math.isinf(off_one):
        return rows.softmax(-1)
    return rows if off_one <= _CLOSE else rows / rows.sum(-1, keepdim=True)  # such as of half precision


class BALD(_OfProbabilities):
    """``baal.active.heuristics.BALD``: mutual information of the label and the draws, in nats.

    Parameters
    ----------
    shuffle_prop : float, optional
        Deprecated by baal.
    reduction : str or callable, default "none"
        What makes one score of those of an item with several labels, such as pixels: "mean", "sum", "max", "min".

    Notes
    -----
    Differs from baal: no score is below 0; one class [N, 1, ..., K] is that of a sigmoid, with the information of
    both its outcomes (baal counts one); half-precision probabilities are not taken for logits; tensors on any
    device; equal scores come in the order of the pool.

    References
    ----------
    .. [1] N. Houlsby, F. Huszár, Z. Ghahramani, M. Lengyel. Bayesian active learning for classification and preference
       learning. arXiv 1112.5745, 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.baal import BALD
    >>> agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]  # [C, K]
    >>> BALD()(np.array([agree, differ])).tolist()
    [1, 0]
    """

    _kernel_score = "bald"
    _one_is_enough = False


class Entropy(_OfProbabilities):
    """``baal.active.heuristics.Entropy``: entropy of the mean prediction, in nats.

    Parameters
    ----------
    shuffle_prop : float, optional
        Deprecated by baal.
    reduction : str or callable, default "none"
        As in :class:`BALD`.

    Notes
    -----
    Differs from baal for several draws of logits: probabilities are averaged, not logits.
    """

    _kernel_score = "entropy"


class Margin(_OfProbabilities):
    """``baal.active.heuristics.Margin``: the two largest mean probabilities apart; the smallest difference first.

    Parameters
    ----------
    shuffle_prop : float, optional
        Deprecated by baal.
    reduction : str or callable, default "none"
        As in :class:`BALD`.

    Notes
    -----
    Differs from baal for several draws of logits: probabilities are averaged, not logits.
    """

    _kernel_score = "margin"
    _high_is_uncertain = False


class Certainty(_OfProbabilities):
    """``baal.active.heuristics.Certainty``: the largest mean probability; the smallest first.

    Parameters
    ----------
    shuffle_prop : float, optional
        Deprecated by baal.
    reduction : str or callable, default "none"
        As in :class:`BALD`.

    Notes
    -----
    Differs from baal for logits, which it compares as they are.
    """

    _kernel_score = "least_confident"
    _high_is_uncertain = False


class Variance(_Heuristic):
    """``baal.active.heuristics.Variance``: variance over the draws, of what comes as it comes (regression too).

    Parameters
    ----------
    shuffle_prop : float, optional
        Deprecated by baal.
    reduction : str or callable, default "mean"
        What makes one score of those of all classes; not "none".
    """

    def __init__(self, shuffle_prop: Any = heuristics.heuristics.DEPRECATED, reduction: Any = "mean") -> None:
        if reduction == "none":
            raise ValueError("reduction must bring [N, C, ...] down to [N], got 'none'")
        super().__init__(shuffle_prop=shuffle_prop, reverse=True, reduction=reduction)

    def compute_score(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Population variances [N, C, ...] of predictions [N, C, ..., K], in float64."""
        array = _single(predictions)
        if array.dim() < 3:
            raise ValueError(f"predictions must have shape [N, C, ..., K], got {tuple(array.shape)}")
        parts = [np.empty(array.shape[:-1])[:0]]
        parts += [tile.double().var(-1, correction=0).cpu().numpy() for tile in _tiles(array, _COPIED)]
        return np.concatenate(parts)


class EPIG(heuristics.EPIG, _Heuristic):
    """``baal.active.heuristics.EPIG``: what a label says about the predictions at target points, in nats.

    Nothing of size ``N x C x T x C`` is held, and results are float64. In an ``ActiveLearningLoop`` the targets are the
    labelled set, as baal has it. It is made with baal's ``shuffle_prop``, ``reverse`` (which has no effect there
    either) and ``reduction``.

    References
    ----------
    .. [1] F. Bickford Smith, A. Kirsch, S. Farquhar, Y. Gal, A. Foster, T. Rainforth. Prediction-oriented Bayesian
       active learning. AISTATS 2023.
    """

    def compute_score(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Scores [N] of predictions [N, C, K] for target_predictions [T, C, K], both probabilities or logits."""
        pool, targets = _single(predictions), _single(target_predictions)
        for name, array in (("predictions", pool), ("target_predictions", targets)):
            if array.dim() != 3:
                raise ValueError(f"{name} must have shape [N, C, K], got {tuple(array.shape)}")
        rows, known = _rows_of(pool, _off_one(pool)), _rows_of(targets, _off_one(targets))
        scores = torch.full((len(rows),), torch.nan, dtype=torch.float64, device=rows.device)
        sound = rows.isfinite().flatten(1).all(1)
        if bool(sound.any()):
            scores[sound] = torch.as_tensor(bald_op.epig(rows[sound], known.to(rows.device)))
        return scores.cpu().numpy()


class BatchBALD(BALD):
    """``baal.active.heuristics.BatchBALD``: a batch by greedy joint mutual information, in the order picked.

    baal 2.1 sorts its batch the wrong way round and leaves the best row out of the first `num_samples`; here the ranks
    begin with the batch, best first, and go on with the other rows by BALD.

    Parameters
    ----------
    num_samples : int
        How many rows a batch has (the query size of the loop); more than there are: all of them.
    num_draw : int, optional
        Label configurations drawn for each draw of the posterior, once there are too many to enumerate. Default:
        40000 in all.
    shuffle_prop : float, optional
        Deprecated by baal.
    reduction : str or callable, default "none"
        Is not used.
    max_configurations : int, default 40000
        Up to so many configurations are enumerated.

    Notes
    -----
    The draws must be the same weights for every row. Samples are drawn from torch's global generator. A generator of
    chunks is joined first, as a batch needs all of its rows.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.baal import BatchBALD
    >>> a, b = [0.9, 0.1], [0.2, 0.8]
    >>> draws = np.array([[a, a, b, b], [a, a, b, b], [a, b, a, b]]).transpose(0, 2, 1)  # row 1 is a copy of row 0
    >>> BatchBALD(num_samples=2)(draws).tolist()
    [0, 2, 1]
    """

    def __init__(
        self,
        num_samples: int,
        num_draw: int | None = None,
        shuffle_prop: Any = heuristics.heuristics.DEPRECATED,
        reduction: Any = "none",
        *,
        max_configurations: int = MAX_CONFIGURATIONS,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("num_draw", num_draw)):
            if value is not None and check_integer(value, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__(shuffle_prop=shuffle_prop, reduction=reduction)
        self.num_samples, self.num_draw, self.max_configurations = num_samples, num_draw, max_configurations

    def _batch(self, predictions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Picks, their gains, and which rows may be picked."""
        array = _single(predictions)
        if array.dim() != 3:
            raise ValueError(f"predictions must have shape [N, C, K] for BatchBALD, got {tuple(array.shape)}")
        rows = _rows_of(array, _off_one(array))
        sound = rows.isfinite().flatten(1).all(1).nonzero().flatten()
        picks = batchbald(
            rows[sound],
            min(self.num_samples, len(sound)),
            max_configurations=self.max_configurations,
            num_samples=NUM_SAMPLES if self.num_draw is None else self.num_draw * rows.shape[1],
        )
        return sound[picks.indices].cpu().numpy(), picks.scores.cpu().numpy(), sound.cpu().numpy()

    def compute_score(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """The gain of each row of the batch, 0 for the others, [N]; NaN for rows that are no predictions."""
        return self._scores(_single(predictions), *self._batch(predictions))

    @staticmethod
    def _scores(array: torch.Tensor, picks: np.ndarray, gains: np.ndarray, sound: np.ndarray) -> np.ndarray:
        scores = np.full(len(array), np.nan)
        scores[sound] = 0.0
        scores[picks] = gains
        return scores

    def get_uncertainties_generator(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Scores of chunks of predictions, joined."""
        return self.get_uncertainties(_joined(predictions))

    def get_ranks(self, predictions: Any, target_predictions: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """All rows, the batch first in the order picked, and the scores.

        Parameters
        ----------
        predictions : ndarray, Tensor or generator of chunks, of shape (N, C, K)
        target_predictions : object
            Is not used.

        Returns
        -------
        tuple of ndarray
            Rows (N,), and scores (N,) in the order of the pool: the gains of the batch, 0 for the others.
        """
        if isinstance(predictions, types.GeneratorType):
            predictions = _joined(predictions)
        array = _single(predictions)
        picks, gains, sound = self._batch(array)
        rest = np.nan_to_num(super().compute_score(array), nan=-1.0)
        rest[picks] = np.inf  # they come first, whatever their order
        others = np.argsort(-rest, kind="stable")[len(picks) :]
        scores = self._scores(array, picks, gains, sound)
        if len(sound) < len(scores):
            warnings.warn("Invalid value in the score, will be put to 0", UserWarning, stacklevel=2)
        return np.concatenate([picks, others]), np.nan_to_num(scores, nan=0.0)


def _joined(chunks: Any) -> torch.Tensor:
    parts = [_single(chunk) for chunk in chunks]
    if not parts:
        raise ValueError("predictions must have at least one chunk, got none")
    return torch.cat(parts)


class _Sampling(heuristics.AbstractHeuristic):
    """Rows drawn by the scores of another heuristic."""

    def __init__(self, base_heuristic: Any, query_size: int, temperature: float = 1.0) -> None:
        super().__init__(reverse=True)
        if check_integer(query_size, "query_size") < 0:
            raise ValueError(f"query_size must not be negative, got {query_size}")
        self._bh, self.query_size = base_heuristic, query_size
        self.temperature = check_above_zero(temperature, "temperature")

    _draw: Callable[..., Any]

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        """Not yet of sum 1, how probable each row is to be drawn first."""
        raise NotImplementedError

    def get_scores(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """The base heuristic's scores, one a row, turned round (``1 - score``) where low means uncertain."""
        of = self._bh.get_uncertainties
        if isinstance(predictions, types.GeneratorType):
            of = self._bh.get_uncertainties_generator
        scores = np.asarray(of(predictions, target_predictions=target_predictions), dtype=np.float64)
        if scores.ndim != 1:
            raise ValueError(f"base_heuristic must give one score a row, got shape {scores.shape}; set its reduction")
        return scores if self._bh.reversed else 1 - scores

    def get_uncertainties(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """How probable each row is to be drawn first, (N,)."""
        return self._shares(self.get_scores(predictions, target_predictions))

    def get_uncertainties_generator(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """The same of chunks of predictions."""
        return self.get_uncertainties(predictions, target_predictions)

    def _shares(self, scores: np.ndarray) -> np.ndarray:
        weights = self._weights(scores)
        return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / max(1, len(weights)))

    def get_ranks(self, predictions: Any, target_predictions: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows drawn without replacement, and how probable each was to be drawn first.

        Parameters
        ----------
        predictions : ndarray, Tensor or generator of chunks, of shape (N, C, ..., K)
        target_predictions : ndarray, optional
            For a base heuristic that takes it.

        Returns
        -------
        tuple of ndarray
            Rows (query_size,), in the order drawn, all where there are fewer; probabilities (N,).
        """
        scores = self.get_scores(predictions, target_predictions)
        shares = self._shares(scores)  # checks them as well
        picks = type(self)._draw(
            scores,
            min(self.query_size, len(scores)),
            beta=1 / self.temperature,
            generator=int(np.random.randint(2**31 - 1)),  # noqa: NPY002 (baal draws from NumPy's global state)
        )
        return picks.indices, shares


class PowerSampling(_Sampling):
    """``baal.active.heuristics.stochastics.PowerSampling``: drawn by a power of the scores.

    baal 2.1 cannot use it in an ``ActiveLearningLoop``: its ``get_ranks`` takes one argument, and is given two. Also
    different: heuristics whose low scores are uncertain are turned round (baal then draws the most certain rows); where
    fewer rows than `query_size` have a score, they come first and others follow at random (baal draws all at random);
    a pool of fewer rows is taken whole; draws are exact.

    Parameters
    ----------
    base_heuristic : AbstractHeuristic
        Its scores are drawn by: baal's, or those of this module.
    query_size : int
        How many rows to draw.
    temperature : float, default 1.0
        Above 0: rows are drawn with probability proportional to ``score ** (1 / temperature)``.

    Raises
    ------
    ValueError
        Negative scores, an argument out of range.

    Notes
    -----
    Decided by NumPy's global random state, as in baal.

    References
    ----------
    .. [1] A. Kirsch, S. Farquhar, P. Atighehchian, A. Jesson, F. Branchaud-Charron, Y. Gal. Stochastic batch
       acquisition: a simple baseline for deep active learning. TMLR 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from alkernels.integrations.baal import BALD, PowerSampling
    >>> agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]  # [C, K]
    >>> PowerSampling(BALD(), query_size=1)(np.array([agree, differ])).tolist()
    [1]
    """

    _draw = staticmethod(power)

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        if (scores < 0).any():
            raise ValueError(
                f"base_heuristic must give no negative scores for PowerSampling, got {scores.min():.6g}; "
                "GibbsSampling and RankBasedSampling take any"
            )
        most = scores.max(initial=0.0)
        return (scores / most if most > 0 else scores) ** (1 / self.temperature)


class GibbsSampling(_Sampling):
    """``baal.active.heuristics.stochastics.GibbsSampling``: drawn by the exponential of the scores.

    Parameters, differences from baal and references as for :class:`PowerSampling`; scores may be negative, and the
    base heuristic's own are not changed in place. Probabilities are proportional to ``exp(score / temperature)``.
    """

    _draw = staticmethod(softmax)

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        return np.exp((scores - scores.max(initial=-np.inf)) / self.temperature)


class RankBasedSampling(_Sampling):
    """``baal.active.heuristics.stochastics.RankBasedSampling``: drawn by the ranks of the scores, 1 the best.

    Parameters, differences from baal and references as for :class:`PowerSampling`; scores may be negative.
    Probabilities are proportional to ``rank ** (-1 / temperature)``; equal scores share out their ranks at random.
    """

    _draw = staticmethod(softrank)

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
        weights = np.arange(1, len(scores) + 1) ** (-1 / self.temperature)
        sums = np.bincount(np.repeat(np.arange(len(sizes)), sizes), weights=weights, minlength=len(sizes))
        return (sums / sizes)[group]
