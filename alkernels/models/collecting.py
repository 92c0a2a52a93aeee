"""``alkernels.collect``: what strategies need to know of a pool, from any network."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from alkernels._inputs import check_count
from alkernels.models._batches import batches_of
from alkernels.models._features import POOLING, Features
from alkernels.models._state import evaluating, unwrapped
from alkernels.models.dropout import MCDropout
from alkernels.models.posterior import Posterior
from alkernels.strategies._arguments import check_one_of
from alkernels.strategies._catalogue import StrategyInfo, info, names, nearest
from alkernels.strategies._select import Involved

ARRAYS = ("probs", "log_probs", "features", "mc_probs", "votes", "scores", "labels", "head_weight", "head_bias")
_OF_HEAD = ("head_weight", "head_bias")
_OF_DRAWS = ("mc_probs", "votes", "scores")
_OF_LABELED = {"labeled_features": "features", "labeled_probs": "probs", "labels": "labels"}
_OUTPUTS = ("logits", "probs", "log_probs")
_ENOUGH_ROWS = 4  # that look like probabilities by chance: once in 10^15


def collect(
    model: nn.Module | Posterior,
    loader: Any,
    needs: str | Iterable[str] = "probs",
    *,
    layer: str | None = None,
    pooling: str | None = None,
    draws: int | None = None,
    outputs: str = "logits",
    spatial: str | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    labeled: Any = None,
    targets: Any = None,
    batch_size: int = 256,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Run a network over a pool once, and return the arrays that strategies take.

    The network runs on its own device in evaluation mode, without gradients. Afterwards it is as it was: training
    flags of each module, hooks, BatchNorm's statistics, and torch's random state (from which a default `generator`
    takes one number).

    Parameters
    ----------
    model : Module or Posterior
        Gives logits ``[B, C]`` for a batch: a tensor, or the first of a tuple, or ``.logits`` or ``["logits"]`` of what
        comes. Or posterior draws: :class:`~alkernels.models.MCDropout`, an ensemble, Bayes by backprop.
    loader : iterable of batches, Dataset, Tensor or ndarray
        The pool in order. A batch is a tensor, a tuple whose first entry is the input, or a mapping (all but
        ``labels`` go to the network by name). A loader that shuffles or drops rows, or has a sampler of another order,
        is refused.
    needs : str or iterable of str, default "probs"
        Names of arrays, or strategies, which stand for the arrays that they need: ``"badge"``. The arrays:

        - ``probs`` [N, C], ``log_probs`` [N, C]: of an ensemble, those of its members' mean.
        - ``features`` [N, D]: the input of the last Linear layer, or the output of `layer`. Of an ensemble, the first
          member's.
        - ``mc_probs`` [N, K, C]: posterior draws. A network as such is drawn from by dropout with consistent masks.
        - ``votes`` [N, K]: the classes that the draws predict.
        - ``scores`` [N]: the variance of the draws' probabilities, averaged over classes and positions; what stands
          for ``mc_probs`` in suggestive annotation where `spatial` is given.
        - ``labels`` [N]: the second entry of each batch, or its ``labels``.
        - ``head_weight`` [C, D], ``head_bias`` [C]: of the last Linear layer.
    layer : str, optional
        The module whose output the features are, as ``model.named_modules()`` calls it. Default: found by running.
    pooling : {"mean", "first", "flatten"}, optional
        How features that are not [B, D] become so. Default: maps [B, D, H, W] are averaged over space; sequences
        [B, T, D] are refused, as padding and order are the model's: "mean" averages over T, "first" takes its first
        entry, as of a [CLS] token.
    draws : int, optional
        How many draws of dropout, 100 by default, for a network that is not a posterior already.
    outputs : {"logits", "probs", "log_probs"}, default "logits"
        What the network gives.
    spatial : {"mean"}, optional
        What to do with outputs [B, C, H, W] of segmentation: average the probabilities over positions. Default: refuse
        them.
    forward : callable, optional
        ``forward(model, batch)`` runs the network over a batch on its device, in place of the rules above.
    labeled : like `loader`, optional
        The labelled rows: adds ``labeled_features``, ``labeled_probs`` and ``labels``, as far as strategies among
        `needs` take them.
    targets : like `loader`, optional
        Rows that predictions are wanted on: adds ``target_mc_probs``, of the same draws.
    batch_size : int, default 256
        For a Dataset, Tensor or ndarray.
    out : str or Path, optional
        A folder to write the arrays to as .npy files, and to return as memory maps, for pools that do not fit.
    device : torch.device or str, optional
        Where the arrays are kept. Default: where the network is.
    generator : torch.Generator or int, optional
        Decides the masks of dropout.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    dict of str to Tensor
        To be passed on: ``alk.select("badge", 100, **arrays)``. Probabilities are float32 (of float64 networks
        float64). NumPy arrays for an ndarray, memory maps with `out`.

    Raises
    ------
    ValueError
        A layer that does not exist, a network without a Linear head where one is needed, without dropout where draws
        are, outputs that are not [B, C], NaN, a loader out of order.
    TypeError
        An argument of the wrong type.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> arrays = alk.collect(net, torch.randn(50, 4), needs="badge")
    >>> {name: tuple(array.shape) for name, array in arrays.items()}
    {'probs': (50, 3), 'features': (50, 8)}
    >>> len(alk.select("badge", 5, **arrays).indices)
    5
    """
    check_one_of(outputs, "outputs", _OUTPUTS)
    if pooling is not None:
        check_one_of(pooling, "pooling", POOLING)
    if spatial is not None:
        check_one_of(spatial, "spatial", ("mean",))
    if not isinstance(model, (nn.Module, Posterior)):
        raise TypeError(f"model must be a torch.nn.Module or a posterior, got {type(model).__name__}")
    batch_size = check_count(batch_size, "batch_size")
    if draws is not None and isinstance(model, Posterior):
        raise ValueError(f"draws must not be given for a posterior, which has {model.count}, got {draws}")
    wanted, besides = _wanted(needs, spatial is not None)
    source: nn.Module | Posterior = model if isinstance(model, Posterior) else unwrapped(model)
    if not isinstance(source, Posterior) and (any(name in _OF_DRAWS for name in wanted) or targets is not None):
        source = MCDropout(source, 100 if draws is None else draws, generator=generator)
    run = _Run(source, outputs, spatial, forward, layer, pooling, device, progress)
    folder = None if out is None else Path(out)
    arrays = run.over(loader, wanted, batch_size, folder)
    if labeled is not None:
        names_of = {name: of for name, of in _OF_LABELED.items() if name in besides}
        if "labels" in wanted and "labels" in names_of:
            raise ValueError("needs must not hold labels, the pool's, together with a strategy that takes the labelled")
        found = run.over(labeled, list(names_of.values()), batch_size, None if folder is None else folder / "labeled")
        arrays |= {name: found[of] for name, of in names_of.items()}
    if targets is not None:
        found = run.over(targets, ["mc_probs"], batch_size, None if folder is None else folder / "targets")
        arrays["target_mc_probs"] = found["mc_probs"]
    return arrays


