"""The plain training loop of a classifier, with what strategies want to hear of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alkernels._inputs import check_count, check_generator, seed_of
from alkernels.models._training import (
    Batches,
    History,
    Optimizers,
    Rows,
    Stateful,
    described_optimizer,
    described_settings,
    make_optimizer,
    place_of,
    to_place,
    train,
)
from alkernels.models.ensembles import check_callable
from alkernels.models.posterior import derived_seed

__all__ = ["History", "fit"]


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def described_function(function: Any) -> str:
    """A name for a checkpoint's record that does not change from process to process."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def check_logits(outputs: Any) -> Tensor:
    """Logits of classes, as the cross-entropy takes them."""
    if not isinstance(outputs, Tensor):
        raise TypeError(f"model must give a tensor of logits, or `loss` must be given; got a {type(outputs).__name__}")
    if outputs.dim() != 2:
        raise ValueError(f"model must give logits [B, C], or `loss` must be given; got shape {tuple(outputs.shape)}")
    return outputs


def check_classes(labels: Tensor | None, classes: int, name: str) -> None:
    """Raises where labels are no classes: on a GPU the loss would end the process."""
    if labels is None or labels.is_floating_point() or labels.dim() != 1:
        got = "nothing" if labels is None else f"{labels.dtype} {tuple(labels.shape)}"
        raise TypeError(f"{name} must have integer labels, one a row, or `loss` must be given; got {got}")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(f"{name} must have labels between 0 and {classes - 1}, got {int(labels[wrong][0])}")


def _check_trackers(trackers: Any) -> dict[str, Stateful]:
    """Raises where a checkpoint could not hold one of them."""
    if trackers is None:
        return {}
    if not isinstance(trackers, dict):
        raise TypeError(f"trackers must be a dict of trackers by name, got {type(trackers).__name__}")
    for name, tracker in trackers.items():
        if not isinstance(name, str):
            raise TypeError(f"trackers must have names that are strings, got {name!r}")
        if not _has_state(tracker):
            raise TypeError(
                f"trackers[{name!r}] must have state_dict and load_state_dict, got {type(tracker).__name__}"
            )
    return trackers


