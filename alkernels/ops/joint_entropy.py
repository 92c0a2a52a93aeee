"""Joint entropy of labels under posterior draws: the kernel behind BatchBALD and EPIG."""

from __future__ import annotations

import math

import torch

from alkernels._inputs import (
    Array,
    bytes_a_call,
    check_generator,
    check_integer,
    not_compiled,
    operations_a_call,
    seed_of,
)
from alkernels._probabilities import Probabilities
from alkernels._streaming import explain_memory
from alkernels.ops.selection import detached, library

MAX_CONFIGURATIONS = 40_000
NUM_SAMPLES = 40_000
# Configurations less probable than this are left out: all together they are below the rounding of an entropy.
_NEGLIGIBLE = 1e-24
# So many configurations are looked at at a time.
_ENTRIES = 1 << 18


def joint_entropy(
    probs: Array,
    chosen: Array | None = None,
    *,
    log_input: bool = False,
    max_configurations: int = MAX_CONFIGURATIONS,
    num_samples: int = NUM_SAMPLES,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
) -> Array:
    """Entropy of each row's label together with the labels of some chosen points.

    ``H(y_1, ..., y_t, y_n)`` under ``p(y_1, ..., y_n) = (1/K) Σ_k Π_i p_k(y_i)``: labels are independent given the
    draw, as BatchBALD has it.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities under K posterior draws. Draw k must be the same weights (dropout masks) for every row.
        float16, bfloat16, float32 or float64, any strides, or a ``numpy.memmap``.
    chosen : like `probs`, shape (t, K, C), optional
        The points whose labels are joined, under the same draws. Default: none, which gives ``H(y_n)``.
    log_input : bool, default False
        `probs` and `chosen` hold natural logarithms of probabilities.
    max_configurations : int, default 40000
        The chosen points' label configurations are enumerated while at most so many have a probability above zero
        (``C ** t``, or fewer), which is exact. Beyond it, configurations are sampled.
    num_samples : int, default 40000
        How many are sampled then: ``max(1, num_samples // K)`` from each draw.
    generator : torch.Generator or int, optional
        Draws the samples. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with: copied to it once where they take up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where arrays are.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Entropies in nats.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN, shapes that disagree, an option out
        of range.
    TypeError
        An array that is not floating-point, an argument of the wrong type.

    Notes
    -----
    Computed as ``H(y_1, ..., y_t) + H(y_n | y_1, ..., y_t)``, the first term from the configurations' probabilities,
    the second as an average over them: sampled configurations leave much less noise in that than in the joint entropy
    as a whole, and long products of probabilities never appear. Products are float32 (float64 for float64 input), sums
    and configurations float64: errors stay below ``2e-6 (1 + H)`` nats for float32. Two passes over `probs`, the first
    of which checks it. What the rows of `chosen` lack of 1 by rounding is taken out; those of `probs` stand as they
    are. Memory beyond it: 50 MB and 32 bytes for each configuration and draw. Not differentiable.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> coin = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # each draw is sure, and they disagree
    >>> alk.joint_entropy(coin, coin)  # log 2: the second label says nothing new
    tensor([0.6931], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device)
        return torch.ops.alkernels.joint_entropy(
            *detached(probs, chosen),
            log_input=log_input,
            max_configurations=max_configurations,
            num_samples=num_samples,
            seed=compiled_seed(generator),
        )
    check_generator(generator)
    candidates = check_draws(probs, "probs", log_input, device=device)
    candidates.check()
    configurations = Configurations(
        candidates,
        check_positive(max_configurations, "max_configurations"),
        check_positive(num_samples, "num_samples"),
        generator,
    )
    if chosen is not None:
        points = check_draws(chosen, "chosen", log_input, like=candidates, device=device)
        points.check()
        for _, _, tile in points.tiles(torch.float64):
            for point in tile:
                configurations.add(point)
    with explain_memory(
        candidates.pool, f"{len(configurations.mass)} label configurations", fewer="max_configurations"
    ):
        entropies = [
            configurations.conditional_entropy(tile, wide=candidates.dtype == torch.float64)
            for _, _, tile in candidates.tiles()
        ]
    return candidates.pool.out(torch.cat([*entropies, configurations.mass.new_empty(0)]) + configurations.entropy)


class Configurations:
    """Label configurations of the chosen points: the posterior over draws given each, and how probable each is.

    Parameters
    ----------
    probs : Probabilities
        What the configurations are for: draws, classes, device.
    max_configurations, num_samples : int
    generator : torch.Generator, int or None
        Asked for a seed once samples are needed.

    Attributes
    ----------
    weights : Tensor of shape (m, K), float64
        Row m is the posterior over draws given configuration m; it sums to 1.
    mass : Tensor of shape (m,), float64
        The configurations' probabilities, 1/m each where they are sampled.
    entropy : float
        The joint entropy of the chosen points' labels, in nats.
    sampled : bool
        Whether configurations are sampled; once they are, they stay so.
    """

    def __init__(
        self,
        probs: Probabilities,
        max_configurations: int,
        num_samples: int,
        generator: torch.Generator | int | None,
    ) -> None:
        self.draws = int(probs.shape[1])
        self.weights = torch.full((1, self.draws), 1 / self.draws, dtype=torch.float64, device=probs.device)
        self.mass = torch.ones(1, dtype=torch.float64, device=probs.device)
        self.entropy = 0.0
        self.sampled = False
        self.max_configurations, self.samples = max_configurations, max(1, num_samples // self.draws)
        self._generator = generator
        self._points: list[torch.Tensor] = []
        self._log_joint: torch.Tensor | None = None  # log of the product of the chosen points' probabilities, [m, K]
        self._uniform = torch.Generator()

    def add(self, point: torch.Tensor) -> None:
        """Adds a chosen point, [K, C] float64 probabilities.

        What their sums lack of 1 by rounding would grow with the picks, and show in gains: it is taken out.
        """
        point = point / point.sum(1, keepdim=True)
        if not self.sampled:
            self._points.append(point)
            if self._enumerate(point):
                return
            self.sampled = True
            self._uniform.manual_seed(seed_of(self._generator))
            count = self.draws * self.samples
            self._log_joint = torch.zeros(count, self.draws, dtype=torch.float64, device=point.device)
            self.mass = self.mass.new_full((count,), 1 / count)
            for earlier in self._points:
                self._extend(earlier)
            self._points.clear()
        else:
            self._extend(point)
        assert self._log_joint is not None
        self.weights = torch.softmax(self._log_joint, 1)
        self.entropy = float(math.log(self.draws) - self._log_joint.logsumexp(1).mean())

    def _enumerate(self, point: torch.Tensor) -> bool:
        """Splits each configuration by the point's label; False, and nothing done, where they become too many."""
        rows, labels, mass, count = [], [], [], 0
        size = max(1, bytes_a_call(point.device, _ENTRIES) // point.shape[1])
        for first in range(0, len(self.mass), size):
            joint = self.mass[first : first + size, None] * (self.weights[first : first + size] @ point)
            row, label = (joint > _NEGLIGIBLE).nonzero(as_tuple=True)
            count += len(row)
            if count > self.max_configurations:
                return False
            rows.append(row + first)
            labels.append(label)
            mass.append(joint[row, label])
        self.mass = torch.cat(mass)
        self.mass /= self.mass.sum()
        self.weights = self.weights[torch.cat(rows)]
        self.weights *= point.t()[torch.cat(labels)]
        self.weights /= self.weights.sum(1, keepdim=True)
        self.entropy = float(-(self.mass * self.mass.log()).sum())
        return True

    def _extend(self, point: torch.Tensor) -> None:
        """Draws the point's label in each configuration, from the posterior draw that made the configuration."""
        assert self._log_joint is not None
        sums = point.cpu().cumsum(1).to(point.device)  # the same bits on every device
        total = sums[:, -1:]
        uniform = torch.rand(self.draws, self.samples, dtype=torch.float64, generator=self._uniform).to(point.device)
        below = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
        label = torch.searchsorted(sums, below, right=True)  # never one of probability zero
        self._log_joint += point.log().t()[label.flatten()]

    def conditional_entropy(self, probs: torch.Tensor, *, wide: bool) -> torch.Tensor:
        """``H(y_n | y_chosen)`` for rows [n, K, C]."""
        return conditional_entropy(probs, self.weights, self.mass, wide=wide)


def conditional_entropy(probs: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor, *, wide: bool) -> torch.Tensor:
    """``-Σ_m mass[m] Σ_c q log q`` with ``q = weights[m] · probs[n, :, c]``, in calls that Ctrl-C can come between."""
    operations = 2.0 * weights.numel() * probs.shape[2]
    size = max(1, int(operations_a_call(probs.device) / operations))
    parts = [torch.ops.alkernels.conditional_entropy(part, weights, mass, wide) for part in probs.split(size)]
    return torch.cat(parts) if parts else mass.new_empty(0)


def check_draws(
    array: Array | Probabilities,
    name: str,
    log_input: bool,
    like: Probabilities | None = None,
    *,
    device: torch.device | str | None = None,
) -> Probabilities:
    """Probabilities [N, K, C], not yet walked; of the shape and on the device of others. Made already: as they are."""
    probs = array if isinstance(array, Probabilities) else Probabilities(array, name, 3, log_input, device=device)
    if like is not None:
        if probs.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"{name} must have as many draws and classes as {like.name}, got {tuple(probs.shape[1:])} and "
                f"{tuple(like.shape[1:])}"
            )
        if probs.device != like.device:
            raise ValueError(f"{name} must be on the device of {like.name} ({like.device}), got {probs.device}")
    return probs