def _wanted(needs: Any, spatial: bool) -> tuple[list[str], set[str]]:
    """The arrays of the pool, and all that the strategies among `needs` take."""
    given = [needs] if isinstance(needs, str) else list(needs)
    wanted: list[str] = []
    besides: set[str] = set()
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"needs must be names of arrays or strategies, got {type(name).__name__}")
        if name in ARRAYS:
            wanted.append(name)
        elif name in names():
            entries = [info(name)]
            if entries[0].of is not None:
                entries.append(info(entries[0].of))
            for group in (g for e in entries for g in e.needs if g != ("scores",)):
                # the variance of segmentation's positions is not that of their mean
                can = [n for n in group if n in ARRAYS and n not in _OF_LABELED and (spatial or n != "scores")]
                wanted += can[:1]
            besides |= {n for e in entries for n in e.arrays}
        else:
            known = [*ARRAYS, *names()]
            raise ValueError(f"needs must be arrays or strategies, got {name!r}{nearest(name, known)}")
    return list(dict.fromkeys(wanted)) or ["probs"], besides


def not_collected(strategies: Involved, besides: Iterable[str] = ()) -> Iterator[tuple[StrategyInfo, list[str]]]:
    """Which of them need what, that neither :func:`collect` gives, from a pool and labelled rows, nor one another."""
    given = {*ARRAYS, *_OF_LABELED, *besides} - {"scores"}
    for entry in strategies.all:
        scores = {"scores"} if entry is strategies.strategy and strategies.of is not None else set()
        lacking = [group[0] for group in entry.needs if not (given | scores) & {*group}]
        if lacking:
            yield entry, lacking


