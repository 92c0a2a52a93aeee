"""Bayes by backprop: layers with a Gaussian over each weight, their training, and draws from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alkernels._inputs import check_count, check_flag, check_number, seed_of
from alkernels.models.posterior import Forward, Outputs, Posterior, derived_seed
from alkernels.strategies._arguments import check_above_zero, check_one_of

SAMPLING = ("weight", "local")
_KINDS = ("uniform", "blundell")
# Drawn weights up to this are kept for the next batch; further draws are made anew for each.
_BYTES_KEPT = 1 << 29


def _log_normal(values: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    log_deviation = deviation.log() if isinstance(deviation, Tensor) else math.log(deviation)
    return -0.5 * ((values - mean) / deviation) ** 2 - log_deviation - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianPrior:
    """Every weight is normal around 0.

    Parameters
    ----------
    sigma : float, default 1.0
        The standard deviation.

    Raises
    ------
    ValueError
        A deviation that is not above 0 and finite.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_above_zero(self.sigma, "sigma")

    def log_prob(self, weights: Tensor) -> Tensor:
        """Natural logarithm of the density at each weight."""
        return _log_normal(weights, 0.0, self.sigma)


@dataclass(frozen=True)
class ScaleMixturePrior:
    """Every weight is from one of two normal distributions around 0, one wide and one narrow.

    Parameters
    ----------
    pi : float, default 0.5
        The share of the first, between 0 and 1. The paper tries 1/4, 1/2 and 3/4.
    sigma1 : float, default 1.0
        The first one's standard deviation. The paper tries exp(0), exp(-1) and exp(-2).
    sigma2 : float, default exp(-6)
        The second one's. The paper tries exp(-6), exp(-7) and exp(-8).

    Raises
    ------
    ValueError
        A share that is not between 0 and 1, deviations that are not above 0 and finite.

    References
    ----------
    .. [1] C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra. Weight uncertainty in neural networks. ICML 2015.
    """

    pi: float = 0.5
    sigma1: float = 1.0
    sigma2: float = math.exp(-6)

    def __post_init__(self) -> None:
        if not 0 < check_number(self.pi, "pi", "between 0 and 1, without both") < 1:
            raise ValueError(f"pi must be between 0 and 1, without both, got {self.pi!r}")
        check_above_zero(self.sigma1, "sigma1")
        check_above_zero(self.sigma2, "sigma2")

    def log_prob(self, weights: Tensor) -> Tensor:
        """Natural logarithm of the density at each weight."""
        return torch.logaddexp(
            _log_normal(weights, 0.0, self.sigma1) + math.log(self.pi),
            _log_normal(weights, 0.0, self.sigma2) + math.log1p(-self.pi),
        )


Prior: TypeAlias = "GaussianPrior | ScaleMixturePrior"


def _check_prior(prior: Any) -> Prior:
    if prior is None:
        return GaussianPrior()
    if not isinstance(prior, (GaussianPrior, ScaleMixturePrior)):
        raise TypeError(f"prior must be a GaussianPrior or a ScaleMixturePrior, got {type(prior).__name__}")
    return prior


