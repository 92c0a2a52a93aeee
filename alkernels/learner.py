"""The active learning loop: train, evaluate, pick, ask, and go on from where it was."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from alkernels._files import replacing
from alkernels._inputs import as_tensor, check_count, check_flag, check_integer, check_rows, seed_of
from alkernels._sources import is_numpy
from alkernels.models._fingerprints import digest, spread_rows
from alkernels.models._state import evaluating, own_randomness
from alkernels.models.collecting import collect, not_collected
from alkernels.models.ensembles import trained
from alkernels.models.posterior import Posterior, derived_seed
from alkernels.strategies._catalogue import info
from alkernels.strategies._select import involved, select

_log = logging.getLogger("alkernels")
_FORMAT = 1
# What only an option of collect brings.
_BESIDES = {"target_mc_probs": "targets"}


class ActiveLearner:
    """Labels a pool batch by batch: fits a network, lets a strategy pick, asks an oracle for labels.

    Each round trains a new network on all labels there are, evaluates it, collects what the strategy needs, and picks.
    Every draw of a round, those of the user's own training included, comes from a seed of that round: a run that was
    killed at any moment goes on from `checkpoint` with the picks that it would have made.

    Parameters
    ----------
    pool : Tensor, ndarray or Dataset
        All rows, labelled ones among them; a map-style Dataset gives an input, or a tuple that starts with it.
    make : callable
        ``make()`` gives a new network.
    fit : callable
        ``fit(model, data)`` trains it in place (:func:`alkernels.models.fit` does), or returns what to go on with: a
        network, or a posterior such as an ensemble. ``data`` is a pair of tensors ``(x, y)``, for a Dataset a Dataset
        of such pairs.
    strategy : str
        A name of :func:`alkernels.strategies.names`.
    batch_size : int
        How many rows to pick each round.
    labeled : mask of shape (N,) or row numbers
        The rows whose labels are known at the start. They may be none where `arrays` needs no network (it gets None).
    oracle : callable, optional
        ``oracle(indices)`` gives the labels of some rows, int64 indices (b,) in the order picked. Without it, ask
        :meth:`query` and :meth:`tell` what came.
    labels : array of shape (L,), optional
        The labels of `labeled`. Default: the oracle is asked.
    evaluate : callable, optional
        ``evaluate(model)`` gives a number, or a dict of numbers, for :attr:`history`.
    arrays : callable, optional
        ``arrays(model, learner)`` gives what the strategy needs of the whole pool. Default: :func:`alkernels.collect`
        over pool and labelled rows.
    collect_options : dict, optional
        Options of that :func:`alkernels.collect`: ``draws``, ``layer``, ``batch_size``, ``targets`` (for EPIG) and so
        on.
    options : dict, optional
        Options of the strategy, and whatever else :func:`alkernels.select` takes.
    generator : torch.Generator or int, optional
        Decides all draws.
    checkpoint : str or Path, optional
        A file that holds the state after each pick and each answer; if it is there, the run goes on from it.
    on_round : callable, optional
        ``on_round(record)`` gets each new entry of :attr:`history`.
    progress : bool, default False
        Show a progress bar over rounds.

    Attributes
    ----------
    labeled, labels : Tensor of shape (L,)
        Rows that are labelled, int64, in the order that they were, and what the oracle said of them.
    round : int
        How many batches were labelled.
    history : list of dict
        One record a fit: ``round``, ``labeled`` (how many), what `evaluate` gave (a number under ``score``),
        ``seconds``, and ``pseudo_labeled`` where there were pseudo-labels.
    pending : Tensor or None
        Rows that were picked and wait for labels.
    model : Module or Posterior or None
        Of the last fit in this process.

    Raises
    ------
    ValueError
        A checkpoint of another run (the error names what differs), wrong arguments.

    Notes
    -----
    Python's, NumPy's and torch's random states are seeded for `make`, `fit`, `evaluate` and `arrays`, and are as they
    were afterwards. Whether two trainings from one seed agree is up to the user's code, on a GPU to its kernels too:
    what was picked is saved before the oracle is asked, and is never picked anew.

    With ``ceal`` the rows that get pseudo-labels are trained on in the next round only, and its threshold follows the
    round.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> x, y = torch.randn(200, 4), torch.arange(200) % 2
    >>> learner = alk.ActiveLearner(
    ...     x, make=lambda: torch.nn.Linear(4, 2), fit=lambda net, data: alk.models.fit(net, data, epochs=5),
    ...     strategy="margin", batch_size=5, labeled=range(10), oracle=lambda rows: y[rows],
    ...     evaluate=lambda net: float((net(x).argmax(1) == y).float().mean()), generator=0
    ... )
    >>> history = learner.run(3)
    >>> [record["labeled"] for record in history]
    [10, 15, 20, 25]
    """

    def __init__(
        self,
        pool: Any,
        *,
        make: Callable[[], nn.Module],
        fit: Callable[[Any, Any], Any],
        strategy: str,
        batch_size: int,
        labeled: Any,
        oracle: Callable[[Tensor], Any] | None = None,
        labels: Any = None,
        evaluate: Callable[[Any], Any] | None = None,
        arrays: Callable[[Any, ActiveLearner], Mapping[str, Any]] | None = None,
        collect_options: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        generator: torch.Generator | int | None = None,
        checkpoint: str | Path | None = None,
        on_round: Callable[[dict[str, Any]], Any] | None = None,
        progress: bool = False,
    ) -> None:
        if not (hasattr(pool, "__len__") and hasattr(pool, "__getitem__")) or isinstance(pool, Mapping):
            raise TypeError(f"pool must be a tensor, an array or a map-style Dataset, got {type(pool).__name__}")
        self.pool: Any = pool
        if len(self.pool) == 0:
            raise ValueError("pool must have at least one row, got none")
        if not isinstance(pool, (Tensor, np.ndarray, Dataset)):
            self.pool = _Items(pool)
        for name, value in {"make": make, "fit": fit, "oracle": oracle, "evaluate": evaluate, "arrays": arrays}.items():
            if not callable(value) and (value is not None or name in ("make", "fit")):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        self.batch_size = check_count(batch_size, "batch_size")
        self.strategy, self.options = info(strategy).name, dict(options or {})
        self._make, self._fit, self._oracle, self._evaluate, self._arrays = make, fit, oracle, evaluate, arrays
        self._collect_options = dict(collect_options or {})
        self._on_round, self._progress = on_round, check_flag(progress, "progress")
        if isinstance(labeled, range):
            labeled = list(labeled)
        if arrays is None:
            self._check_options()
        rows = check_rows(labeled, "labeled", len(self.pool), torch.device("cpu"), "the pool")
        given = as_tensor(labeled, "labeled", "a mask or row numbers")
        rows = rows if given.dtype == torch.bool or len(rows) == 0 else given.cpu().long()  # in the order of the labels
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        if self.checkpoint is not None and not self.checkpoint.absolute().parent.is_dir():
            raise FileNotFoundError(f"checkpoint must be in an existing folder, got {checkpoint}")
        self._told_at_start = None if labels is None else _as_labels(labels, len(rows), "labels")

        self.seed = 0
        self.round = 0
        self.history: list[dict[str, Any]] = []
        self.model: Any = None
        self.pending: Tensor | None = None
        self._pseudo: tuple[Tensor, Tensor] | None = None  # to train on in this round
        self._next_pseudo: tuple[Tensor, Tensor] | None = None  # in the next
        self._fitted: int | None = None  # the round of `model`
        self._started = rows
        if self.checkpoint is not None and self.checkpoint.exists():
            self._load(generator)
            return
        self.seed = seed_of(generator)
        self.labeled = rows.clone()
        if self._told_at_start is not None:
            self.labels = self._told_at_start
        elif len(rows) == 0:
            self.labels = torch.empty(0, dtype=torch.int64)
        elif oracle is None:
            raise ValueError("labels must be given for the rows that are labelled at the start, or an oracle")
        else:
            self.labels = _as_labels(oracle(rows), len(rows), "what the oracle gives")
        self._save()

    @property
    def unlabeled(self) -> Tensor:
        """Row numbers (U,) without a label, ascending."""
        free = torch.ones(len(self.pool), dtype=torch.bool)
        free[self.labeled] = False
        return free.nonzero().flatten()

    @property
    def data(self) -> Any:
        """What the next network is trained on: labelled rows, and pseudo-labelled ones if there are any."""
        rows, labels = self.labeled, self.labels
        if self._pseudo is None:
            return _pairs(self.pool, rows, labels)
        return _pairs(self.pool, torch.cat([rows, self._pseudo[0]]), torch.cat([labels, self._pseudo[1].to(labels)]))

    def run(self, rounds: int) -> list[dict[str, Any]]:
        """Label batches until `rounds` have been labelled since the start, and fit and evaluate after the last.

        Parameters
        ----------
        rounds : int
            In all, those of an earlier process included. It ends before when the pool does.

        Returns
        -------
        list of dict
            The history.
        """
        rounds = check_integer(rounds, "rounds")
        if rounds < 0:
            raise ValueError(f"rounds must not be negative, got {rounds}")
        with tqdm(total=rounds, initial=min(self.round, rounds), desc=self.strategy, unit="round",
                  disable=not self._progress) as bar:  # fmt: skip
            while self.round < rounds and (self.pending is not None or len(self.unlabeled)):
                self.step()
                bar.update()
                if self.history:
                    bar.set_postfix({k: v for k, v in self.history[-1].items() if k not in ("round", "seconds")})
        if self.pending is None:
            self.train()
        return self.history

    def step(self) -> dict[str, Any] | None:
        """One round: :meth:`query`, ask the oracle, :meth:`tell`; the round's record, if a network was fitted."""
        if self._oracle is None:
            raise ValueError("oracle must be given for step and run; without it there are query and tell")
        rows = self.query()
        self.tell(self._oracle(rows.clone()))
        return self.history[-1] if self.history else None

    def query(self) -> Tensor:
        """The rows to label next, int64 (b,); the same ones until :meth:`tell` is told their labels."""
        if self.pending is not None:
            return self.pending.clone()
        free = self.unlabeled
        if len(free) == 0:
            raise ValueError(f"the pool must have a row without a label, got none of {len(self.pool)}")
        arrays = self._needed()
        entry = info(self.strategy)
        options: dict[str, Any] = {"generator": derived_seed(self.seed, "select", self.round), **self.options}
        if "round" in entry.options:
            options.setdefault("round", self.round)
        picked = select(self.strategy, min(self.batch_size, len(free)), **arrays, candidates=free, **options)
        self.pending = torch.as_tensor(picked.indices).cpu()
        self._next_pseudo = None
        if hasattr(picked, "pseudo_indices"):
            pseudo = torch.as_tensor(picked.pseudo_indices), torch.as_tensor(picked.pseudo_labels)
            self._next_pseudo = pseudo[0].cpu(), pseudo[1].cpu()
        self._save()
        return self.pending.clone()

    def tell(self, labels: Any) -> None:
        """Takes the labels of the rows that :meth:`query` gave.

        Parameters
        ----------
        labels : array of shape (b,) or (b, ...)
            One entry for each of them, in their order.
        """
        if self.pending is None:
            raise ValueError("there are no rows that wait for labels: call query first")
        given = _as_labels(labels, len(self.pending), "labels")
        if len(self.labels) and given.shape[1:] != self.labels.shape[1:]:
            shapes = f"{tuple(self.labels.shape[1:])}, got {tuple(given.shape[1:])}"
            raise ValueError(f"labels must be of the same shape in each round, {shapes}")
        if len(self.labels) and given.is_floating_point() != self.labels.is_floating_point():
            dtypes = f"{self.labels.dtype} before, got {given.dtype}"
            raise TypeError(f"labels must be integers or real numbers as in the rounds before, {dtypes}")
        self.labels = torch.cat([self.labels, given]) if len(self.labels) else given
        self.labeled = torch.cat([self.labeled, self.pending])
        self.pending = None
        self._pseudo, self._next_pseudo = self._next_pseudo, None
        self.round += 1
        self._save()

    def train(self) -> Any:
        """The network of this round: fitted and evaluated, unless that is done."""
        if self._fitted == self.round:
            return self.model
        if len(self.labeled) == 0:
            raise ValueError("labeled must have at least one row for a network to be fitted, got none")
        began = time.perf_counter()
        with _seeded(derived_seed(self.seed, "fit", self.round)):
            model = self._make()
            returned = self._fit(model, self.data)
        self.model = trained(model, returned, "fit")
        record: dict[str, Any] = {"round": self.round, "labeled": len(self.labeled)}
        if self._evaluate is not None:
            with _seeded(derived_seed(self.seed, "evaluate", self.round)), evaluating(*_networks(self.model)):
                record |= _numbers(self._evaluate(self.model))
        if self._pseudo is not None:
            record["pseudo_labeled"] = len(self._pseudo[0])
        record["seconds"] = time.perf_counter() - began
        self._fitted = self.round
        known = any(r["round"] == self.round for r in self.history)  # fitted again after a restart
        self.history = [r for r in self.history if r["round"] != self.round] + [record]
        self._save()
        if not known:
            _log.info("%s: %s", self.strategy, ", ".join(f"{k} {v:.4g}" for k, v in record.items()))
            if self._on_round is not None:
                self._on_round(record)
        return self.model

    def _check_options(self) -> None:
        """That all can be collected that the strategy will need, before anything is trained."""
        own = {name: value for name, value in self.options.items() if name != "generator"}
        given = {name for name, argument in _BESIDES.items() if argument in self._collect_options}
        for entry, lacking in not_collected(involved(self.strategy, own), given):
            raise ValueError(f"arrays must be given for {entry.name}, to get {' and '.join(lacking)} for it")

    def _needed(self) -> Mapping[str, Any]:
        """What the strategy is to look at."""
        entry = info(self.strategy)
        if not entry.needs and self._arrays is None and not self.options.get("prefilter"):
            # random rows need no network, but the curve does
            if self._evaluate is not None and len(self.labeled):
                self.train()
            return {"features": torch.arange(len(self.pool), dtype=torch.float64)[:, None]}
        model: Any = None if self._arrays is not None and len(self.labeled) == 0 else self.train()
        seed = derived_seed(self.seed, "collect", self.round)
        with _seeded(seed):
            if self._arrays is not None:
                return self._arrays(model, self)
            of = [self.options[name] for name in ("of", "prefilter") if self.options.get(name)]
            wanted = [self.strategy, *of]
            takes = {name for n in wanted for name in info(n).arrays}
            more: dict[str, Any] = {"generator": seed, **self._collect_options}
            if isinstance(model, Posterior):
                more.pop("draws", None)
            if {"labeled_features", "labeled_probs"} & takes:
                index = self.labeled.tolist()
                more["labeled"] = self.pool[index] if not isinstance(self.pool, Dataset) else Subset(self.pool, index)
            found = collect(model, self.pool, wanted, **more)
            return found | ({"labels": self.labels} if "labels" in takes else {})

    # ---- the state on disk ----

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in."""
        return {
            "format": _FORMAT,
            "pool": _fingerprint(self.pool),
            "strategy": self.strategy,
            "batch_size": self.batch_size,
            "options": {k: _plain(v) for k, v in sorted(self.options.items())},
            "collect_options": {k: _plain(v) for k, v in sorted(self._collect_options.items())},
            "labeled at the start": digest(self._started),
        }  # fmt: skip

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "identity": self._identity(),
            "seed": self.seed,
            "round": self.round,
            "labeled": self.labeled,
            "labels": self.labels,
            "pending": self.pending,
            "pseudo": self._pseudo,
            "next_pseudo": self._next_pseudo,
            "history": self.history,
        }
        with replacing(self.checkpoint, "checkpoint") as file:
            torch.save(state, file)

    def _load(self, generator: Any) -> None:
        path = Path(str(self.checkpoint))
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            saved = state["identity"]
        except Exception as error:  # what a damaged file makes torch raise is documented nowhere
            raise ValueError(f"checkpoint {path} must be one of ActiveLearner's: it cannot be read as such") from error
        own = self._identity()
        if isinstance(generator, (int, np.integer)) and not isinstance(generator, bool):
            own["generator"], saved["generator"] = int(generator), state["seed"]
        if self._told_at_start is not None:
            first = state["labels"][: len(self._started)]
            own["labels"], saved["labels"] = _plain(self._told_at_start), _plain(first)
        wrong = [k for k in own if saved.get(k) != own[k]]
        if wrong:
            differs = "; ".join(f"{k} is {saved.get(k)!r} there and {own[k]!r} here" for k in wrong)
            raise ValueError(f"checkpoint {path} must be of this run, but {differs}: delete it or give another file")
        self.seed, self.round = state["seed"], state["round"]
        self.labeled, self.labels, self.pending = state["labeled"], state["labels"], state["pending"]
        self._pseudo, self._next_pseudo, self.history = state["pseudo"], state["next_pseudo"], state["history"]


def _as_labels(labels: Any, count: int, name: str) -> Tensor:
    values = as_tensor(labels, name, "an array of labels").cpu()
    if values.dim() < 1 or len(values) != count:
        raise ValueError(f"{name} must be {count} labels, one a row, got shape {tuple(values.shape)}")
    if values.isnan().any():
        raise ValueError(f"{name} must not be NaN, got NaN for number {int(values.isnan().nonzero()[0, 0])}")
    return values


def _numbers(said: Any) -> dict[str, float]:
    """What `evaluate` gave, in Python's own numbers."""
    found = {str(k): v for k, v in said.items()} if isinstance(said, Mapping) else {"score": said}
    taken = {"round", "labeled", "seconds", "pseudo_labeled"} & {*found}
    if taken:
        raise ValueError(f"evaluate must not name a number {min(taken)!r}, which the record has")
    try:
        return {k: float(v) for k, v in found.items()}
    except (TypeError, ValueError):
        raise TypeError(f"evaluate must give a number or a dict of numbers, got {said!r}") from None