class _Run:
    """How a network is run, over one pool or several."""

    def __init__(
        self,
        source: nn.Module | Posterior,
        outputs: str,
        spatial: str | None,
        forward: Callable[[nn.Module, Any], Any] | None,
        layer: str | None,
        pooling: str | None,
        device: torch.device | str | None,
        progress: bool,
    ) -> None:
        self.posterior = source if isinstance(source, Posterior) else None
        self.network = unwrapped(source.network if isinstance(source, Posterior) else source)
        self.networks = source.networks if isinstance(source, Posterior) else [source]
        self.outputs, self.spatial, self.forward = outputs, spatial, forward
        self.progress = progress
        self.features = Features(self.network, layer, pooling)
        self._rows = self._like_probabilities = 0
        tensor = next((t for t in [*self.network.parameters(), *self.network.buffers()]), None)
        self.where = torch.device("cpu") if tensor is None else tensor.device
        self.kept = self.where if device is None else torch.device(device)

    def over(self, loader: Any, wanted: list[str], batch_size: int, folder: Path | None) -> dict[str, Any]:
        batches, count = batches_of(loader, batch_size)
        is_numpy = isinstance(loader, np.ndarray)
        averaged = self.posterior is not None and self.posterior.averaged
        drawn = any(n in _OF_DRAWS for n in wanted) or (averaged and bool({"probs", "log_probs"} & {*wanted}))
        alone = [n for n in wanted if n == "features" or n in _OF_HEAD]
        alone += [] if averaged else [n for n in wanted if n in ("probs", "log_probs")]
        sink = _Sink([n for n in wanted if n not in _OF_HEAD], count, self.kept, folder)
        devices = [self.where] if self.where.type == "cuda" else []
        with (
            sink,
            torch.random.fork_rng(devices=devices),
            evaluating(*self.networks),
            ExitStack() as stack,
            tqdm(total=count, desc="collect", unit="row", disable=not self.progress) as bar,
        ):
            outputs = stack.enter_context(self.posterior.drawing()) if drawn and self.posterior is not None else None
            for batch in batches:
                # not inference mode: constants that a network keeps from its first pass must serve in training, too
                rows = self._batch(batch, wanted, alone, outputs, averaged)
                if not rows:
                    break  # the head alone is wanted, and found
                bar.update(sink.take(rows))
        arrays = sink.arrays(is_numpy)
        for name in _OF_HEAD:
            if name in wanted:
                value = getattr(self.features.head, name.removeprefix("head_"))
                if value is None:
                    continue  # a head without biases
                kept = value.detach().to(self.kept, copy=True)
                arrays[name] = kept.cpu().numpy() if is_numpy or folder is not None else kept
        return {name: arrays[name] for name in wanted if name in arrays}

    def _batch(
        self, batch: Any, wanted: list[str], alone: list[str], outputs: Any, averaged: bool
    ) -> dict[str, Tensor]:
        """One row a row of the batch, of each array."""
        on_device = _moved(batch, self.where)

        def forward(network: nn.Module) -> Tensor:
            if self.forward is not None:
                return _logits(self.forward(network, on_device))
            return _logits(_call(network, on_device))

        rows: dict[str, Tensor] = {}
        if alone:
            of_head = any(n in _OF_HEAD for n in alone)
            if of_head or "features" in alone:
                with self.features.watching(of_head) as calls:
                    raw = forward(self.network)
                if of_head or self.features.tapped is None:
                    self.features.find_head(calls, raw, raw.log() if self.outputs == "probs" else raw)
                if "features" in alone:
                    rows["features"] = self.features.of(calls, raw)
            else:
                raw = forward(self.network)
            if "probs" in alone or "log_probs" in alone:
                rows["probs"], rows["log_probs"] = _averaged(*self._probabilities(raw))
        if outputs is not None:
            draws, spread = [], _Variance()
            for raw in outputs(forward):
                probs, logs = self._probabilities(raw)
                if "scores" in wanted:
                    spread.add(probs)
                draws.append(_averaged(probs, logs))
            if "scores" in wanted:
                rows["scores"] = spread.mean()
            rows["mc_probs"] = torch.stack([probs for probs, _ in draws], 1)
            rows["votes"] = rows["mc_probs"].argmax(2)
            if averaged:
                rows["probs"] = rows["mc_probs"].mean(1)
                rows["log_probs"] = torch.stack([logs for _, logs in draws]).logsumexp(0) - math.log(len(draws))
        if "labels" in wanted:
            rows["labels"] = _labels(batch)
        return {name: rows[name] for name in wanted if name in rows}

    def _probabilities(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C], or with positions [B, C, ...]: probabilities and their logarithms, at least float32."""
        if raw.dim() > 2 and self.spatial is None:
            raise ValueError(
                f"the network must give one row of class scores for each input, [B, C], got {tuple(raw.shape)}: with "
                "spatial='mean' the probabilities of positions are averaged"
            )
        if raw.dim() < 2 or raw.shape[1] < 2:
            raise ValueError(
                f"the network must give scores of at least two classes, [B, C], got {tuple(raw.shape)}; the logit z of "
                "two classes stands for [0, z]: pass forward= that gives both"
            )
        values = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.outputs == "logits":
            probs, logs = values.softmax(1), values.log_softmax(1)
            self._check_logits(raw)
        elif self.outputs == "probs":
            probs, logs = values, values.log()
        else:
            probs, logs = values.exp(), values
        wrong = probs.isnan() if self.outputs == "logits" else ~(probs >= 0)
        if wrong.any():
            row = int(wrong.flatten(1).any(1).nonzero()[0])
            bad = values[row][wrong[row]][0].item() if self.outputs != "logits" else _first_bad(values[row])
            wanted = "probabilities" if self.outputs == "probs" else "numbers below infinity"
            raise ValueError(f"the network's outputs must be {wanted}, got {bad} in row {row} of a batch")
        if self.outputs != "logits":
            apart = (probs.sum(1) - 1).abs()
            if bool((apart > _tolerance(raw.dtype)).any()):
                worst = probs.sum(1).flatten()[apart.flatten().argmax()].item()
                raise ValueError(f"the network's outputs must be {self.outputs} that sum to 1, got {worst:.6g}")
        return probs, logs

    def _check_logits(self, raw: Tensor) -> None:
        """Probabilities would pass for logits, and come out nearly uniform: seen by all rows of the pool being ones."""
        self._rows += len(raw)
        near = (raw.float().sum(1, keepdim=True) - 1).abs() <= _tolerance(raw.dtype)
        likely = ((raw >= 0) & near).flatten(1).all(1)
        self._like_probabilities += int(likely.sum())
        if self._like_probabilities == self._rows >= _ENOUGH_ROWS:
            raise ValueError("outputs must be 'probs' for a network that gives probabilities, got 'logits'")


def _tolerance(dtype: torch.dtype) -> float:
    """How far a sum of probabilities is from 1 by rounding alone."""
    return {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-3)


def _first_bad(row: Tensor) -> float:
    """What softmax makes NaN of: NaN or infinity."""
    bad = row[row.isnan() | (row == torch.inf)]
    return bad.flatten()[0].item() if len(bad) else -torch.inf


def _averaged(probs: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over positions, if there are any."""
    if probs.dim() == 2:
        return probs, logs
    mean = probs.flatten(2).mean(2, dtype=torch.float64)
    return mean.to(probs.dtype), mean.log().to(probs.dtype)