class _BayesLayer(nn.Module):
    """What the layers share: `weight` and `bias` are means, and there is a rho and, while training, noise for each."""

    weight: Tensor
    bias: Any
    prior: Prior
    sampling: str
    rho: float

    def _make_bayesian(self, prior: Any, sampling: Any, rho: Any) -> None:
        self.prior = _check_prior(prior)
        self.sampling = check_one_of(sampling, "sampling", SAMPLING)
        self.rho = check_number(rho, "rho", "finite")
        for name in ("weight", "bias"):
            mean = getattr(self, name)
            self.register_parameter(
                f"{name}_rho", None if mean is None else nn.Parameter(torch.full_like(mean, self.rho))
            )
            # of the last forward; it goes where the layer goes, but is nothing to save
            self.register_buffer(f"{name}_noise", None, persistent=False)

    def reset_parameters(self) -> None:
        """Means as in the layer of torch, and rho as at the start."""
        super().reset_parameters()  # type: ignore[misc]
        for name in ("weight_rho", "bias_rho"):
            rho = self._parameters.get(name)
            if rho is not None:  # torch's layers call this before there is one
                nn.init.constant_(rho, self.rho)

    def gaussians(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, mean and standard deviation of the weights, and of the bias if there is one."""
        yield "weight", self.weight, F.softplus(self.get_parameter("weight_rho"))
        if self.bias is not None:
            yield "bias", self.bias, F.softplus(self.get_parameter("bias_rho"))

    def _run(self, x: Tensor, operation: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """A linear operation of inputs, weights and bias, under a draw while training and else with the means."""
        if not self.training:
            return operation(x, self.weight, self.bias)
        if self.sampling == "weight":
            drawn: dict[str, Tensor] = {}
            for name, mean, deviation in self.gaussians():
                noise = torch.randn_like(mean)
                setattr(self, f"{name}_noise", noise)
                drawn[name] = mean + deviation * noise
            return operation(x, drawn["weight"], drawn.get("bias"))
        mean = operation(x, self.weight, self.bias)
        variances = {name: deviation.square() for name, _, deviation in self.gaussians()}
        variance = operation(x.square(), variances["weight"], variances.get("bias"))
        # An input of zeros has a variance of 0, where the gradient of a root is infinite.
        return mean + variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt() * torch.randn_like(mean)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, prior={self.prior}, sampling={self.sampling!r}"


class BayesLinear(_BayesLayer, nn.Linear):
    r"""A linear layer with a normal distribution over each weight and bias.

    Weights are :math:`w = \mu + \log(1 + e^\rho) \, \epsilon` with standard normal :math:`\epsilon`. In training mode
    each forward draws from torch's global random numbers; in evaluation mode the weights are the means. Draws for a
    pool are :class:`BayesByBackprop`'s.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    prior : GaussianPrior or ScaleMixturePrior, optional
        What :func:`kl_divergence` compares with. Default: ``GaussianPrior(1.0)``.
    sampling : {"local", "weight"}, default "local"
        "weight" draws one set of weights for the whole batch. "local" draws each output from the normal distribution
        that it has for its input: gradients of less variance, at the cost of a second multiplication. Both have the
        same expected loss. Train with "local" in float32, float64 or bfloat16: squares of inputs may be too large for
        float16.
    rho : float, default -5.0
        The initial :math:`\rho` of all weights, for a standard deviation of 0.0067.
    device, dtype : optional
        As in :class:`torch.nn.Linear`.

    Attributes
    ----------
    weight, bias : Parameter
        The means, initialised as torch does.
    weight_rho, bias_rho : Parameter

    Raises
    ------
    ValueError
        Unknown `sampling`, `rho` that is not finite.
    TypeError
        `prior` that is none.

    References
    ----------
    .. [1] C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra. Weight uncertainty in neural networks. ICML 2015.
    .. [2] D. P. Kingma, T. Salimans, M. Welling. Variational dropout and the local reparameterization trick. NeurIPS
       2015.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.bayes import BayesLinear
    >>> layer, x = BayesLinear(4, 3), torch.ones(1, 4)
    >>> torch.equal(layer(x), layer(x)), torch.equal(layer.eval()(x), layer(x))
    (False, True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        prior: Prior | None = None,
        sampling: str = "local",
        rho: float = -5.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._make_bayesian(prior, sampling, rho)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs [..., out_features] of inputs [..., in_features]."""
        return self._run(input, F.linear)


class BayesConv2d(_BayesLayer, nn.Conv2d):
    """A convolution of images with a normal distribution over each weight and bias.

    See :class:`BayesLinear`. With "local" sampling the pixels of an output are drawn independently of each other, as
    in [1]_, though one set of weights would make them dependent; "weight" has no such approximation.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in :class:`torch.nn.Conv2d`.
    prior, sampling, rho
        As in :class:`BayesLinear`.
    device, dtype : optional

    Attributes
    ----------
    weight, bias : Parameter
        The means, initialised as torch does.
    weight_rho, bias_rho : Parameter

    Raises
    ------
    ValueError, TypeError
        As in :class:`BayesLinear`.

    References
    ----------
    .. [1] D. P. Kingma, T. Salimans, M. Welling. Variational dropout and the local reparameterization trick. NeurIPS
       2015.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.bayes import BayesConv2d
    >>> BayesConv2d(1, 8, 3, padding="same")(torch.ones(2, 1, 28, 28)).shape
    torch.Size([2, 8, 28, 28])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        *,
        prior: Prior | None = None,
        sampling: str = "local",
        rho: float = -5.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._make_bayesian(prior, sampling, rho)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs [B, out_channels, ...] of images [B, in_channels, height, width], or of one without the batch."""
        return self._run(input, self._conv_forward)


def _layers(model: Any) -> dict[str, _BayesLayer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network (torch.nn.Module), got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BayesLayer)}
    if not layers:
        raise ValueError("model must have a BayesLinear or BayesConv2d, got none; to_bayesian() converts a network")
    return layers


def kl_divergence(model: nn.Module, *, closed_form: bool | None = None) -> Tensor:
    r"""How far the weights' distributions are from their priors, in nats: the complexity cost of Bayes by backprop.

    The loss of minibatch i is :math:`\pi_i \, \mathrm{KL} - \log p(D_i | w)`, with the sum (not the mean) over the
    minibatch of the log-likelihoods, and :math:`\pi_i` from :func:`minibatch_weights`.

    Parameters
    ----------
    model : Module
        A network with Bayesian layers.
    closed_form : bool, optional
        Whether to compute :math:`\log(\sigma_p / \sigma) + (\sigma^2 + \mu^2) / (2 \sigma_p^2) - 1/2`, which needs
        Gaussian priors, or to estimate :math:`\log q(w) - \log p(w)` at one draw, without bias. The draw is that of the
        layer's last forward in training mode, so that one draw serves the whole loss; with "local" sampling, which
        draws no weights, before the first forward, and after one in inference mode, it is a new one, from torch's
        global random numbers. Default: closed form for layers with a Gaussian prior, one draw for the others.

    Returns
    -------
    Tensor
        One number, the sum over all weights and biases. A layer that is in the model twice counts once.

    Raises
    ------
    ValueError
        No Bayesian layer, closed form asked for where there is none.

    References
    ----------
    .. [1] C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra. Weight uncertainty in neural networks. ICML 2015.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.bayes import BayesLinear, kl_divergence
    >>> layer, x, y = BayesLinear(4, 3), torch.randn(10, 4), torch.randint(3, (10,))
    >>> loss = torch.nn.functional.cross_entropy(layer(x), y, reduction="sum") + kl_divergence(layer)
    >>> loss.backward()
    >>> layer.weight_rho.grad.shape
    torch.Size([3, 4])
    """
    if closed_form is not None:
        closed_form = check_flag(closed_form, "closed_form")
    parts: list[Tensor] = []
    for name, layer in _layers(model).items():
        prior = layer.prior
        gaussian = isinstance(prior, GaussianPrior)
        if closed_form and not gaussian:
            raise ValueError(f"closed_form must not be True for a ScaleMixturePrior, which layer {name!r} has")
        for part, mean, deviation in layer.gaussians():
            if isinstance(prior, GaussianPrior) and closed_form is not False:
                ratio = deviation / prior.sigma
                parts.append((0.5 * (ratio.square() + (mean / prior.sigma).square() - 1) - ratio.log()).sum())
                continue
            noise = getattr(layer, f"{part}_noise")
            # no gradient could pass what was drawn in inference mode
            lost = noise is not None and noise.is_inference() and not torch.is_inference_mode_enabled()
            if noise is None or lost or layer.sampling == "local":
                noise = torch.randn_like(mean)
            drawn = mean + deviation * noise
            parts.append((_log_normal(drawn, mean, deviation) - prior.log_prob(drawn)).sum())
    return sum(part.to(parts[0].device) for part in parts[1:]) + parts[0]


def minibatch_weights(count: int, kind: str = "uniform") -> Tensor:
    r"""How the complexity cost is shared out to the minibatches of an epoch.

    Parameters
    ----------
    count : int
        How many minibatches there are, M.
    kind : {"uniform", "blundell"}, default "uniform"
        :math:`1 / M` each, or :math:`2^{M-i} / (2^M - 1)`: the first minibatches follow the prior, the later ones the
        data.

    Returns
    -------
    Tensor of shape (count,), float64
        :math:`\pi_1` to :math:`\pi_M`, which add up to 1.

    Raises
    ------
    ValueError
        Less than one minibatch, an unknown kind.

    References
    ----------
    .. [1] C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra. Weight uncertainty in neural networks. ICML 2015.

    Examples
    --------
    >>> from alkernels.models.bayes import minibatch_weights
    >>> minibatch_weights(3, "blundell")
    tensor([0.5714, 0.2857, 0.1429], dtype=torch.float64)
    """
    count = check_count(count, "count")
    if check_one_of(kind, "kind", _KINDS) == "uniform":
        return torch.full((count,), 1 / count, dtype=torch.float64)
    # 2**(M - i) / (2**M - 1) without the large powers
    return torch.exp2(-torch.arange(1, count + 1, dtype=torch.float64)) / -math.expm1(-count * math.log(2))


def to_bayesian(
    model: nn.Module, *, prior: Prior | None = None, sampling: str = "local", rho: float = -5.0
) -> nn.Module:
    """A copy of a network with Bayesian layers in place of its Linear and Conv2d ones.

    Parameters
    ----------
    model : Module
        Its weights are the initial means. It stays as it is. Only :class:`torch.nn.Linear` and
        :class:`torch.nn.Conv2d` themselves are replaced, not classes that derive from them. A layer that is in the
        model twice is one again.
    prior, sampling, rho
        As in :class:`BayesLinear`, for all layers.

    Returns
    -------
    Module
        The copy, in the mode of `model`. What was frozen is, and so is its rho.

    Raises
    ------
    ValueError
        No layer to replace; one that shares a parameter with another module, or that has hooks (weight_norm has), which
        would both be lost.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.bayes import to_bayesian
    >>> to_bayesian(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)))[2]
    BayesLinear(in_features=8, out_features=3, bias=True, prior=GaussianPrior(sigma=1.0), sampling='local')

    :class:`BayesByBackprop` has an example of its training.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network (torch.nn.Module), got {type(model).__name__}")
    options = {"prior": _check_prior(prior), "sampling": sampling, "rho": rho}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in filter(lambda p: p is not None, module._parameters.values()):
            other = owners.setdefault(id(parameter), name)
            if other != name and any(type(model.get_submodule(n)) in (nn.Linear, nn.Conv2d) for n in (other, name)):
                raise ValueError(
                    f"model must not have layers that share parameters, got {other!r} and {name!r}: a Bayesian layer's "
                    "are its own"
                )
        if type(module) in (nn.Linear, nn.Conv2d) and (module._forward_hooks or module._forward_pre_hooks):
            raise ValueError(f"model must not have hooks on layers to be replaced, got {name!r} with hooks")
    converted = copy.deepcopy(model)
    made = {
        id(module): _bayesian(module, options)
        for module in converted.modules()
        if type(module) in (nn.Linear, nn.Conv2d)
    }
    if not made:
        raise ValueError("model must have a torch.nn.Linear or torch.nn.Conv2d, got none")
    if id(converted) in made:
        return made[id(converted)]
    for module in list(converted.modules()):
        for name, child in module._modules.items():
            if id(child) in made:
                setattr(module, name, made[id(child)])
    return converted


