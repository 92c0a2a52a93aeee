"""Minimax active learning: features that lower the entropy of predictions, a classifier that raises it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alkernels._inputs import Array, check_count, check_generator, seed_of
from alkernels.models._state import own_randomness
from alkernels.models._training import (
    Batches,
    History,
    Optimizers,
    Stateful,
    described_optimizer,
    make_optimizer,
    outputs_of,
    place_of,
    to_place,
    train,
)
from alkernels.models.fitting import check_classes
from alkernels.models.posterior import derived_seed
from alkernels.models.vaal import Discriminator, adam, adversary_loss, discriminator_loss, logits_of, steps_of, two_sets
from alkernels.strategies._arguments import check_above_zero, check_not_negative

__all__ = ["MAL", "CosineClassifier", "GradientReversal", "mean_entropy", "minimax_entropy_loss", "reverse_gradient"]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float = 1.0) -> Tensor:
    """The same numbers, whose gradient comes back times ``-weight``."""
    return _Reversal.apply(x, weight)


class GradientReversal(nn.Module):
    """:func:`reverse_gradient` as a layer.

    Parameters
    ----------
    weight : float, default 1

    References
    ----------
    .. [1] Y. Ganin, V. Lempitsky. Unsupervised domain adaptation by backpropagation. ICML 2015.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.mal import GradientReversal
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (3 * GradientReversal(0.5)(x)).sum().backward()
    >>> x.grad
    tensor([-1.5000, -1.5000])
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_not_negative(weight, "weight")

    def forward(self, x: Tensor) -> Tensor:
        return reverse_gradient(x, self.weight)


class CosineClassifier(nn.Module):
    """Logits ``W f / (|f| T)`` of features that are scaled to length one; the classes' weights W are not.

    Parameters
    ----------
    width : int
        Of the features.
    classes : int
    temperature : float, default 0.05
    generator : torch.Generator or int, optional
        Decides the first weights.

    References
    ----------
    .. [1] K. Saito, D. Kim, S. Sclaroff, T. Darrell, K. Saenko. Semi-supervised domain adaptation via minimax entropy.
       ICCV 2019.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        temperature: float = 0.05,
        generator: torch.Generator | int | None = None,
    ) -> None:
        super().__init__()
        self.temperature = check_above_zero(temperature, "temperature")
        width, classes = check_count(width, "width"), check_count(classes, "classes")
        with own_randomness(derived_seed(seed_of(generator), "CosineClassifier", "weights")):
            self.weights = nn.Linear(width, classes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D] of any length."""
        return self.weights(functional.normalize(features)) / self.temperature


def mean_entropy(logits: Tensor) -> Tensor:
    """The mean entropy of predictions, in nats.

    Parameters
    ----------
    logits : Tensor of shape (B, C)

    Returns
    -------
    Tensor of shape ()
    """
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


def minimax_entropy_loss(features: Tensor, classifier: nn.Module, *, weight: float = 0.1) -> Tensor:
    """A loss whose descent lowers the entropy of predictions in what made the features, and raises it in `classifier`.

    It is ``-weight`` times :func:`mean_entropy`, with the features' gradient reversed.

    Parameters
    ----------
    features : Tensor of shape (B, D)
        Of unlabelled rows.
    classifier : Module
        Gives logits.
    weight : float, default 0.1

    Returns
    -------
    Tensor of shape ()
    """
    return -weight * mean_entropy(classifier(reverse_gradient(features)))