def _plain(value: Any) -> Any:
    """What a checkpoint can hold and compare: numbers and words as they are, arrays by their hash, others by type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = as_tensor(value, "value", "an array").cpu()
        return f"{tuple(tensor.shape)} {tensor.dtype} {digest(tensor)}"
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return type(value).__qualname__


class _Items(Dataset[Any]):
    """What has a length and items, but is no Dataset, as one."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _networks(model: Any) -> list[nn.Module]:
    return model.networks if isinstance(model, Posterior) else [model]


class _Labeled(Dataset[Any]):
    """Rows of a dataset with the labels that the oracle gave, whatever else comes with them."""

    def __init__(self, dataset: Any, rows: Tensor, labels: Tensor) -> None:
        self.dataset, self.rows, self.labels = dataset, rows.tolist(), labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[self.rows[index]]
        if isinstance(item, Mapping):
            return {**item, "labels": self.labels[index]}
        return (item[0] if isinstance(item, (tuple, list)) else item), self.labels[index]


def _pairs(pool: Any, rows: Tensor, labels: Tensor) -> Any:
    """Inputs and labels of some rows: tensors, or a dataset."""
    if isinstance(pool, Tensor):
        return pool[rows.to(pool.device)], labels.to(pool.device)
    if is_numpy(pool):
        return torch.from_numpy(pool[rows.numpy()]), labels
    return _Labeled(pool, rows, labels)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators from a seed, and as they were afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        with own_randomness(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _fingerprint(pool: Any) -> str:
    """Its shape, and a hash of some rows."""
    count = len(pool)
    if isinstance(pool, Dataset):
        with _seeded(0):  # items may be augmented at random
            items = [pool[int(i)] for i in (0, count // 2, count - 1)]
        return f"{count} rows, {_plain([_inputs_of(item) for item in items])}"
    some = spread_rows(count, 64)
    rows = torch.from_numpy(pool[some.numpy()]) if is_numpy(pool) else pool[some.to(pool.device)].cpu()
    return f"{tuple(pool.shape)} {str(rows.dtype).removeprefix('torch.')} {digest(rows)}"


def _inputs_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        return [[str(k), v] for k, v in item.items()]
    return item[0] if isinstance(item, (tuple, list)) and item else item
