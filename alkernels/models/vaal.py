"""Variational adversarial active learning: a VAE, and a discriminator of labelled and unlabelled latents."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from alkernels._inputs import Array, check_count, check_generator, seed_of
from alkernels.models._state import own_randomness
from alkernels.models._training import (
    Batches,
    History,
    Optimizers,
    Rows,
    Stateful,
    described_optimizer,
    make_optimizer,
    outputs_of,
    place_of,
    to_place,
    train,
)
from alkernels.models.posterior import derived_seed
from alkernels.strategies._arguments import check_not_negative, check_one_of

__all__ = [
    "VAAL",
    "VAE",
    "ConvVAE",
    "Discriminator",
    "Encoded",
    "MlpVAE",
    "adversary_loss",
    "discriminator_loss",
    "latent_kl",
    "reconstruction_loss",
    "vae_loss",
]

REDUCTIONS = ("mean", "official")
_WIDEST_CHANNELS = (128, 256, 512, 1024)


class Encoded(NamedTuple):
    """A batch, and what a VAE and a discriminator say of it.

    Attributes
    ----------
    x : Tensor of shape (B, ...)
    reconstruction : Tensor of the same shape
    mean, log_variance : Tensors of shape (B, Z)
        The normal distribution of the latents.
    logits : Tensor of shape (B,)
        The discriminator's, of the means.
    """

    x: Tensor
    reconstruction: Tensor
    mean: Tensor
    log_variance: Tensor
    logits: Tensor


def reconstruction_loss(reconstruction: Tensor, x: Tensor, *, reduction: str = "mean") -> Tensor:
    """Squared error of a VAE's reconstruction.

    Parameters
    ----------
    reconstruction, x : Tensors of shape (B, ...)
    reduction : {"mean", "official"}, default "mean"
        The mean over rows of each row's sum, or, as in the authors' code, the mean over all numbers.

    Returns
    -------
    Tensor of shape ()
    """
    check_one_of(reduction, "reduction", REDUCTIONS)
    _check_alike(reconstruction, x, "reconstruction and x")
    squares = (reconstruction - x).square()
    return squares.mean() if reduction == "official" else squares.flatten(1).sum(1).mean()


def latent_kl(mean: Tensor, log_variance: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""How far normal latents are from the standard normal: ``-1/2 sum(1 + log_variance - mean^2 - variance)``.

    Parameters
    ----------
    mean, log_variance : Tensors of shape (B, Z)
    reduction : {"mean", "official"}, default "mean"
        The mean over rows of each row's sum, or, as in the authors' code, the sum over rows, too. With its
        :func:`reconstruction_loss` that weighs the divergence B times the numbers in a row as much as ``"mean"``.

    Returns
    -------
    Tensor of shape (), nats
    """
    check_one_of(reduction, "reduction", REDUCTIONS)
    _check_alike(mean, log_variance, "mean and log_variance")
    rows = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)
    return rows.sum() if reduction == "official" else rows.mean()


def adversary_loss(logits: Tensor) -> Tensor:
    """What fooling the discriminator costs: the mean cross-entropy with 1, as if all rows were labelled.

    Parameters
    ----------
    logits : Tensor of shape (B,)
    """
    return functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def discriminator_loss(labeled: Tensor, unlabeled: Tensor) -> Tensor:
    """Mean cross-entropy of labelled rows with 1 plus that of unlabelled rows with 0.

    Parameters
    ----------
    labeled, unlabeled : Tensors of shape (B,) and (B',)
        Logits, of latents or features that no gradient goes into.
    """
    zeros = torch.zeros_like(unlabeled)
    return adversary_loss(labeled) + functional.binary_cross_entropy_with_logits(unlabeled, zeros)