class MAL(nn.Module):
    """A features network and a classifier that play for the entropy of unlabelled rows, beside a discriminator.

    On labelled rows both descend the cross-entropy. On unlabelled ones the features network descends the entropy of
    predictions, and the classifier ascends it, in one backward pass through a gradient reversal. The discriminator
    learns to tell labelled from unlabelled features, scaled to length one, that no gradient goes into.

    The features network is not made to fool the discriminator by default: the game for the entropy brings the two kinds
    of rows together already, and a discriminator that is fooled has nothing to say. `adversary_weight` adds it as VAAL
    has it.

    Make a new object each round, unless training is to go on from the weights of the last.

    Parameters
    ----------
    features : Module
        Gives features [B, D].
    width : int
        Their width, D.
    classes : int
    temperature : float, default 0.05
        Of the classifier.
    entropy_weight : float, default 0.1
    adversary_weight : float, default 0
        Weight of the mean cross-entropy of labelled plus that of unlabelled features with "labelled", for the features
        network.
    generator : torch.Generator or int, optional
        Decides the first weights of classifier and discriminator.

    References
    ----------
    .. [1] S. Ebrahimi, W. Gan, D. Chen, G. Biamby, K. Salahi, M. Laielli, S. Zhu, T. Darrell. Minimax active learning.
       arXiv:2012.10467, 2020.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.mal import MAL
    >>> x = torch.linspace(-1, 1, 40).view(20, 2)
    >>> mal = MAL(torch.nn.Linear(2, 4), 4, 2, generator=0)
    >>> history = mal.fit((x[::5], [0, 0, 1, 1]), x, epochs=3, generator=0)
    >>> discriminator, probs = mal.predict(x)
    >>> discriminator.shape, probs.shape
    (torch.Size([20]), torch.Size([20, 2]))
    """

    def __init__(
        self,
        features: nn.Module,
        width: int,
        classes: int,
        *,
        temperature: float = 0.05,
        entropy_weight: float = 0.1,
        adversary_weight: float = 0.0,
        generator: torch.Generator | int | None = None,
    ) -> None:
        super().__init__()
        self.width, self.classes = check_count(width, "width"), check_count(classes, "classes")
        self.entropy_weight = check_not_negative(entropy_weight, "entropy_weight")
        self.adversary_weight = check_not_negative(adversary_weight, "adversary_weight")
        seed = seed_of(generator)
        place = place_of(features)
        self.features = features
        self.classifier = CosineClassifier(
            self.width, self.classes, temperature=temperature, generator=derived_seed(seed, "classifier")
        ).to(*place)
        self.discriminator = Discriminator(self.width, generator=derived_seed(seed, "discriminator")).to(*place)

    def _features(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != self.width:
            got = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise ValueError(f"features must give a tensor [B, {self.width}] (width), got {got}")
        return features

    def _told(self, features: Tensor) -> Tensor:
        return logits_of(self.discriminator, functional.normalize(features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] of the classes, and logits [B] of being labelled."""
        features = self._features(x)
        return self.classifier(features), self._told(features)

    def fit(
        self,
        labeled: Any,
        unlabeled: Any,
        *,
        epochs: int = 100,
        steps_per_epoch: int | None = None,
        batch_size: int = 128,
        optimizer: Optimizers | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        generator: torch.Generator | int | None = None,
        progress: bool = False,
    ) -> History:
        """Trains all three networks.

        A step is one update of features network and classifier, and one of the discriminator with the same minibatches.

        Parameters
        ----------
        labeled : pair of arrays or Dataset
            Inputs and labels, (x, y); or a map-style Dataset that gives such pairs.
        unlabeled : Tensor, ndarray or Dataset
            Inputs without labels; of a Dataset's pairs the first is taken.
        epochs : int, default 100
        steps_per_epoch : int, optional
            By default as many as there are minibatches in labelled and unlabelled rows together.
        batch_size : int, default 128
            Of labelled rows, and of unlabelled ones. Minibatches of one walk over the rows are all of nearly the same
            size.
        optimizer : callable, optional
            Makes the optimizer of the parameters that it is given, once for features network and classifier and once
            for the discriminator; by default Adam with a rate of 5e-4.
        patience : int, optional
            Training stops after so many epochs in a row without a new lowest mean of the cross-entropy in training, and
            the weights of the lowest go back in.
        checkpoint : path, optional
            A file that holds everything, from before the first step on and after each epoch. Where it exists, training
            goes on from it, as in :func:`alkernels.models.fit`.
        generator : torch.Generator or int, optional
            Decides the minibatches and what the features network draws. torch's global generators are left as they are.
        progress : bool, default False
            Show a progress bar (tqdm) with the losses.

        Returns
        -------
        History
            Losses ``"loss"`` (the cross-entropy of labelled rows), ``"entropy"`` (of unlabelled ones),
            ``"discriminator"`` and, with an `adversary_weight`, ``"adversary"``.

        Raises
        ------
        ValueError
            No labelled or no unlabelled rows, labels that are no classes, a checkpoint of another run (the message says
            what differs).
        TypeError
            Data or options of another kind.
        RuntimeError
            A loss that is not finite.
        """
        known, unknown = two_sets(labeled, unlabeled, labels=True)
        batch_size = check_count(batch_size, "batch_size")
        steps = steps_of(steps_per_epoch, known.count + unknown.count, batch_size)
        of_players = make_optimizer(optimizer, adam, self.features, self.classifier)
        of_discriminator = make_optimizer(optimizer, adam, self.discriminator)
        seed = seed_of(generator)
        place = place_of(self)
        streams = {
            rows.name: Batches(rows.count, batch_size, derived_seed(seed, rows.name)) for rows in (known, unknown)
        }

        def step(epoch: int) -> dict[str, Tensor]:
            x, labels = known.gather(streams[known.name].next())
            check_classes(labels, self.classes, known.name)
            assert labels is not None
            of_known = self._features(to_place(x, place))
            of_unknown = self._features(to_place(unknown.gather(streams[unknown.name].next())[0], place))
            cross_entropy = functional.cross_entropy(self.classifier(of_known), labels.to(place[0]))
            game = minimax_entropy_loss(of_unknown, self.classifier, weight=self.entropy_weight)
            losses = {"loss": cross_entropy}
            total = cross_entropy + game
            if self.adversary_weight:
                losses["adversary"] = sum(
                    (adversary_loss(self._told(f)) for f in (of_known, of_unknown)),
                    start=torch.zeros((), device=place[0]),
                )
                total = total + self.adversary_weight * losses["adversary"]
            with torch.no_grad():
                losses["entropy"] = mean_entropy(self.classifier(of_unknown))
            of_players.zero_grad()
            total.backward()
            of_players.step()
            losses["discriminator"] = discriminator_loss(*(self._told(f.detach()) for f in (of_known, of_unknown)))
            of_discriminator.zero_grad()
            losses["discriminator"].backward()
            of_discriminator.step()
            return losses

        states: dict[str, Stateful] = {"optimizer": of_players, "optimizer of the discriminator": of_discriminator}
        return train(
            step,
            modules={"features": self.features, "classifier": self.classifier, "discriminator": self.discriminator},
            states=states | streams,
            configuration={
                "trainer": "MAL",
                "model": type(self.features).__qualname__,
                "labeled": known.fingerprint(),
                "unlabeled": unknown.fingerprint(),
                "batch_size": batch_size,
                "temperature": self.classifier.temperature,
                "entropy_weight": self.entropy_weight,
                "adversary_weight": self.adversary_weight,
                "optimizer": described_optimizer(of_players),
                "generator": check_generator(generator),
            },
            epochs=epochs,
            steps=steps,
            seed=seed,
            description="MAL",
            patience=patience,
            checkpoint=checkpoint,
            progress=progress,
        )

    def predict(self, x: Any, *, batch_size: int = 1024) -> tuple[Array, Array]:
        """What the strategy ``mal`` takes, in evaluation mode.

        Parameters
        ----------
        x : Tensor, ndarray, Dataset or DataLoader
            A DataLoader has to give the rows in order, and all of them.
        batch_size : int, default 1024
            How many rows are run at a time; batches of a DataLoader are taken as they come.

        Returns
        -------
        discriminator : Tensor or ndarray of shape (N,), float64
            The probability that a row is a labelled one.
        probs : Tensor or ndarray of shape (N, C)
            Predictions of the classifier, at least in float32.
        """

        def both(batch: Tensor) -> tuple[Tensor, Tensor]:
            logits, of_discriminator = self(batch)
            wide = torch.promote_types(logits.dtype, torch.float32)
            return of_discriminator.double().sigmoid(), logits.to(wide).softmax(1)

        discriminator, probs = outputs_of(both, x, [self], batch_size)
        return discriminator, probs
