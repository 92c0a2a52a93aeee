"""Learning loss: a small module beside a network that predicts the network's loss of each row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alkernels._inputs import Array, check_count, check_generator, check_integer, seed_of
from alkernels.models._state import evaluating, own_randomness
from alkernels.models._training import (
    Batches,
    History,
    Optimizers,
    Rows,
    described_optimizer,
    make_optimizer,
    outputs_of,
    place_of,
    to_place,
    train,
)
from alkernels.models.ensembles import check_callable
from alkernels.models.fitting import check_classes, check_logits, described_function
from alkernels.models.posterior import derived_seed
from alkernels.strategies._arguments import check_above_zero, check_not_negative

__all__ = ["LossPrediction", "loss_prediction_loss"]

_LAYERS_SHOWN = 20


def loss_prediction_loss(predicted: Tensor, losses: Tensor, *, margin: float = 1.0) -> Tensor:
    r"""How badly predicted losses rank pairs of rows: the mean over pairs of a hinge.

    Row i is paired with row B - 1 - i, and ``max(0, -s (predicted_i - predicted_j) + margin)`` is taken, where s is 1
    if the loss of row i is the higher one, and -1 otherwise, also for equal losses. Of an odd number of rows the one in
    the middle, which would be its own partner, is left out.

    Parameters
    ----------
    predicted : Tensor of shape (B,)
        Predicted losses.
    losses : Tensor of shape (B,)
        The true ones; no gradient goes into them.
    margin : float, default 1
        By how much the row of the higher loss should be predicted higher.

    Returns
    -------
    Tensor of shape ()
        The sum over the pairs by their number: B / 2, or (B - 1) / 2 if B is odd.

    Raises
    ------
    ValueError
        Shapes that differ, less than two rows, a margin that is not above 0.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon. Learning loss for active learning. CVPR 2019.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.loss_prediction import loss_prediction_loss
    >>> loss_prediction_loss(torch.tensor([2.0, 0.0, 0.0, 1.5]), torch.tensor([3.0, 1.0, 1.0, 0.0]))
    tensor(0.7500)
    """
    margin = check_above_zero(margin, "margin")
    if predicted.dim() != 1 or predicted.shape != losses.shape or len(predicted) < 2:
        raise ValueError(
            "predicted and losses must be two vectors of the same length, at least 2, "
            f"got {tuple(predicted.shape)} and {tuple(losses.shape)}"
        )
    half = len(predicted) // 2
    gaps = (predicted - predicted.flip(0))[:half]
    signs = torch.where((losses > losses.flip(0))[:half], 1.0, -1.0).to(gaps)
    return (margin - signs * gaps).clamp(min=0).mean()


def _default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


class LossPrediction(nn.Module):
    """A network together with a module that predicts its loss from layers inside it.

    What each named layer gives is averaged over space, put through a linear layer and a ReLU; all of them together go
    through one linear layer that gives the loss. There is no dropout. Layers are tapped with forward hooks that are
    there during a forward pass only.

    Make a new object each round, unless training is to go on from the weights of the last.

    Parameters
    ----------
    model : Module
        Gives outputs, such as logits, for a batch. It becomes a part of this module.
    layers : sequence of str
        Names of layers as ``model.named_modules()`` has them, such as the stages of a ResNet. Each has to run once in a
        forward pass, and to give [B, D], or [B, C, H, W] or more with axes of space behind the channels. Sequences and
        signals are refused, as [B, T, D] cannot be told from [B, C, L]: name a layer behind their pooling.
    example : Tensor, ndarray or Dataset, optional
        Some inputs, from which the width of each layer is found with a forward pass.
    channels : sequence of int, optional
        The widths themselves, D or C of each layer, instead of `example`.
    width : int, default 128
        Of the linear layer behind each tapped one.
    generator : torch.Generator or int, optional
        Decides the first weights of what predicts the loss.

    Raises
    ------
    ValueError
        A layer that is not there (the message lists those that are), that runs never or more than once, or gives
        something of another shape; none or both of `example` and `channels`.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon. Learning loss for active learning. CVPR 2019.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.loss_prediction import LossPrediction
    >>> x = torch.linspace(-1, 1, 40)[:, None]
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> module = LossPrediction(model, ["1"], channels=[8], generator=0)
    >>> history = module.fit((x, (x[:, 0] > 0).long()), epochs=5, generator=0)
    >>> module.predict(x).shape
    torch.Size([40])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        *,
        example: Any = None,
        channels: Sequence[int] | None = None,
        width: int = 128,
        generator: torch.Generator | int | None = None,
    ) -> None:
        super().__init__()
        names = [name for name, _ in model.named_modules() if name]
        if isinstance(layers, str) or not layers:
            raise ValueError(f"layers must be one or more names of layers in a list, got {layers!r}")
        for layer in layers:
            if layer not in names:
                shown = ", ".join(names[:_LAYERS_SHOWN]) + (", ..." if len(names) > _LAYERS_SHOWN else "")
                raise ValueError(f"layers must be of {shown}, got {layer!r}")
        if len(set(layers)) < len(layers):
            raise ValueError(f"layers must name each layer once, got {list(layers)}")
        if (example is None) == (channels is None):
            raise ValueError(f"either example or channels must be given, got {'none' if example is None else 'both'}")
        self.width = check_count(width, "width")
        self.model = model
        self.layers = tuple(layers)
        if channels is None:
            channels = self._channels(example)
        elif len(channels) != len(layers):
            raise ValueError(f"channels must have a width for each of {len(layers)} layers, got {len(channels)}")
        self.channels = tuple(check_count(c, "channels") for c in channels)
        device, dtype = place_of(model)
        with own_randomness(derived_seed(seed_of(generator), "LossPrediction", "weights")):
            self.narrowing = nn.ModuleList(nn.Linear(c, self.width) for c in self.channels)
            self.joining = nn.Linear(self.width * len(self.channels), 1)
        self.narrowing.to(device, dtype)
        self.joining.to(device, dtype)

    def _channels(self, example: Any) -> list[int]:
        rows = Rows(example, "example", labeled=False)
        rows.check_some("its rows show how wide the layers are")
        x, _ = rows.gather(torch.arange(min(rows.count, 2)))
        with evaluating(self.model), own_randomness(0), self._tapped() as tapped:
            self.model(to_place(x, place_of(self.model)))
        return [part.shape[1] for part in self._in_order(tapped)]

    @contextmanager
    def _tapped(self) -> Iterator[dict[str, Tensor]]:
        """What the layers give in a forward pass, averaged over space."""
        tapped: dict[str, Tensor] = {}

        def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if name in tapped:
                    raise ValueError(f"layers must run once in a forward pass, and {name!r} runs more than once")
                if not isinstance(output, Tensor) or output.dim() in (0, 1, 3):
                    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
                    advice = ""
                    if isinstance(output, Tensor) and output.dim() == 3:
                        advice = ", where channels cannot be told from places: name a layer behind the pooling"
                    raise ValueError(
                        f"layers must give a tensor [B, D] or [B, C, H, W], and {name!r} gives {got}{advice}"
                    )
                # now, and as a copy: what comes behind may work in place
                tapped[name] = output.flatten(2).mean(2) if output.dim() > 2 else output.clone()

            return hook

        handles = [self.model.get_submodule(name).register_forward_hook(hook_of(name)) for name in self.layers]
        try:
            yield tapped
        finally:
            for handle in handles:
                handle.remove()

    def _in_order(self, tapped: dict[str, Tensor]) -> list[Tensor]:
        missing = [name for name in self.layers if name not in tapped]
        if missing:
            raise ValueError(f"layers must run in a forward pass, and {missing[0]!r} does not")
        return [tapped[name] for name in self.layers]

    def forward(self, x: Tensor, *, detach: bool = False) -> tuple[Any, Tensor]:
        """Outputs of the model, and the predicted losses.

        Parameters
        ----------
        x : Tensor
            A batch.
        detach : bool, default False
            Let no gradient of the predicted losses into the model.

        Returns
        -------
        outputs : what the model gives
        predicted : Tensor of shape (B,)
        """
        with self._tapped() as tapped:
            outputs = self.model(x)
        parts = []
        for name, channels, part, layer in zip(
            self.layers, self.channels, self._in_order(tapped), self.narrowing, strict=True
        ):
            if part.shape[1] != channels:
                raise ValueError(f"channels must be {part.shape[1]} for layer {name!r}, got {channels}")
            parts.append(torch.relu(layer(part.detach() if detach else part)))
        return outputs, self.joining(torch.cat(parts, 1)).squeeze(1)

    def fit(
        self,
        labeled: Any,
        *,
        epochs: int = 200,
        detach_after: int | None = 120,
        weight: float = 1.0,
        margin: float = 1.0,
        batch_size: int = 128,
        optimizer: Optimizers | None = None,
        milestones: Sequence[int] = (160,),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        generator: torch.Generator | int | None = None,
        progress: bool = False,
    ) -> History:
        """Trains the model and what predicts its loss, together.

        Each step descends the mean loss of the model plus `weight` times :func:`loss_prediction_loss`. Defaults are
        those of the re-implementation for CIFAR that most others follow. Weights should be float32, float64 or
        bfloat16: there is no scaling of gradients, which float16 would need.

        Parameters
        ----------
        labeled : pair of arrays or Dataset
            Inputs and labels, (x, y); or a map-style Dataset that gives such pairs.
        epochs : int, default 200
        detach_after : int, optional
            After so many epochs, 120 by default, predicting the loss shapes the model no more. None: it always does.
        weight : float, default 1
            Of the ranking loss.
        margin : float, default 1
        batch_size : int, default 128
            At least 2. Minibatches of an epoch are all of nearly the same size.
        optimizer : callable, optional
            Makes the optimizer of the parameters that it is given; by default SGD with a rate of 0.1, momentum 0.9 and
            weight decay 5e-4.
        milestones : sequence of int, default (160,)
            After each of these numbers of epochs the learning rate is divided by 10.
        loss : callable, optional
            The losses [B] of outputs and labels, one a row; by default the cross-entropy of logits and classes.
        patience : int, optional
            Training stops after so many epochs in a row without a new lowest mean of the whole loss, and the weights of
            the lowest go back in.
        checkpoint : path, optional
            A file that holds everything, from before the first step on and after each epoch. Where it exists, training
            goes on from it, as in :func:`alkernels.models.fit`.
        generator : torch.Generator or int, optional
            Decides the minibatches and what the model draws. torch's global generators are left as they are.
        progress : bool, default False
            Show a progress bar (tqdm) with the losses.

        Returns
        -------
        History
            Losses ``"loss"`` (the whole), ``"task"`` and ``"ranking"``.

        Raises
        ------
        ValueError
            Less than two rows, a checkpoint of another run (the message says what differs).
        TypeError
            Data or options of another kind.
        RuntimeError
            A loss that is not finite.
        """
        data = Rows(labeled, "labeled", labeled=True)
        if data.count < 2:
            raise ValueError(
                f"labeled must have at least two rows, got {data.count}: there is nothing to train on; "
                "label some rows at random first"
            )
        batch_size = check_count(batch_size, "batch_size")
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, as rows are compared in pairs, got {batch_size}")
        if detach_after is not None and check_integer(detach_after, "detach_after") < 0:
            raise ValueError(f"detach_after must not be negative, got {detach_after}")
        weight = check_not_negative(weight, "weight")
        margin = check_above_zero(margin, "margin")
        milestones = [check_count(m, "milestones") for m in milestones]
        if loss is not None:
            check_callable(loss, "loss")
        made = make_optimizer(optimizer, _default_optimizer, self)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(made, milestones, gamma=0.1)
        seed = seed_of(generator)
        place = place_of(self)
        batches = Batches(data.count, batch_size, derived_seed(seed, "labeled"))

        def losses_of(outputs: Any, labels: Tensor) -> Tensor:
            if loss is None:
                check_classes(labels, check_logits(outputs).shape[1], "labeled")
                return functional.cross_entropy(outputs, labels.to(outputs.device), reduction="none")
            losses = loss(outputs, labels.to(place[0]))
            if not isinstance(losses, Tensor):
                raise TypeError(f"loss must give a tensor, got {type(losses).__name__}")
            if losses.shape != labels.shape[:1]:
                raise ValueError(
                    f"loss must give one number a row, shape ({len(labels)},), got {tuple(losses.shape)}: "
                    'pass reduction="none"'
                )
            return losses

        def step(epoch: int) -> dict[str, Tensor]:
            x, labels = data.gather(batches.next())
            assert labels is not None
            outputs, predicted = self(to_place(x, place), detach=detach_after is not None and epoch >= detach_after)
            losses = losses_of(outputs, labels)
            task = losses.mean()
            # one row alone has no partner
            ranking = loss_prediction_loss(predicted, losses, margin=margin) if len(losses) > 1 else 0 * predicted.sum()
            total = task + weight * ranking
            made.zero_grad()
            total.backward()
            made.step()
            return {"loss": total, "task": task, "ranking": ranking}

        return train(
            step,
            # apart, as the model may be in evaluation mode as a whole
            modules={"model": self.model, "narrowing": self.narrowing, "joining": self.joining},
            states={"optimizer": made, "scheduler": scheduler, "batches": batches},
            configuration={
                "trainer": "LossPrediction",
                "model": type(self.model).__qualname__,
                "layers": list(self.layers),
                "labeled": data.fingerprint(),
                "batch_size": batch_size,
                "detach_after": detach_after,
                "weight": weight,
                "margin": margin,
                "milestones": milestones,
                "optimizer": described_optimizer(made),
                "loss": "cross_entropy" if loss is None else described_function(loss),
                "generator": check_generator(generator),
            },
            epochs=epochs,
            steps=batches.an_epoch,
            seed=seed,
            description="Loss prediction",
            schedulers=[scheduler],
            patience=patience,
            checkpoint=checkpoint,
            progress=progress,
        )

    def predict(self, x: Any, *, batch_size: int = 1024) -> Array:
        """The predicted loss of each row, in evaluation mode; higher = select.

        Only the order of these numbers was trained: they are no losses in nats.

        Parameters
        ----------
        x : Tensor, ndarray, Dataset or DataLoader
            A DataLoader has to give the rows in order, and all of them.
        batch_size : int, default 1024
            How many rows are run at a time; batches of a DataLoader are taken as they come.

        Returns
        -------
        Tensor or ndarray of shape (N,), float64
            An array if `x` is one, otherwise a tensor on the device of `x`, for a Dataset or a DataLoader on the CPU.
        """
        return outputs_of(lambda batch: (self(batch)[1].double(),), x, [self], batch_size)[0]