def _bayesian(layer: nn.Module, options: dict[str, Any]) -> nn.Module:
    # made without memory, and so without random numbers
    bias = layer.bias is not None
    made: BayesLinear | BayesConv2d
    if isinstance(layer, nn.Conv2d):
        made = BayesConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias,
            layer.padding_mode,
            device="meta",
            **options,
        )
    else:
        assert isinstance(layer, nn.Linear)
        made = BayesLinear(layer.in_features, layer.out_features, bias, device="meta", **options)
    for name in ("weight", "bias"):
        mean = getattr(layer, name)
        if mean is not None:
            setattr(made, name, mean)
            rho = nn.Parameter(torch.full_like(mean, made.rho), requires_grad=mean.requires_grad)
            setattr(made, f"{name}_rho", rho)
    return made.train(layer.training)


class BayesByBackprop(Posterior):
    """Draws of the weights of a network with Bayesian layers.

    Draw k is one set of weights for the whole pool. Its noise comes from the CPU, from a seed for each layer: it is the
    same on each device and for each batch size.

    Parameters
    ----------
    model : Module
        A network with :class:`BayesLinear` or :class:`BayesConv2d` layers, for example :func:`to_bayesian`'s. With the
        means for weights it stands for all draws.
    draws : int, default 100
        How many, K.
    generator : Generator, int or None
        Decides the draws, when this is made; they are the same from then on, as long as the model is.

    Raises
    ------
    ValueError
        No Bayesian layer, less than one draw.

    References
    ----------
    .. [1] C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra. Weight uncertainty in neural networks. ICML 2015.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> from alkernels.models.bayes import BayesByBackprop, kl_divergence, to_bayesian
    >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
    >>> network = to_bayesian(torch.nn.Linear(4, 3))
    >>> def batch_loss(network, x, y):
    ...     # a row's share of minus the evidence lower bound, for 20 rows in all
    ...     return torch.nn.functional.cross_entropy(network(x), y) + kl_divergence(network) / 20
    >>> history = alk.models.fit(network, (x, y), epochs=5, batch_loss=batch_loss)
    >>> posterior = BayesByBackprop(network, draws=20, generator=0)
    >>> alk.collect(posterior, x, "mc_probs")["mc_probs"].shape
    torch.Size([20, 20, 3])
    """

    def __init__(self, model: nn.Module, draws: int = 100, *, generator: torch.Generator | int | None = None) -> None:
        _layers(model)
        self.model = model
        self.count = check_count(draws, "draws")
        self._seed = seed_of(generator)

    @property
    def networks(self) -> list[nn.Module]:
        """The network."""
        return [self.model]

    @property
    def network(self) -> nn.Module:
        """The network, whose weights are the means between draws."""
        return self.model

    @contextmanager
    def drawing(self) -> Iterator[Outputs]:
        """Draw k is one set of weights."""
        layers = _layers(self.model)
        size = sum(mean.nbytes for layer in layers.values() for _, mean, _ in layer.gaussians())
        kept: list[list[tuple[nn.Module, str, nn.Parameter]]] = []

        def outputs(forward: Forward) -> Iterator[Tensor]:
            for k in range(self.count):
                drawn = kept[k] if k < len(kept) else self._draw(layers, k)
                if k == len(kept) and (k + 1) * size <= _BYTES_KEPT:
                    kept.append(drawn)
                with _in_place(drawn):
                    logits = forward(self.model)
                yield logits

        yield outputs

    @torch.no_grad()
    def _draw(self, layers: dict[str, _BayesLayer], k: int) -> list[tuple[nn.Module, str, nn.Parameter]]:
        drawn: list[tuple[nn.Module, str, nn.Parameter]] = []
        for place, layer in layers.items():
            generator = torch.Generator().manual_seed(derived_seed(self._seed, place, k))
            for name, mean, deviation in layer.gaussians():
                noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
                weights = mean + deviation * noise.to(mean.device, mean.dtype)
                drawn.append((layer, name, nn.Parameter(weights, requires_grad=False)))
        return drawn


@contextmanager
def _in_place(drawn: list[tuple[nn.Module, str, nn.Parameter]]) -> Iterator[None]:
    """Drawn weights stand where the means do, for whatever reads them."""
    means = [(layer, name, getattr(layer, name)) for layer, name, _ in drawn]
    try:
        for layer, name, weights in drawn:
            setattr(layer, name, weights)
        yield
    finally:
        for layer, name, mean in means:
            setattr(layer, name, mean)