class _Variance:
    """The variance over draws, by Welford's recurrence: one draw in memory, no difference of large sums."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, probs: Tensor) -> None:
        values = probs.double()
        if self.count == 0:
            self.center, self.squares = torch.zeros_like(values), torch.zeros_like(values)
        self.count += 1
        apart = values - self.center
        self.center += apart / self.count
        self.squares += apart * (values - self.center)

    def mean(self) -> Tensor:
        """[B]: averaged over classes and positions."""
        return self.squares.flatten(1).mean(1) / self.count


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [_moved(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def _call(network: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return network(**{name: value for name, value in batch.items() if name not in ("labels", "label")})
    return network(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _logits(output: Any) -> Tensor:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    elif isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the network must give a tensor of class scores, got {type(output).__name__}: pass forward= that takes it "
            "from what comes"
        )
    return output


def _labels(batch: Any) -> Tensor:
    value = None
    if isinstance(batch, Mapping):
        value = batch.get("labels", batch.get("label"))
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        value = batch[1]
    if value is None:
        raise ValueError("batches must be pairs of inputs and labels, or mappings with labels, for labels to be found")
    return torch.as_tensor(value)


class _Sink:
    """Arrays that grow batch by batch: in place where the number of rows is known."""

    def __init__(self, names: list[str], count: int | None, device: torch.device, folder: Path | None) -> None:
        if folder is not None and count is None:
            raise ValueError("loader must have a length for out=: a Dataset, an array, or a DataLoader in order")
        self.names, self.count, self.device, self.folder = names, count, device, folder
        self.kept: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        self.rows = 0

    def __enter__(self) -> _Sink:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def take(self, rows: dict[str, Tensor]) -> int:
        """Keeps a batch's rows; how many there were."""
        size = len(next(iter(rows.values())))
        if self.count is not None and self.rows + size > self.count:
            raise ValueError(f"loader must give {self.count} rows as its length says, got more")
        for name, value in rows.items():
            if len(value) != size:
                raise ValueError(f"{name} must have a row for each of {size} inputs, got {len(value)}")
            if self.count is None:
                # not what was made in inference mode, which no later gradient may touch
                self.kept.setdefault(name, []).append(torch.empty_like(value, device=self.device).copy_(value))
                continue
            if name not in self.kept:
                self.kept[name] = self._room(name, value)
            room = self.kept[name]
            if tuple(room.shape[1:]) != tuple(value.shape[1:]):
                had, came = tuple(room.shape[1:]), tuple(value.shape[1:])
                raise ValueError(f"{name} must be of one shape in all batches, got rows of {had} and of {came}")
            target = room[self.rows : self.rows + size]
            if self.folder is not None:
                target[:] = _for_numpy(value).cpu().numpy()
            else:
                target.copy_(value)
        self.rows += size
        return size

    def _room(self, name: str, value: Tensor) -> Any:
        assert self.count is not None
        shape = (self.count, *value.shape[1:])
        if self.folder is None:
            return torch.empty(shape, dtype=value.dtype, device=self.device)
        self.files[name] = self.folder / f".{name}-{secrets.token_hex(8)}.tmp"
        dtype = _for_numpy(value[:0]).cpu().numpy().dtype
        return np.lib.format.open_memmap(self.files[name], "w+", dtype, shape)

    def arrays(self, is_numpy: bool) -> dict[str, Any]:
        if not self.names:
            return {}
        if self.rows == 0 or (self.count is not None and self.rows < self.count):
            wanted = "at least one row" if self.count is None else f"{self.count} rows as its length says"
            raise ValueError(f"loader must give {wanted}, got {self.rows}")
        if self.folder is not None:
            written = {}
            for name, file in self.files.items():
                self.kept.pop(name).flush()
                path = self.folder / f"{name}.npy"
                file.replace(path)
                written[name] = np.load(path, mmap_mode="r")
            self.files.clear()
            return written
        whole = {name: v if self.count is not None else torch.cat(v) for name, v in self.kept.items()}
        return {name: _for_numpy(v).cpu().numpy() for name, v in whole.items()} if is_numpy else whole

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            self.kept.clear()
            for file in self.files.values():
                file.unlink(missing_ok=True)


def _for_numpy(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value
