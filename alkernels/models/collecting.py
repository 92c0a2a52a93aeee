"""``alkernels.collect``: what strategies need to know of a pool, from any network."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler
from tqdm import tqdm

from alkernels._inputs import check_count
from alkernels.models._state import evaluating
from alkernels.models.dropout import MCDropout
from alkernels.models.posterior import Posterior
from alkernels.strategies._arguments import check_one_of
from alkernels.strategies._catalogue import StrategyInfo, info, names, nearest

ARRAYS = ("probs", "log_probs", "features", "mc_probs", "votes", "scores", "labels", "head_weight", "head_bias")
_OF_HEAD = ("head_weight", "head_bias")
_OF_DRAWS = ("mc_probs", "votes", "scores")
_OF_LABELED = {"labeled_features": "features", "labeled_probs": "probs", "labels": "labels"}
_OUTPUTS = ("logits", "probs", "log_probs")
_POOLING = ("mean", "first", "flatten")


def collect(
    model: nn.Module | Posterior,
    loader: Any,
    needs: str | Iterable[str] = "probs",
    *,
    layer: str | None = None,
    pooling: str | None = None,
    draws: int = 100,
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
    flags of each module, hooks, BatchNorm's statistics, and torch's random state.

    Parameters
    ----------
    model : Module or Posterior
        Gives logits ``[B, C]`` for a batch: a tensor, or the first of a tuple, or ``.logits`` or ``["logits"]`` of what
        comes. Or posterior draws: :class:`~alkernels.models.MCDropout`, an ensemble, Bayes by backprop.
    loader : iterable of batches, Dataset, Tensor or ndarray
        The pool in order. A batch is a tensor, a tuple whose first entry is the input, or a mapping (all but
        ``labels`` go to the network by name). A loader that shuffles or drops rows is refused.
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
    draws : int, default 100
        How many draws of dropout, where the network is not a posterior already.
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
        check_one_of(pooling, "pooling", _POOLING)
    if spatial is not None:
        check_one_of(spatial, "spatial", ("mean",))
    if not isinstance(model, (nn.Module, Posterior)):
        raise TypeError(f"model must be a torch.nn.Module or a posterior, got {type(model).__name__}")
    batch_size = check_count(batch_size, "batch_size")
    wanted, besides = _wanted(needs, spatial is not None)
    source: nn.Module | Posterior = model if isinstance(model, Posterior) else _unwrapped(model)
    if not isinstance(source, Posterior) and (any(name in _OF_DRAWS for name in wanted) or targets is not None):
        source = MCDropout(source, draws, generator=generator)
    run = _Run(source, outputs, spatial, forward, layer, pooling, device, progress)
    folder = None if out is None else Path(out)
    arrays = run.over(loader, wanted, batch_size, folder)
    if labeled is not None:
        names_of = {name: of for name, of in _OF_LABELED.items() if name in besides}
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


def not_collected(entry: StrategyInfo) -> list[str]:
    """What a strategy needs that :func:`collect` does not give, from a pool and labelled rows."""
    given = {*ARRAYS, *_OF_LABELED} - {"scores"}
    return [group[0] for group in entry.needs if not given & {*group}]


def _unwrapped(model: nn.Module) -> nn.Module:
    """What hooks are seen by: the module inside of torch.compile's and of data parallel ones."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else model


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
        self.network = source.network if isinstance(source, Posterior) else source
        self.networks = source.networks if isinstance(source, Posterior) else [source]
        self.outputs, self.spatial, self.forward, self.pooling = outputs, spatial, forward, pooling
        self.progress = progress
        self.layer = layer
        self.tapped: nn.Module | None = None
        if layer is not None:
            known = [name for name, _ in self.network.named_modules() if name]
            if layer not in known:
                raise ValueError(f"layer must be a module of the network, got {layer!r}; there are {', '.join(known)}")
            self.tapped = self.network.get_submodule(layer)
        tensor = next((t for t in [*self.network.parameters(), *self.network.buffers()]), None)
        self.where = torch.device("cpu") if tensor is None else tensor.device
        self.kept = self.where if device is None else torch.device(device)
        self.head: nn.Linear | None = None

    def over(self, loader: Any, wanted: list[str], batch_size: int, folder: Path | None) -> dict[str, Any]:
        batches, count = _batches(loader, batch_size)
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
                with torch.inference_mode():
                    rows = self._batch(batch, wanted, alone, outputs, averaged)
                if not rows:
                    break  # the head alone is wanted, and found
                bar.update(sink.take(rows))
        arrays = sink.arrays(is_numpy)
        for name in _OF_HEAD:
            if name in wanted:
                value = getattr(self.head, name.removeprefix("head_"))
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
            with _watched(self._modules(alone)) as seen:
                raw = forward(self.network)
            calls = [s for s in seen if isinstance(s.module, nn.Linear)]
            if self.head is None and self._needs_head(alone):
                self._find_head(calls, raw)
            if "features" in alone:
                module = self.head if self.tapped is None else self.tapped
                rows["features"] = self._features([s for s in seen if s.module is module], len(raw))
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
        if values.isnan().any():
            row = int(values.flatten(1).isnan().any(1).nonzero()[0])
            raise ValueError(f"the network's outputs must not be NaN, got NaN in row {row} of a batch")
        if self.outputs == "logits":
            if bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
                raise ValueError("outputs must be 'probs' for a network that gives probabilities, got 'logits'")
            probs, logs = values.softmax(1), values.log_softmax(1)
        elif self.outputs == "probs":
            probs, logs = values, values.log()
        else:
            probs, logs = values.exp(), values
        return probs, logs

    def _features(self, seen: list[_Seen], rows: int) -> Tensor:
        """[B, D]: what the layer gave, or what the head got."""
        value = seen[-1].gave if self.layer is not None else seen[-1].got
        value = value[0] if isinstance(value, (tuple, list)) else getattr(value, "last_hidden_state", value)
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != rows:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            where = f"layer {self.layer!r}" if self.layer is not None else "the last Linear layer"
            raise ValueError(f"features of {where} must have one row for each of {rows} inputs, got {got}")
        if value.dim() == 3 and self.pooling is None:
            raise ValueError(
                f"features must be [B, D] or maps, got the sequences {tuple(value.shape)}: say pooling='mean', 'first' "
                "or 'flatten'"
            )
        if value.dim() > 2:
            if self.pooling == "flatten":
                value = value.flatten(1)
            elif value.dim() == 3:
                value = value.mean(1) if self.pooling == "mean" else value[:, 0]
            else:
                value = value.flatten(2).mean(2) if self.pooling != "first" else value.flatten(2)[:, :, 0]
        return value

    def _needs_head(self, alone: list[str]) -> bool:
        return any(n in _OF_HEAD for n in alone) or ("features" in alone and self.tapped is None)

    def _modules(self, alone: list[str]) -> list[nn.Module]:
        """What to watch: the layer, and all Linear layers as long as the head is not known."""
        chosen: list[nn.Module] = [] if self.tapped is None or "features" not in alone else [self.tapped]
        if self._needs_head(alone):
            every = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
            chosen += every if self.head is None else [self.head]
        return list(dict.fromkeys(chosen))

    def _find_head(self, seen: list[_Seen], raw: Tensor) -> None:
        """Which Linear layer is the head: the one that gave the outputs, or else the last with as many of them."""
        gave = [s for s in seen if s.gave is raw] or [s for s in seen if s.module.weight.shape[0] == raw.shape[1]]
        if not gave:
            found = ", ".join(name for name, _ in self.network.named_modules() if name)
            raise ValueError(
                "the network must end in a torch.nn.Linear layer for features, head_weight and head_bias to be found, "
                f"got none that gives {raw.shape[1]} scores; name the layer whose output the features are, layer=; "
                f"there are {found or 'no modules'}"
            )
        self.head = gave[-1].module


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


