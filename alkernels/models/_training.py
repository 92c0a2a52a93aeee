"""What all trainers share: rows of data by index, minibatches, one loop with early stop, checkpoints and resume."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset, IterableDataset, default_collate
from tqdm import tqdm

from alkernels._files import replacing
from alkernels._inputs import as_tensor, check_count, check_flag
from alkernels._sources import is_numpy
from alkernels.models._batches import batches_of
from alkernels.models._fingerprints import digest, spread_rows
from alkernels.models._state import evaluating, keeping_modes, own_randomness, unwrapped
from alkernels.models.posterior import derived_seed

Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

_FORMAT = 2
_WHAT_TO_DO = "delete the file, or give another path"
_ROWS_IN_A_FINGERPRINT = 64
_ITEMS_IN_A_FINGERPRINT = 8  # each may have to be read from a file


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimizers, schedulers, minibatches, trackers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class History(NamedTuple):
    """What came of training.

    Attributes
    ----------
    losses : dict of str to list of float
        The mean of each loss over the steps of an epoch, for all epochs; those before a resume are among them.
        ``"validation"`` is the mean over the validation rows, where there are some.
    best_epoch : int
        The epoch, counted from 0, whose weights the model has now: the one of the lowest loss where `patience` was
        given, and otherwise the last.
    """

    losses: dict[str, list[float]]
    best_epoch: int


class Rows:
    """Rows by index: of a tensor or an array, of a pair of them, or of a map-style Dataset.

    Parameters
    ----------
    data : Tensor, ndarray, pair of them or Dataset
        Inputs; where `labeled`, a pair of inputs and labels, or a Dataset that gives such pairs. What has a length and
        items is a Dataset, too, unless it is a sequence or a mapping.
    name : str
        The argument's name, for errors.
    labeled : bool
        Whether labels are wanted. A Dataset's are left alone where not.
    """

    def __init__(self, data: Any, name: str, *, labeled: bool) -> None:
        self.name = name
        self.labeled = labeled
        self.dataset: Any = None
        self.labels: Tensor | None = None
        if isinstance(data, Dataset) or is_map_style(data):
            if not is_map_style(data):
                raise TypeError(f"{name} must be a map-style Dataset with a length, got {type(data).__name__}")
            self.dataset = data
        elif labeled:
            if not isinstance(data, (tuple, list)) or len(data) != 2:
                raise TypeError(f"{name} must be a pair (x, y) or a Dataset of pairs, got {_described(data)}")
            self.array = _check_array(data[0], f"{name}[0]")
            self.labels = as_tensor(data[1], f"{name}[1]", "an array of labels")
            if self.labels.dim() == 0 or len(self.labels) != len(self.array):
                raise ValueError(
                    f"{name} must have a label for each of its {len(self.array)} rows, "
                    f"got labels of shape {tuple(self.labels.shape)}"
                )
        else:
            self.array = _check_array(data, name)

    @property
    def count(self) -> int:
        return len(self.array) if self.dataset is None else len(self.dataset)

    def check_some(self, what: str) -> None:
        """Raises where there is no row."""
        if self.count == 0:
            raise ValueError(f"{self.name} must have at least one row, got none: {what}")

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs and labels of some rows, where the data are; labels of integers as int64."""
        if self.dataset is not None:
            items = [self.dataset[i] for i in rows.tolist()]
            if self.labeled and any(not isinstance(i, (tuple, list)) or len(i) != 2 for i in items):
                raise TypeError(f"{self.name} must give pairs (x, y), got {_described(items[0])}")
            if self.labeled:
                x, y = default_collate(items)
                return x, _as_labels(torch.as_tensor(y))
            return default_collate([i[0] if isinstance(i, (tuple, list)) else i for i in items]), None
        if isinstance(self.array, Tensor):
            x = self.array[rows.to(self.array.device)]
        else:
            taken = self.array[rows.numpy()]
            x = torch.from_numpy(taken.astype(taken.dtype.newbyteorder("="), copy=False))
        return x, None if self.labels is None else _as_labels(self.labels[rows.to(self.labels.device)])

    def tiles(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All rows in order."""
        for rows in torch.arange(self.count).split(size):
            yield self.gather(rows)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one input."""
        if self.dataset is None:
            return tuple(self.array.shape[1:])
        with own_randomness(0):  # an item may be augmented at random
            return tuple(self.gather(torch.zeros(1, dtype=torch.int64))[0].shape[1:])

    def fingerprint(self) -> str:
        """What tells these data from others cheaply: the number of rows, their shape, labels, and some of them.

        Inputs of a Dataset are not compared, as they may be augmented at random, but labels of some of its items are.
        """
        some = _ROWS_IN_A_FINGERPRINT if self.dataset is None else _ITEMS_IN_A_FINGERPRINT
        rows = spread_rows(self.count, some)
        shape = " x ".join(map(str, (self.count, *self.row_shape)))
        if self.dataset is None:
            content = digest(self.gather(rows)[0], *([] if self.labels is None else [self.labels]))
            return f"{shape}, content {content}"
        if not self.labeled:
            return shape
        with own_randomness(0):
            # one by one: inputs may differ in shape from item to item
            labels = [label for row in rows.split(1) if (label := self.gather(row)[1]) is not None]
        return f"{shape}, labels {digest(*labels)}"


def is_map_style(data: Any) -> bool:
    """Whether it has rows by index, and is neither an array nor a sequence or mapping of other things."""
    if isinstance(data, (Tensor, np.ndarray, tuple, list, str, bytes, Mapping, IterableDataset)):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _check_array(array: Any, name: str) -> Tensor | np.ndarray:
    if not isinstance(array, (Tensor, np.ndarray)):
        raise TypeError(f"{name} must be a tensor, an array or a map-style Dataset, got {_described(array)}")
    if len(array.shape) == 0:
        raise ValueError(f"{name} must have rows, got shape ()")
    return array.detach() if isinstance(array, Tensor) else array


def _described(data: Any) -> str:
    is_sequence = isinstance(data, (tuple, list))
    return f"a {type(data).__name__} of {len(data)}" if is_sequence else f"a {type(data).__name__}"


def _as_labels(labels: Tensor) -> Tensor:
    return labels if labels.is_floating_point() or labels.is_complex() else labels.long()


class Batches:
    """Minibatches of permutations of the rows, without end; those of one permutation differ in size by one at most.

    Parameters
    ----------
    count, batch_size : int
    seed : int
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.an_epoch = -(-count // batch_size)
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting: list[Tensor] = []

    def next(self) -> Tensor:
        """Row numbers, int64 on the CPU."""
        if not self._waiting:
            rows = torch.randperm(self.count, generator=self._generator)
            # a last batch of one row would be an error of batch normalisation
            self._waiting = list(rows.tensor_split(self.an_epoch))
        return self._waiting.pop(0)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "waiting": [rows.clone() for rows in self._waiting]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generator.set_state(state_dict["generator"])
        self._waiting = list(state_dict["waiting"])


def place_of(*modules: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the floating type that modules compute with: those of their first floating parameter or buffer."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def to_place(x: Tensor, place: tuple[torch.device, torch.dtype]) -> Tensor:
    """On the device; floating numbers in its type, and integers, such as those of words, as they are."""
    device, dtype = place
    return x.to(device, dtype if x.is_floating_point() else x.dtype)


def outputs_of(
    function: Callable[[Tensor], tuple[Tensor, ...]], x: Any, modules: Sequence[nn.Module], batch_size: int
) -> tuple[Any, ...]:
    """What `function` gives for all rows of `x`, in evaluation mode: arrays where `x` is one, on its device.

    Parameters
    ----------
    function : callable
        Takes a batch, on the modules' device, and gives tensors with a row for each of the batch's.
    x : Tensor, ndarray, Dataset or iterable of batches
        Of a batch or an item that is a tuple the first entry is taken. A DataLoader that shuffles or drops rows is
        refused. Results of a Dataset and of batches are on the CPU.
    modules : sequence of Module
    batch_size : int
    """
    batch_size = check_count(batch_size, "batch_size")
    place = place_of(*modules)
    target = x.device if isinstance(x, Tensor) else torch.device("cpu")
    batches: Iterable[Any]
    if isinstance(x, (Tensor, np.ndarray, Dataset)) or is_map_style(x):
        rows = Rows(x, "x", labeled=False)
        rows.check_some("there is nothing to predict")
        batches = rows.tiles(batch_size)
    elif isinstance(x, Iterable) and not isinstance(x, (tuple, str, Mapping)):
        batches, _ = batches_of(x, batch_size, "x")
    else:
        raise TypeError(f"x must be a tensor, an array, a Dataset or batches of a DataLoader, got {_described(x)}")
    parts = []
    # a loader draws a seed, and items may be augmented at random
    with evaluating(*modules), torch.random.fork_rng(devices=[place[0]] if place[0].type == "cuda" else []):
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(inputs, Tensor):
                raise TypeError(f"x must give batches that are tensors, got {_described(inputs)}")
            parts.append(tuple(part.to(target) for part in function(to_place(inputs, place))))
    if not parts:
        raise ValueError("x must have at least one batch, got none: there is nothing to predict")
    results = [torch.cat(column) for column in zip(*parts, strict=True)]
    return tuple(result.numpy() if is_numpy(x) else result for result in results)


def make_optimizer(optimizer: Optimizers | None, default: Optimizers, *modules: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all parameters that want a gradient."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not parameters:
        names = ", ".join(type(module).__name__ for module in modules)
        raise ValueError(f"{names} must have parameters that want a gradient, got none: there is nothing to train")
    if optimizer is not None and not callable(optimizer):
        raise TypeError(
            "optimizer must be a function of parameters, as lambda p: torch.optim.SGD(p, lr=0.1), "
            f"got {_described(optimizer)}"
        )
    made = (default if optimizer is None else optimizer)(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer must give a torch.optim.Optimizer, got {_described(made)}")
    # the class's, as schedulers wrap the object's
    _, *wanted = inspect.signature(type(made).step).parameters.values()
    if any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in wanted):
        raise TypeError(f"optimizer must take steps without a closure, got {_described(made)}, whose step needs one")
    return made


def described_optimizer(optimizer: torch.optim.Optimizer) -> str:
    groups = [
        {key: without_numpy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} {groups[0] if len(groups) == 1 else groups}"


def without_numpy(value: Any) -> Any:
    """The same with Python's numbers in place of NumPy's, which a checkpoint cannot hold; copied where it differs."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        items = [(without_numpy(key), without_numpy(entry)) for key, entry in value.items()]
        if all(a is key and b is entry for (a, b), (key, entry) in zip(items, value.items(), strict=True)):
            return value
        made = copy.copy(value)  # of its own kind
        made.clear()
        for key, entry in items:
            made[key] = entry
        return made
    if type(value) in (list, tuple):
        entries = [without_numpy(entry) for entry in value]
        same = all(a is b for a, b in zip(entries, value, strict=True))
        return value if same else type(value)(entries)
    return value


def described_settings(settings: Any, name: str) -> dict[str, str]:
    """What of a state that was not used yet is plain numbers, words and containers of them, by name."""
    settings = without_numpy(settings)
    return {f"{name}.{key}": repr(value) for key, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def train(
    step: Callable[[int], dict[str, Tensor]],
    *,
    modules: dict[str, nn.Module],
    states: dict[str, Stateful],
    configuration: dict[str, Any],
    epochs: int,
    steps: int,
    seed: int,
    description: str,
    schedulers: Sequence[Any] = (),
    watched: str = "loss",
    validate: Callable[[], float] | None = None,
    on_epoch: Callable[[], object] | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> History:
    """The loop of all trainers.

    Parameters
    ----------
    step : callable
        Does one training step, given the epoch, and gives its losses by name.
    modules : dict of str to Module
        They train in training mode: all of a module that is in evaluation mode, while parts in evaluation mode of one
        that is not stay in it. Afterwards each part is in the mode that it was in.
    states : dict of str to object with state_dict and load_state_dict
        What else a checkpoint has to hold: optimizers, schedulers, minibatches, trackers.
    configuration : dict
        What a checkpoint must agree with; values are compared by their ``repr``. Shapes and types of what modules save,
        the number of steps and `patience` are added.
    epochs, steps : int
        How many epochs, and steps an epoch.
    seed : int
        Seeds torch's global generators for the time of training.
    description : str
        Shown with the progress bar.
    schedulers : sequence of schedulers, optional
        Stepped after each epoch.
    watched : str, default "loss"
        The loss that `patience` looks at where there is no `validate`.
    validate : callable, optional
        Gives the validation loss; called in evaluation mode, without gradients, after each epoch.
    on_epoch : callable, optional
        Called likewise, and before the checkpoint is written.
    patience : int, optional
        Training stops after so many epochs in a row without a new lowest loss, and the weights of that go back in.
    checkpoint : path, optional
        Written after each epoch, whole or not at all, and read where it exists.
    progress : bool, default False

    Raises
    ------
    RuntimeError
        A loss is not finite.
    ValueError
        A checkpoint of another configuration, or of more epochs than asked for; a state that a checkpoint cannot hold.

    Notes
    -----
    A checkpoint is written before the first step, too, so that a run that is cut off in its first epoch can start from
    the same weights. Where the first epoch ends in an error, it is removed: nothing was trained.
    """
    epochs = check_count(epochs, "epochs")
    patience = None if patience is None else check_count(patience, "patience")
    progress = check_flag(progress, "progress")
    path = None if checkpoint is None else _check_path(checkpoint)
    record = {
        name: str(value) if isinstance(value, str) else repr(without_numpy(value))
        for name, value in configuration.items()
    }
    record |= {"steps an epoch": repr(steps), "patience": repr(patience), "format": repr(_FORMAT)}
    for name, module in modules.items():
        record |= {
            f"{name}.{key}": f"{value.dtype} of shape {tuple(value.shape)}"
            for key, value in module.state_dict().items()
            if isinstance(value, Tensor)
        }
    parts = modules | states
    device = place_of(*modules.values())[0]
    losses: dict[str, list[float]] = {}
    best: dict[str, Any] | None = None
    epoch = 0
    with own_randomness(derived_seed(seed, "training")), keeping_modes(modules.values()):
        if path is not None and path.exists():
            saved = _load(path, record, epochs)
            _put_back(parts, saved["states"], path)
            torch.set_rng_state(saved["random"]["cpu"])
            if device.type == "cuda" and "cuda" in saved["random"]:
                torch.cuda.set_rng_state(saved["random"]["cuda"], device)
            losses, best, epoch = saved["losses"], saved["best"], saved["epoch"]

        def write() -> None:
            if path is None:
                return
            random = {"cpu": torch.get_rng_state()}
            if device.type == "cuda":
                random["cuda"] = torch.cuda.get_rng_state(device)
            content = {
                "configuration": record,
                "states": {name: part.state_dict() for name, part in parts.items()},
                "random": random,
                "losses": losses,
                "best": best,
                "epoch": epoch,
            }
            # the first steps make states of optimizers, and what cannot be loaded is found before it is needed
            _write(path, without_numpy(content), check=epoch <= first + 1)

        for module in modules.values():
            if not unwrapped(module).training:
                module.train()
        modes = [(part, part.training) for module in modules.values() for part in module.modules()]
        first = epoch
        if path is not None and not path.exists():
            write()
        bar = tqdm(total=epochs * steps, initial=epoch * steps, desc=description, unit="step", disable=not progress)
        try:
            with bar:
                while epoch < epochs and (patience is None or best is None or epoch - 1 - best["epoch"] < patience):
                    for part, training in modes:  # what the caller's functions did to them
                        part.training = training
                    sums: dict[str, Tensor] = {}
                    for i in range(steps):
                        for name, value in step(epoch).items():
                            value = value.detach().double()
                            sums[name] = sums[name] + value if name in sums else value
                        if progress:
                            bar.set_postfix({name: f"{float(value) / (i + 1):.4g}" for name, value in sums.items()})
                        bar.update()
                    means = {name: float(value) / steps for name, value in sums.items()}
                    with evaluating(*modules.values()):
                        if validate is not None:
                            means["validation"] = validate()
                        _check_losses(means, epoch)
                        if on_epoch is not None:
                            on_epoch()
                    value_watched = means[watched if validate is None else "validation"]
                    for scheduler in schedulers:
                        scheduler.step(*([value_watched] if isinstance(scheduler, ReduceLROnPlateau) else []))
                    for name, mean in means.items():
                        losses.setdefault(name, []).append(mean)
                    if patience is not None and (best is None or value_watched < best["value"]):
                        weights = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
                        best = {"value": value_watched, "epoch": epoch, "modules": weights}
                    epoch += 1
                    write()
        except Exception:
            if path is not None and epoch == 0:  # nothing was trained; an interrupted run is another matter
                path.unlink(missing_ok=True)
            raise
        if best is not None:
            for name, module in modules.items():
                module.load_state_dict(best["modules"][name])
    return History(losses, epoch - 1 if best is None else best["epoch"])


def _check_losses(means: dict[str, float], epoch: int) -> None:
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if bad:
        raise RuntimeError(
            f"training went astray: {bad[0]} is {means[bad[0]]} in epoch {epoch}; "
            "look for values in the data that are not finite, or lower the learning rate"
        )


def _check_path(checkpoint: Any) -> Path:
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(f"checkpoint must be a path, got {_described(checkpoint)}")
    # the file behind a link is replaced, not the link
    path = Path(os.path.realpath(os.fsdecode(checkpoint)))
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint must be a file, got {path}, a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"checkpoint must be in an existing folder, got {path}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"checkpoint must be in a folder that can be written to, got {path}")
    return path


def _write(path: Path, content: dict[str, Any], *, check: bool) -> None:
    with replacing(path, "checkpoint") as file:
        try:
            torch.save(content, file)
            if check:
                file.flush()
                torch.load(file.name, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # what cannot be pickled or loaded raises what it likes
            found = _not_to_be_loaded(content["states"], "")
            if found is None and not isinstance(error, pickle.PickleError):
                raise
            raise ValueError(
                f"checkpoint {path} cannot hold {found or 'all states'}; states must be of tensors, numbers, strings "
                "and containers of them"
            ) from error


def _not_to_be_loaded(value: Any, name: str) -> str | None:
    """The first entry of a state that is no tensor, number or string: its name and type."""
    if isinstance(value, dict):
        return next(
            filter(None, (_not_to_be_loaded(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())), None
        )
    if isinstance(value, (list, tuple, set)):
        return next(filter(None, (_not_to_be_loaded(v, f"{name}[{i}]") for i, v in enumerate(value))), None)
    fine = (Tensor, bool, int, float, complex, str, bytes, torch.dtype, torch.device)
    return None if value is None or isinstance(value, fine) else f"{name}, which is a {type(value).__name__}"


def _put_back(parts: Mapping[str, Stateful], saved: dict[str, Any], path: Path) -> None:
    """All states or none of them."""
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    name = ""
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except Exception as error:
        for other, state in before.items():
            with suppress(Exception):  # the one that did not fit may take nothing
                parts[other].load_state_dict(state)
            if other == name:
                break
        raise ValueError(
            f"checkpoint {path} does not fit {name}: {str(error) or type(error).__name__}; {_WHAT_TO_DO}"
        ) from error


def _load(path: Path, record: dict[str, str], epochs: int) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes torch raise is documented nowhere
        # torch's message advises to load it unsafely
        whole = zipfile.is_zipfile(path)
        reason = "it holds more than tensors and plain containers of them" if whole else "it is not complete"
        raise ValueError(f"checkpoint {path} cannot be loaded: {reason}; {_WHAT_TO_DO}") from error
    found = saved.get("configuration") if isinstance(saved, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"checkpoint {path} is none of this library; {_WHAT_TO_DO}")
    differing = [
        f"{name} was {found.get(name, 'not there')} and is {record.get(name, 'not there')} now"
        for name in (record | found)
        if found.get(name) != record.get(name)
    ]
    if differing:
        shown = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
        raise ValueError(f"checkpoint {path} is of another run: {shown}; {_WHAT_TO_DO}")
    if saved["epoch"] > epochs:
        raise ValueError(
            f"checkpoint {path} is of {saved['epoch']} epochs, and epochs is {epochs} now: it cannot go back; "
            f"{_WHAT_TO_DO}"
        )
    return saved
