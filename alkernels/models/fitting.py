"""The plain training loop of a classifier, with what strategies want to hear of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alkernels._inputs import check_count, seed_of
from alkernels.models._training import (
    Batches,
    History,
    Optimizers,
    Rows,
    Stateful,
    described_optimizer,
    make_optimizer,
    place_of,
    to_place,
    train,
)
from alkernels.models.posterior import derived_seed

__all__ = ["History", "fit"]

_BATCH_SIZE_OF_VALIDATION = 1024


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


def fit(
    model: nn.Module,
    labeled: Any,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer: Optimizers | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    validation: Any = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    trackers: dict[str, Stateful] | None = None,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
    on_batch: Callable[[Tensor, Tensor, Tensor], object] | None = None,
    on_epoch: Callable[[nn.Module], object] | None = None,
) -> History:
    """Trains a model on labelled rows.

    Minibatches are taken from a new permutation of the rows each epoch, all of nearly the same size. Inputs and labels
    are moved to the model's device, floating inputs to its floating type. Afterwards each part of the model is in
    training or evaluation mode as it was before.

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
    validation : pair of arrays or Dataset, optional
        Labelled rows whose mean loss is measured after each epoch, in evaluation mode.
    patience : int, optional
        Training stops after so many epochs in a row without a new lowest loss, of `validation` or, where there is
        none, of training; the model gets the weights of the lowest back.
    checkpoint : path, optional
        A file that holds everything after each epoch. Where it exists, training goes on from it, and ends in the
        weights of an uninterrupted run, bit by bit on a CPU; it may be asked for more epochs than before. It is kept at
        the end.
    trackers : dict of str to object, optional
        What else the checkpoint is to hold, such as a tracker whose ``update`` is `on_batch`: anything with
        ``state_dict`` and ``load_state_dict``.
    generator : torch.Generator or int, optional
        Decides the minibatches and what the model draws, as masks of dropout. torch's global generators are left as
        they are.
    progress : bool, default False
        Show a progress bar (tqdm) with the losses.
    on_batch : callable, optional
        Called as ``on_batch(indices, logits, labels)`` in each step, after the forward pass and before the update:
        ``ForgettingTracker.update`` fits.
    on_epoch : callable, optional
        Called with the model after each epoch, in evaluation mode and without gradients.

    Returns
    -------
    History
        Losses ``"loss"`` and, with `validation`, ``"validation"``.

    Raises
    ------
    ValueError
        No rows, labels that are no classes of the model, a checkpoint of another run (the message says what differs).
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
        "generator": None if generator is None else seed,
    }
    states: dict[str, Stateful] = {"optimizer": made, "batches": batches}
    schedulers = [] if scheduler is None else [scheduler(made)]
    configuration["scheduler"] = type(schedulers[0]).__qualname__ if schedulers else None
    states |= {f"scheduler {i}": s for i, s in enumerate(schedulers)}
    states |= {f"tracker {name}": tracker for name, tracker in (trackers or {}).items()}
    configuration["trackers"] = sorted(trackers or {})

    def loss_of(logits: Any, labels: Tensor, rows: Rows) -> Tensor:
        if loss is not None:
            return loss(logits, labels.to(place[0]))
        check_classes(labels, check_logits(logits).shape[1], rows.name)
        return functional.cross_entropy(logits, labels.to(logits.device))

    def step(epoch: int) -> dict[str, Tensor]:
        rows = batches.next()
        x, labels = data.gather(rows)
        assert labels is not None
        logits = model(to_place(x, place))
        value = loss_of(logits, labels, data)
        if on_batch is not None:
            on_batch(rows, logits.detach() if isinstance(logits, Tensor) else logits, labels)
        made.zero_grad()
        value.backward()
        made.step()
        return {"loss": value}

    def validate() -> float:
        assert held_out is not None
        total = 0.0
        for x, labels in held_out.tiles(_BATCH_SIZE_OF_VALIDATION):
            assert labels is not None
            total += len(x) * float(loss_of(model(to_place(x, place)), labels, held_out))
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