def vae_loss(
    labeled: Encoded,
    unlabeled: Encoded,
    *,
    beta: float = 1.0,
    adversary_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """What VAAL's VAE descends: for labelled and unlabelled rows alike, the negative ELBO and the adversary's loss.

    Parameters
    ----------
    labeled, unlabeled : Encoded
    beta : float, default 1
        Weight of the divergence.
    adversary_weight : float, default 1
        Weight of :func:`adversary_loss`: both kinds of rows are to look labelled.
    reduction : {"mean", "official"}, default "mean"
        See :func:`reconstruction_loss` and :func:`latent_kl`.

    Returns
    -------
    Tensor of shape ()

    References
    ----------
    .. [1] S. Sinha, S. Ebrahimi, T. Darrell. Variational adversarial active learning. ICCV 2019.
    """
    return sum(
        (
            reconstruction_loss(part.reconstruction, part.x, reduction=reduction)
            + beta * latent_kl(part.mean, part.log_variance, reduction=reduction)
            + adversary_weight * adversary_loss(part.logits)
            for part in (labeled, unlabeled)
        ),
        start=torch.zeros((), device=labeled.x.device),
    )


def _check_alike(first: Tensor, second: Tensor, names: str) -> None:
    if first.shape != second.shape or first.dim() < 2:
        raise ValueError(
            f"{names} must be of the same shape (B, ...), got {tuple(first.shape)} and {tuple(second.shape)}"
        )


class VAE(nn.Module):
    """A variational autoencoder with normal latents: what :class:`MlpVAE` and :class:`ConvVAE` share.

    Another network is made one by its encoder, which gives means and logarithms of variances side by side, [B, 2 Z],
    and its decoder, which takes latents [B, Z].

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    latent : int
        How many latents there are, Z.
    encoder, decoder : Module
    """

    def __init__(self, shape: Sequence[int], latent: int, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.latent = latent
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents, each of shape (B, Z)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be of shape {_shape_of_batches(self.shape)}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be of floating numbers, got {x.dtype}; images of bytes as x.float() / 255")
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Rows of latents (B, Z)."""
        return self.decoder(latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction of drawn latents, mean and logarithm of the variance."""
        mean, log_variance = self.encode(x)
        return self.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp()), mean, log_variance


def _shape_of_batches(shape: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, shape))})"


class MlpVAE(VAE):
    """A VAE of vectors, with two hidden layers either way.

    Parameters
    ----------
    width : int
        Numbers in a row.
    latent : int, default 32
    hidden : int, default 512
    generator : torch.Generator or int, optional
        Decides the first weights.
    """

    def __init__(
        self,
        width: int,
        *,
        latent: int = 32,
        hidden: int = 512,
        generator: torch.Generator | int | None = None,
    ) -> None:
        width, latent, hidden = (
            check_count(v, n) for v, n in ((width, "width"), (latent, "latent"), (hidden, "hidden"))
        )
        with own_randomness(derived_seed(seed_of(generator), "MlpVAE", "weights")):
            encoder, decoder = (
                nn.Sequential(
                    nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, after)
                )
                for before, after in ((width, 2 * latent), (latent, width))
            )
        super().__init__((width,), latent, encoder, decoder)