class _Seen(NamedTuple):
    """A call of a module."""

    module: Any
    got: Any
    gave: Any


@contextmanager
def _watched(modules: Iterable[nn.Module]) -> Iterator[list[_Seen]]:
    """The calls of some modules, in order."""
    seen: list[_Seen] = []
    with ExitStack() as hooks:
        for module in modules:
            hook = module.register_forward_hook(lambda m, args, gave: seen.append(_Seen(m, args[0], gave)))
            hooks.callback(hook.remove)
        yield seen


def _batches(loader: Any, batch_size: int) -> tuple[Iterable[Any], int | None]:
    """Batches in the pool's order, and how many rows there are, where that is known."""
    if isinstance(loader, (Tensor, np.ndarray)):
        if loader.ndim < 1 or len(loader) == 0:
            raise ValueError(f"loader must have at least one row, got shape {tuple(loader.shape)}")
        chunks = (loader[i : i + batch_size] for i in range(0, len(loader), batch_size))
        return (c if isinstance(c, Tensor) else torch.from_numpy(np.array(c)) for c in chunks), len(loader)
    if isinstance(loader, Dataset) and not isinstance(loader, torch.utils.data.IterableDataset):
        loader = DataLoader(loader, batch_size)
    if not isinstance(loader, DataLoader):
        if not isinstance(loader, Iterable):
            raise TypeError(f"loader must give batches, or be a Dataset or an array, got {type(loader).__name__}")
        return loader, None
    if isinstance(loader.sampler, RandomSampler):
        raise ValueError("loader must give the pool in order, got one that shuffles: make it with shuffle=False")
    if not isinstance(loader.sampler, SequentialSampler) or loader.batch_size is None:
        return loader, None
    count = len(loader.sampler)
    if loader.drop_last and count % loader.batch_size:
        raise ValueError("loader must give every row, got one with drop_last=True: make it without")
    return loader, count


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_moved(value, device) for value in batch) if type(batch) in (tuple, list) else batch
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
