"""Training dynamics: what epochs of training said of each row."""

from __future__ import annotations

from typing import Any

import torch

from alkernels._inputs import Array, as_tensor, check_integer
from alkernels._sources import is_numpy
from alkernels.strategies._arguments import check_one_of
from alkernels.strategies._catalogue import strategy
from alkernels.strategies.committee import check_votes, vote_shares

NEVER = ("inf", "T")
_NUMBERS_A_TILE = 1 << 21


@strategy(
    formula=r"\#\{t : c_{t-1} = 1, c_t = 0\}, \quad \infty \text{ if never learned}",
    cost="N T",
    use="Labelled rows: finds wrong labels and hard examples (high), and what may be dropped (0, unforgettable).",
)
def forgetting(correct: Any, *, never: str = "inf") -> Array:
    """How often each example was forgotten: classified right, and wrong at the next presentation.

    Parameters
    ----------
    correct : boolean or 0/1 array of shape (N, T)
        Whether each example was classified correctly at each of its T presentations, in the forward pass before the
        update. :class:`ForgettingTracker` counts the same without storing it.
    never : {"inf", "T"}, default "inf"
        The score of an example that was never right: infinity, or T.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Forgetting events. It scores examples whose labels are known; unforgettable ones (learned, never lost) have 0.

    Raises
    ------
    ValueError
        No presentation, values other than 0 and 1, an unknown `never`.

    References
    ----------
    .. [1] M. Toneva, A. Sordoni, R. Tachet des Combes, A. Trischler, Y. Bengio, G. J. Gordon. An empirical study of
       example forgetting during deep neural network learning. ICLR 2019.
    """
    check_one_of(never, "never", NEVER)
    right = as_tensor(correct, "correct", "an array [N, T] of 0 and 1")
    if right.dim() != 2 or right.shape[1] == 0:
        raise ValueError(f"correct must be two-dimensional [N, T] with at least one column, got {tuple(right.shape)}")
    scores = torch.empty(len(right), dtype=torch.float64, device=right.device)
    lost = torch.inf if never == "inf" else float(right.shape[1])
    size = max(1, _NUMBERS_A_TILE // right.shape[1])
    for begin in range(0, len(right), size):
        some = right[begin : begin + size]
        wrong = (some != 0) & (some != 1)
        if wrong.any():
            row = int(wrong.any(1).nonzero()[0])
            raise ValueError(f"correct must hold 0 and 1, got {some[row][wrong[row]][0].item()} in row {begin + row}")
        some = some.bool()
        events = (some[:, :-1] & ~some[:, 1:]).sum(1).double()
        scores[begin : begin + size] = torch.where(some.any(1), events, lost)
    return scores.numpy() if is_numpy(correct) else scores


@strategy(
    formula=r"1 - \max_c n_c / T",
    cost="N T",
    use="An unlabelled pool that is predicted after every epoch anyway: uncertainty without dropout or an ensemble.",
)
def label_dispersion(predictions: Any) -> Array:
    """How much the predicted class changes over epochs: the variation ratio with epochs for a committee.

    Parameters
    ----------
    predictions : integer array of shape (N, T)
        The class predicted for each row at T checkpoints. :class:`DispersionTracker` counts the same without storing
        it.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        One minus the share of the class predicted most, between 0 and ``1 - 1/C``; higher = select.

    Raises
    ------
    ValueError
        No checkpoint, negative classes.

    References
    ----------
    .. [1] J. Zolfaghari Bengar, B. Raducanu, J. van de Weijer. When deep learners change their mind: learning dynamics
       for active learning. CAIP 2021.
    """
    classes = check_votes(predictions, "predictions")
    scores = torch.cat([1 - s.amax(1) for s in vote_shares(classes)] or [torch.empty(0, dtype=torch.float64)])
    return scores.numpy() if is_numpy(predictions) else scores


class _Tracker:
    """Counts of each row, kept up to date batch by batch."""

    def __init__(self, count: int) -> None:
        count = check_integer(count, "count")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count = count

    def _rows(self, indices: Any, like: torch.Tensor) -> torch.Tensor:
        rows = as_tensor(indices, "indices", "a vector of row numbers").cpu()
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool or len(rows) != len(like):
            raise ValueError(
                f"indices must be {len(like)} row numbers, one a prediction, got {rows.dtype} {tuple(rows.shape)}"
            )
        rows = rows.long()
        outside = (rows < 0) | (rows >= self.count)
        if outside.any():
            raise ValueError(f"indices must be between 0 and {self.count - 1}, got {int(rows[outside][0])}")
        return rows

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The counts, to be saved with a checkpoint."""
        return {name: value.clone() for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on from saved counts.

        Raises
        ------
        ValueError
            Counts of another tracker, or of another number of rows.
        """
        own = self.state_dict()
        wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
        if wrong or len(state) != len(own):
            wanted = ", ".join(f"{name} {tuple(value.shape)}" for name, value in own.items())
            got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
            raise ValueError(f"state must hold {wanted}, got {got or 'nothing'}")
        for name, value in state.items():
            setattr(self, name, value.to("cpu", own[name].dtype, copy=True))


def _predicted(predictions: Any) -> torch.Tensor:
    values = as_tensor(predictions, "predictions", "classes [B] or logits [B, C]").cpu()
    if values.dim() == 2 and values.shape[1] > 1:
        if values.isnan().any():
            raise ValueError(f"predictions must not be NaN, got NaN in row {int(values.isnan().any(1).nonzero()[0])}")
        return values.argmax(1)
    if values.dim() != 1 or values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(f"predictions must be classes [B] or logits [B, C], got {values.dtype} {tuple(values.shape)}")
    return values.long()


class ForgettingTracker(_Tracker):
    """Counts forgetting events during training: 9 bytes a row.

    Parameters
    ----------
    count : int
        How many examples there are.

    Attributes
    ----------
    events : Tensor of shape (count,), int32
        How often each example was right and then wrong.
    learned : Tensor of shape (count,), bool
        Whether it was ever right.
    presentations : Tensor of shape (count,), int32

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> tracker = alk.strategies.ForgettingTracker(2)
    >>> for predictions in ([1, 0], [0, 0], [1, 0]):
    ...     tracker.update([0, 1], torch.tensor(predictions), labels=[1, 1])
    >>> tracker.scores()
    tensor([1., inf], dtype=torch.float64)
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.events = torch.zeros(self.count, dtype=torch.int32)
        self.presentations = torch.zeros(self.count, dtype=torch.int32)
        self.learned = torch.zeros(self.count, dtype=torch.bool)
        self.right = torch.zeros(self.count, dtype=torch.bool)

    def update(self, indices: Any, predictions: Any, labels: Any) -> None:
        """Takes in a minibatch's forward pass, before the update that follows it.

        Parameters
        ----------
        indices : integer array of shape (B,)
            Which examples; one that is there twice counts twice, in order.
        predictions : array of shape (B,) or (B, C)
            Predicted classes, or logits.
        labels : integer array of shape (B,)
        """
        predicted = _predicted(predictions)
        rows = self._rows(indices, predicted)
        known = as_tensor(labels, "labels", "a vector of classes").cpu().long()
        if known.shape != predicted.shape:
            raise ValueError(f"labels must be of shape {tuple(predicted.shape)}, got {tuple(known.shape)}")
        correct = predicted == known
        while len(rows):
            # of rows that are there more than once, the first of each now
            ordered = rows.sort(stable=True)
            first = torch.ones_like(rows, dtype=torch.bool)
            first[ordered.indices[1:]] = ordered.values[1:] != ordered.values[:-1]
            now, right = rows[first], correct[first]
            self.events[now] += (self.right[now] & ~right).int()
            self.presentations[now] += 1
            self.learned[now] |= right
            self.right[now] = right
            rows, correct = rows[~first], correct[~first]

    @property
    def unforgettable(self) -> torch.Tensor:
        """Rows that were learned and never lost, bool."""
        return self.learned & (self.events == 0)

    def scores(self, never: str = "inf") -> torch.Tensor:
        """Forgetting events of each row, float64, as :func:`forgetting`; NaN for rows that were never presented."""
        check_one_of(never, "never", NEVER)
        lost = torch.inf if never == "inf" else self.presentations.double()
        scores = torch.where(self.learned, self.events.double(), lost)
        return torch.where(self.presentations > 0, scores, torch.nan)


class DispersionTracker(_Tracker):
    """Counts how often each class was predicted for each row: 2 C bytes a row.

    Parameters
    ----------
    count : int
        How many rows the pool has.
    num_classes : int
    start_epoch : int, default 0
        The first so many predictions of each row are left out, while the model is still raw.

    Attributes
    ----------
    counts : Tensor of shape (count, num_classes), int16
    seen : Tensor of shape (count,), int32
        How many predictions came in of each row.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> tracker = alk.strategies.DispersionTracker(2, num_classes=3)
    >>> for predictions in ([0, 2], [1, 2], [0, 2], [2, 2]):
    ...     tracker.update(torch.tensor(predictions))
    >>> tracker.scores()
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """

    def __init__(self, count: int, num_classes: int, *, start_epoch: int = 0) -> None:
        super().__init__(count)
        self.num_classes = check_integer(num_classes, "num_classes")
        self.start_epoch = check_integer(start_epoch, "start_epoch")
        if self.num_classes < 1 or self.start_epoch < 0:
            raise ValueError(
                f"num_classes must be at least 1 and start_epoch at least 0, got {num_classes} and {start_epoch}"
            )
        self.counts = torch.zeros(self.count, self.num_classes, dtype=torch.int16)
        self.seen = torch.zeros(self.count, dtype=torch.int32)

    def update(self, predictions: Any, indices: Any = None) -> None:
        """Takes in the predictions of a checkpoint.

        Parameters
        ----------
        predictions : array of shape (B,) or (B, C)
            Predicted classes, or logits.
        indices : integer array of shape (B,), optional
            Distinct rows they are of. Default: all, in order.
        """
        predicted = _predicted(predictions)
        if indices is None and len(predicted) != self.count:
            raise ValueError(f"predictions must be of all {self.count} rows without indices, got {len(predicted)}")
        rows = torch.arange(self.count) if indices is None else self._rows(indices, predicted)
        if len(rows.unique()) < len(rows):
            raise ValueError("indices must name each row once")
        outside = (predicted < 0) | (predicted >= self.num_classes)
        if outside.any():
            raise ValueError(
                f"predictions must be between 0 and {self.num_classes - 1}, got {int(predicted[outside][0])}"
            )
        late = self.seen[rows] >= self.start_epoch
        self.seen[rows] += 1
        rows, predicted = rows[late], predicted[late]
        if len(rows) and int(self.counts[rows, predicted].max()) == torch.iinfo(torch.int16).max:
            raise OverflowError("a row was predicted 32767 times as one class, which is as far as counts go")
        self.counts[rows, predicted] += 1

    def scores(self) -> torch.Tensor:
        """Label dispersion of each row, float64, as :func:`label_dispersion`; NaN for rows without predictions."""
        total = self.counts.sum(1, dtype=torch.int64).double()
        return torch.where(total > 0, 1 - self.counts.amax(1).double() / total, torch.nan)