class ConvVAE(VAE):
    """A VAE of images: strided convolutions, each halving height and width, and as many transposed ones.

    Parameters
    ----------
    shape : tuple of three int
        Of an image, (C, H, W).
    latent : int, default 32
    channels : sequence of int, optional
        Of the convolutions; H and W must be divisible by 2 to the power of their number. By default the first of 128,
        256, 512 and 1024, as many as leave at least 2 x 2.
    generator : torch.Generator or int, optional
        Decides the first weights.

    Raises
    ------
    ValueError
        Images whose sides are not divisible; pad them, or give fewer `channels`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latent: int = 32,
        channels: Sequence[int] | None = None,
        generator: torch.Generator | int | None = None,
    ) -> None:
        if len(shape) != 3:
            raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
        colors, height, width = (check_count(v, "shape") for v in shape)
        latent = check_count(latent, "latent")
        if channels is None:
            halvings = 1
            while (
                halvings < len(_WIDEST_CHANNELS)
                and height % 2 ** (halvings + 1) == width % 2 ** (halvings + 1) == 0
                and min(height, width) >= 2 ** (halvings + 2)
            ):
                halvings += 1
            channels = _WIDEST_CHANNELS[:halvings]
        widths = [check_count(c, "channels") for c in channels]
        if not widths:
            raise ValueError("channels must have at least one number, got none")
        part = 2 ** len(widths)
        if height % part or width % part:
            raise ValueError(
                f"shape must have H and W divisible by {part}, for {len(widths)} convolutions that halve them, "
                f"got {height} x {width}; pad the images, or give fewer channels"
            )
        inner = (widths[-1], height // part, width // part)
        with own_randomness(derived_seed(seed_of(generator), "ConvVAE", "weights")):
            down: list[nn.Module] = []
            for before, after in zip([colors, *widths], widths, strict=False):
                down += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            up: list[nn.Module] = [nn.Linear(latent, math.prod(inner)), nn.Unflatten(1, inner)]
            for before, after in zip(widths[::-1], widths[-2::-1], strict=False):
                up += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            up += [nn.ConvTranspose2d(widths[0], colors, 4, 2, 1)]
            encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(inner), 2 * latent))
        super().__init__((colors, height, width), latent, encoder, nn.Sequential(*up))


class Discriminator(nn.Module):
    """Tells labelled from unlabelled rows: two hidden layers, and one logit.

    Parameters
    ----------
    width : int
        Of what it looks at: latents in VAAL, features in MAL.
    hidden : int, default 512
    generator : torch.Generator or int, optional
        Decides the first weights.
    """

    def __init__(self, width: int, *, hidden: int = 512, generator: torch.Generator | int | None = None) -> None:
        super().__init__()
        self.width, hidden = check_count(width, "width"), check_count(hidden, "hidden")
        with own_randomness(derived_seed(seed_of(generator), "Discriminator", "weights")):
            self.layers = nn.Sequential(
                nn.Linear(self.width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
            )

    def forward(self, latents: Tensor) -> Tensor:
        """Logits [B] of being labelled."""
        return self.layers(latents).squeeze(1)


def logits_of(discriminator: nn.Module, inputs: Tensor) -> Tensor:
    """A discriminator's logits, one a row: others would spread over a matrix in silence."""
    logits = discriminator(inputs)
    if not isinstance(logits, Tensor) or logits.shape != inputs.shape[:1]:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"discriminator must give one logit a row, shape ({len(inputs)},), got {got}")
    return logits


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-4)