def check_positive(value: int, name: str) -> int:
    value = check_integer(value, name)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def compiled_seed(generator: torch.Generator | int | None) -> int:
    """The seed of an op call that torch.compile traces."""
    if not isinstance(generator, int):
        raise ValueError("generator must be an integer seed inside torch.compile")
    return generator


@torch.library.impl(library, "joint_entropy", "CompositeExplicitAutograd")
def _(probs, chosen=None, *, log_input=False, max_configurations=MAX_CONFIGURATIONS, num_samples=NUM_SAMPLES, seed=0):  # type: ignore[no-untyped-def]
    return joint_entropy(
        probs,
        chosen,
        log_input=log_input,
        max_configurations=max_configurations,
        num_samples=num_samples,
        generator=seed,
    )


@torch.library.register_fake("alkernels::joint_entropy")
def _(probs, chosen=None, *, log_input=False, max_configurations=MAX_CONFIGURATIONS, num_samples=NUM_SAMPLES, seed=0):  # type: ignore[no-untyped-def]
    torch._check(probs.dim() == 3, lambda: f"probs must be three-dimensional [N, K, C], got {probs.dim()}")
    return probs.new_empty(probs.shape[0], dtype=torch.float64)


@torch.library.register_fake("alkernels::conditional_entropy")
def _(probs, weights, mass, wide):  # type: ignore[no-untyped-def]
    torch._check(probs.dim() == 3 and weights.dim() == 2 and probs.shape[1] == weights.shape[1])
    return mass.new_empty(probs.shape[0])