def _has_state(value: Any) -> bool:
    return all(callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict"))


def _check_loss(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{name} must give a tensor of one number, got {got}")
    return value


def fit(
    model: nn.Module,
    labeled: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer: Optimizers | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    batch_loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    validation: Any = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    trackers: dict[str, Stateful] | None = None,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
    on_batch: Callable[[Tensor, Tensor, Tensor], object] | None = None,
    on_step: Callable[[], object] | None = None,
    on_epoch: Callable[[nn.Module], object] | None = None,
) -> History:
    """Trains a model on labelled rows.

    Minibatches are taken from a new permutation of the rows each epoch, all of nearly the same size. Inputs and labels
    are moved to the model's device, floating inputs to its floating type.

    A model in evaluation mode is trained in training mode, all of it. Of one in training mode, parts that are in
    evaluation mode stay in it, such as a backbone whose statistics are to be left alone. Afterwards each part is in the
    mode that it was in.

    Parameters
    ----------
    model : Module
        Changed in place; training goes on from the weights that it has.
    labeled : pair of arrays or Dataset
        Inputs and labels, (x, y), with as many rows; or a map-style Dataset that gives such pairs.
    epochs : int
    batch_size : int, default 128
    optimizer : callable, optional
        Makes the optimizer of the parameters that it is given; by default Adam with a rate of 1e-3.
    scheduler : callable, optional
        Makes a learning rate scheduler of the optimizer that it is given, stepped after each epoch.
    loss : callable, optional
        The mean loss of outputs and labels; by default the cross-entropy of logits [B, C] and classes [B].
    batch_loss : callable, optional
        ``batch_loss(model, x, y)`` gives the loss of a minibatch on the model's device, in place of
        ``loss(model(x), y)``: of several heads, or with a term of the weights.
    validation : pair of arrays or Dataset, optional
        Labelled rows whose mean loss is measured after each epoch, in evaluation mode, `batch_size` rows at a time.
    patience : int, optional
        Training stops after so many epochs in a row without a new lowest loss, of `validation` or, where there is
        none, of training; the model gets the weights of the lowest back.
    checkpoint : path, optional
        A file that holds everything, from before the first step on and after each epoch. Where it exists, training goes
        on from it, and ends in the weights of an uninterrupted run, bit by bit on a CPU; it may be asked for more
        epochs than before. It is kept at the end.

        A file of another run is refused. Compared are names, shapes and types of what the model saves; options of the
        optimizer, and plain numbers of a new scheduler (so that more epochs need the same schedule: not one that
        depends on `epochs`); names of the losses; the other arguments; of arrays the shape, all labels and up to 64
        rows; of a Dataset the length, one input's shape, and up to 8 labels. Functions are compared by name at most.
    trackers : dict of str to object, optional
        What else the checkpoint is to hold, such as a tracker whose ``update`` is `on_batch`: anything with
        ``state_dict`` and ``load_state_dict``, of tensors, numbers, strings and containers of them.
    generator : torch.Generator or int, optional
        Decides the minibatches and what the model draws, as masks of dropout. torch's global generators are left as
        they are. From a checkpoint training goes on with the random numbers in it: it must be of the same seed, and of
        none or a torch.Generator, in whatever state, if it was of one.
    progress : bool, default False
        Show a progress bar (tqdm) with the losses.
    on_batch : callable, optional
        Called as ``on_batch(indices, logits, labels)`` in each step, after the forward pass and before the update:
        ``ForgettingTracker.update`` fits. Not with `batch_loss`, which tells of no logits.
    on_step : callable, optional
        Called without arguments after each update: ``SnapshotEnsemble.step`` fits.
    on_epoch : callable, optional
        Called with the model after each epoch, in evaluation mode and without gradients.

    Returns
    -------
    History
        Losses ``"loss"`` and, with `validation`, ``"validation"``.

    Raises
    ------
    ValueError
        No rows, labels that are no classes of the model, a checkpoint of another run (the message says what differs),
        states that a checkpoint cannot hold, a loss that is not one number, `batch_loss` together with `loss` or
        `on_batch`.
    TypeError
        Data or options of another kind.
    RuntimeError
        A loss that is not finite.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.fitting import fit
    >>> x = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    >>> model = torch.nn.Linear(1, 2)
    >>> history = fit(model, (x, [0, 0, 1, 1]), epochs=200, generator=0)
    >>> history.losses["loss"][0] > history.losses["loss"][-1]
    True
    """
    data = Rows(labeled, "labeled", labeled=True)
    data.check_some("there is nothing to train on")
    batch_size = check_count(batch_size, "batch_size")
    held_out = None if validation is None else Rows(validation, "validation", labeled=True)
    if held_out is not None:
        held_out.check_some("leave it out to train without")
    functions = {
        "scheduler": scheduler,
        "loss": loss,
        "batch_loss": batch_loss,
        "on_batch": on_batch,
        "on_step": on_step,
        "on_epoch": on_epoch,
    }
    for name, function in functions.items():
        if function is not None:
            check_callable(function, name)
    if batch_loss is not None and (loss is not None or on_batch is not None):
        raise ValueError(f"batch_loss must be given without {'on_batch' if loss is None else 'loss'}, got both")
    trackers = _check_trackers(trackers)
    made = make_optimizer(optimizer, _adam, model)
    seed = seed_of(generator)
    place = place_of(model)
    batches = Batches(data.count, batch_size, derived_seed(seed, "labeled"))
    configuration: dict[str, Any] = {
        "trainer": "fit",
        "model": type(model).__qualname__,
        "labeled": data.fingerprint(),
        "validation": None if held_out is None else held_out.fingerprint(),
        "batch_size": batch_size,
        "optimizer": described_optimizer(made),
        "loss": "cross_entropy" if loss is None else described_function(loss),
        "batch_loss": None if batch_loss is None else described_function(batch_loss),
        "generator": check_generator(generator),
    }
    states: dict[str, Stateful] = {"optimizer": made, "batches": batches}
    schedulers = [] if scheduler is None else [scheduler(made)]
    for one in schedulers:
        if not callable(getattr(one, "step", None)) or not _has_state(one):
            raise TypeError(f"scheduler must give a learning rate scheduler, got {type(one).__name__}")
        configuration |= described_settings(one.state_dict(), "scheduler")
    configuration["scheduler"] = type(schedulers[0]).__qualname__ if schedulers else None
    states |= {f"scheduler {i}": s for i, s in enumerate(schedulers)}
    states |= {f"tracker {name}": tracker for name, tracker in trackers.items()}
    configuration["trackers"] = sorted(trackers)

    def loss_of(x: Tensor, labels: Tensor, rows: Rows, indices: Tensor | None) -> Tensor:
        if batch_loss is not None:
            return _check_loss(batch_loss(model, to_place(x, place), labels.to(place[0])), "batch_loss")
        logits = model(to_place(x, place))
        if loss is not None:
            value = _check_loss(loss(logits, labels.to(place[0])), "loss")
        else:
            check_classes(labels, check_logits(logits).shape[1], rows.name)
            value = functional.cross_entropy(logits, labels.to(logits.device))
        if on_batch is not None and indices is not None:
            on_batch(indices, logits.detach() if isinstance(logits, Tensor) else logits, labels)
        return value

    def step(epoch: int) -> dict[str, Tensor]:
        rows = batches.next()
        x, labels = data.gather(rows)
        assert labels is not None
        value = loss_of(x, labels, data, rows)
        made.zero_grad()
        value.backward()
        made.step()
        if on_step is not None:
            on_step()
        return {"loss": value}

    def validate() -> float:
        assert held_out is not None
        total = 0.0
        for x, labels in held_out.tiles(batch_size):
            assert labels is not None
            total += len(x) * float(loss_of(x, labels, held_out, None))
        return total / held_out.count

    return train(
        step,
        modules={"model": model},
        states=states,
        configuration=configuration,
        epochs=epochs,
        steps=batches.an_epoch,
        seed=seed,
        description="Training",
        schedulers=schedulers,
        validate=None if held_out is None else validate,
        on_epoch=None if on_epoch is None else lambda: on_epoch(model),
        patience=patience,
        checkpoint=checkpoint,
        progress=progress,
    )