class VAAL(nn.Module):
    """A VAE that makes labelled and unlabelled rows look alike in its latents, and a discriminator that is not fooled.

    The rows that the discriminator is surest are unlabelled are selected; the task's model has no part in it. Make a
    new object each round: a discriminator of the last round knows rows as unlabelled that are labelled by now.

    Parameters
    ----------
    vae : VAE
        :class:`MlpVAE`, :class:`ConvVAE` or one alike. :meth:`for_data` makes one that fits.
    discriminator : Module, optional
        Gives logits [B] for the VAE's latents [B, Z]; by default a new :class:`Discriminator`.
    beta : float, default 1
        Weight of the divergence.
    adversary_weight : float, default 1
    reduction : {"mean", "official"}, default "mean"
        See :func:`reconstruction_loss` and :func:`latent_kl`.
    generator : torch.Generator or int, optional
        Decides the first weights of a new discriminator.

    References
    ----------
    .. [1] S. Sinha, S. Ebrahimi, T. Darrell. Variational adversarial active learning. ICCV 2019.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.vaal import VAAL
    >>> labeled, unlabeled = torch.zeros(20, 4), torch.linspace(0, 1, 160).view(40, 4)
    >>> vaal = VAAL.for_data(unlabeled, latent=2, hidden=16, generator=0)
    >>> history = vaal.fit(labeled, unlabeled, epochs=3, batch_size=10, generator=0)
    >>> vaal.predict(unlabeled).shape
    torch.Size([40])
    """

    def __init__(
        self,
        vae: VAE,
        discriminator: nn.Module | None = None,
        *,
        beta: float = 1.0,
        adversary_weight: float = 1.0,
        reduction: str = "mean",
        generator: torch.Generator | int | None = None,
    ) -> None:
        super().__init__()
        self.beta = check_not_negative(beta, "beta")
        self.adversary_weight = check_not_negative(adversary_weight, "adversary_weight")
        self.reduction = check_one_of(reduction, "reduction", REDUCTIONS)
        self.vae = vae
        if discriminator is None:
            discriminator = Discriminator(vae.latent, generator=generator).to(*place_of(vae))
        self.discriminator = discriminator

    @classmethod
    def for_data(
        cls,
        x: Any,
        *,
        latent: int = 32,
        hidden: int | None = None,
        channels: Sequence[int] | None = None,
        beta: float = 1.0,
        adversary_weight: float = 1.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        generator: torch.Generator | int | None = None,
    ) -> VAAL:
        """With a VAE that fits some rows: :class:`MlpVAE` for [N, D], :class:`ConvVAE` for [N, C, H, W].

        Parameters
        ----------
        x : Tensor, ndarray or Dataset
            Only its shape is looked at.
        latent : int, default 32
        hidden : int, optional
            Of :class:`MlpVAE`, 512 by default.
        channels : sequence of int, optional
            Of :class:`ConvVAE`.
        beta, adversary_weight, reduction, generator
            As for :class:`VAAL`.
        device : torch.device or str, optional
            Where the networks go; by default the CPU.
        """
        shape = Rows(x, "x", labeled=False).row_shape
        seed = seed_of(generator)
        vae: VAE
        if len(shape) == 1 and channels is None:
            vae = MlpVAE(
                shape[0], latent=latent, hidden=512 if hidden is None else hidden, generator=derived_seed(seed, "vae")
            )
        elif len(shape) == 3 and hidden is None:
            vae = ConvVAE(shape, latent=latent, channels=channels, generator=derived_seed(seed, "vae"))
        else:
            raise ValueError(
                "x must be of shape [N, D], with hidden, or [N, C, H, W], with channels, got [N, "
                f"{', '.join(map(str, shape))}], hidden={hidden} and channels={channels}"
            )
        made = cls(
            vae,
            beta=beta,
            adversary_weight=adversary_weight,
            reduction=reduction,
            generator=derived_seed(seed, "discriminator"),
        )
        return made if device is None else made.to(device)

    def encoded(self, x: Tensor) -> Encoded:
        """What both networks say of a batch, with latents drawn."""
        reconstruction, mean, log_variance = self.vae(x)
        return Encoded(x, reconstruction, mean, log_variance, logits_of(self.discriminator, mean))

    def fit(
        self,
        labeled: Any,
        unlabeled: Any,
        *,
        epochs: int = 100,
        steps_per_epoch: int | None = None,
        vae_steps: int = 2,
        batch_size: int = 128,
        optimizer: Optimizers | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        generator: torch.Generator | int | None = None,
        progress: bool = False,
    ) -> History:
        """Trains both networks, in turns.

        A step is `vae_steps` updates of the VAE, each with new minibatches, and one of the discriminator, with the last
        of them, as in the authors' code.

        Parameters
        ----------
        labeled, unlabeled : Tensor, ndarray or Dataset
            Inputs without labels; of a Dataset's pairs the first is taken.
        epochs : int, default 100
        steps_per_epoch : int, optional
            By default as many as there are minibatches in labelled and unlabelled rows together, as in the authors'
            code.
        vae_steps : int, default 2
        batch_size : int, default 128
            Of labelled rows, and of unlabelled ones. Minibatches of one walk over the rows are all of nearly the same
            size.
        optimizer : callable, optional
            Makes the optimizer of the parameters that it is given, once for each network; by default Adam with a rate
            of 5e-4.
        patience : int, optional
            Training stops after so many epochs in a row without a new lowest mean of the VAE's loss in training, and
            the weights of the lowest go back in.
        checkpoint : path, optional
            A file that holds everything, from before the first step on and after each epoch. Where it exists, training
            goes on from it, as in :func:`alkernels.models.fit`.
        generator : torch.Generator or int, optional
            Decides the minibatches and the latents drawn. torch's global generators are left as they are.
        progress : bool, default False
            Show a progress bar (tqdm) with the losses.

        Returns
        -------
        History
            Losses ``"loss"`` (the VAE's), of it ``"reconstruction"``, ``"kl"`` and ``"adversary"`` without weights, and
            ``"discriminator"``.

        Raises
        ------
        ValueError
            No labelled or no unlabelled rows, rows of another shape, a checkpoint of another run (the message says what
            differs).
        TypeError
            Data or options of another kind.
        RuntimeError
            A loss that is not finite.
        """
        known, unknown = two_sets(labeled, unlabeled)
        batch_size = check_count(batch_size, "batch_size")
        vae_steps = check_count(vae_steps, "vae_steps")
        steps = steps_of(steps_per_epoch, known.count + unknown.count, batch_size)
        of_vae = make_optimizer(optimizer, adam, self.vae)
        of_discriminator = make_optimizer(optimizer, adam, self.discriminator)
        seed = seed_of(generator)
        place = place_of(self)
        streams = {
            rows.name: Batches(rows.count, batch_size, derived_seed(seed, rows.name)) for rows in (known, unknown)
        }

        def next_of(rows: Rows) -> Tensor:
            return to_place(rows.gather(streams[rows.name].next())[0], place)

        def step(epoch: int) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            for _ in range(vae_steps):
                pair = [self.encoded(next_of(rows)) for rows in (known, unknown)]
                total = vae_loss(
                    *pair, beta=self.beta, adversary_weight=self.adversary_weight, reduction=self.reduction
                )
                of_vae.zero_grad()
                total.backward()
                of_vae.step()
                parts = {"loss": total.detach()}
                with torch.no_grad():
                    for part in pair:
                        for name, value in (
                            (
                                "reconstruction",
                                reconstruction_loss(part.reconstruction, part.x, reduction=self.reduction),
                            ),
                            ("kl", latent_kl(part.mean, part.log_variance, reduction=self.reduction)),
                            ("adversary", adversary_loss(part.logits)),
                        ):
                            parts[name] = parts.get(name, 0) + value
                sums = {name: sums.get(name, 0) + value / vae_steps for name, value in parts.items()}
            with torch.no_grad():
                means = [self.vae.encode(part.x)[0] for part in pair]
            told = discriminator_loss(*(logits_of(self.discriminator, mean) for mean in means))
            of_discriminator.zero_grad()
            told.backward()
            of_discriminator.step()
            return sums | {"discriminator": told}

        states: dict[str, Stateful] = {
            "optimizer of the VAE": of_vae,
            "optimizer of the discriminator": of_discriminator,
        }
        return train(
            step,
            modules={"vae": self.vae, "discriminator": self.discriminator},
            states=states | streams,
            configuration={
                "trainer": "VAAL",
                "model": f"{type(self.vae).__qualname__} {self.vae.shape}",
                "labeled": known.fingerprint(),
                "unlabeled": unknown.fingerprint(),
                "batch_size": batch_size,
                "vae_steps": vae_steps,
                "beta": self.beta,
                "adversary_weight": self.adversary_weight,
                "reduction": self.reduction,
                "optimizer": described_optimizer(of_vae),
                "generator": check_generator(generator),
            },
            epochs=epochs,
            steps=steps,
            seed=seed,
            description="VAAL",
            patience=patience,
            checkpoint=checkpoint,
            progress=progress,
        )

    def predict(self, x: Any, *, batch_size: int = 1024) -> Array:
        """The discriminator's probability that each row is a labelled one, in evaluation mode; lower = select.

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

        def score(batch: Tensor) -> tuple[Tensor]:
            return (logits_of(self.discriminator, self.vae.encode(batch)[0]).double().sigmoid(),)

        return outputs_of(score, x, [self], batch_size)[0]


def two_sets(labeled: Any, unlabeled: Any, *, labels: bool = False) -> tuple[Rows, Rows]:
    """Labelled and unlabelled rows that can be told from each other: some of each, of one shape."""
    known = Rows(labeled, "labeled", labeled=labels)
    unknown = Rows(unlabeled, "unlabeled", labeled=False)
    known.check_some("there is nothing to train on; label some rows at random first")
    unknown.check_some("there is nothing to tell labelled rows from")
    if known.row_shape != unknown.row_shape:
        raise ValueError(
            f"labeled and unlabeled must have rows of one shape, got {known.row_shape} and {unknown.row_shape}"
        )
    return known, unknown


def steps_of(steps_per_epoch: int | None, rows: int, batch_size: int) -> int:
    return -(-rows // batch_size) if steps_per_epoch is None else check_count(steps_per_epoch, "steps_per_epoch")
