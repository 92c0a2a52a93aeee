"""Monte Carlo dropout with masks that are the same network for every row of a draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from alkernels._inputs import check_count, check_flag, seed_of
from alkernels.models._state import unwrapped
from alkernels.models.ensembles import Ensemble
from alkernels.models.posterior import Forward, Outputs, Posterior, derived_seed

_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
# Where dropped units of a self-normalising network go: -scale * alpha of SELU.
_SELU_FLOOR = -1.7580993408473766


class MCDropout(Posterior):
    """Draws of a network with dropout: draw k drops the same units for every row, so that it is one network.

    All else, BatchNorm among it, works as in evaluation. Dropped are the inputs of dropout modules (``nn.Dropout``,
    1d, 2d and 3d by channels, and the alpha ones); ``functional.dropout`` in a module's own code, the dropout of
    recurrent layers and of attention weights stay off.

    Parameters
    ----------
    model : Module or Ensemble
        A network with dropout. An ensemble of them gives draws of each member, all members' in turn: a stochastic
        ensemble [2]_ of members x draws.
    draws : int, default 100
        How many networks are drawn, K; of an ensemble, for each member.
    consistent : bool, default True
        One mask a layer and draw, for all rows. False drops anew for each row: enough for scores of single rows such as
        BALD's, not for joint ones (BatchBALD, EPIG).
    generator : torch.Generator or int, optional
        Decides the masks, once: every pass over any data sees the same ones, on every device and in batches of any
        size. Default: torch's global generator.

    Raises
    ------
    ValueError
        A network without a dropout module of a probability above 0, `draws` below 1.

    Notes
    -----
    Rows must lie along the first axis: networks that have time there (``batch_first=False``) are refused, when the
    batch is of another length than time is. Sequences [B, T, D] may be of any length T, and share the masks of the
    places that they share; inputs of other shapes must be of one size.

    References
    ----------
    .. [1] Y. Gal, Z. Ghahramani. Dropout as a Bayesian approximation: representing model uncertainty in deep learning.
       ICML 2016. Y. Gal, R. Islam, Z. Ghahramani. Deep Bayesian active learning with image data. ICML 2017.
    .. [2] R. Pop, P. Fulop. Deep ensemble Bayesian active learning. 2018.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 3))
    >>> alk.collect(alk.models.MCDropout(net, draws=20), torch.randn(5, 4), "mc_probs")["mc_probs"].shape
    torch.Size([5, 20, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        draws: int = 100,
        *,
        consistent: bool = True,
        generator: torch.Generator | int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.draws = check_count(draws, "draws")
        self.model = model if isinstance(model, Ensemble) else unwrapped(model)
        self.consistent = check_flag(consistent, "consistent")
        self.seed = seed_of(generator)
        for network in self.networks:
            if not _dropouts(network):
                raise ValueError(
                    f"model must have a dropout module with p above 0 (nn.Dropout and the like), got "
                    f"{type(network).__name__} without one; functional dropout is not seen: make it a module, or draw "
                    "from an ensemble or a Bayesian network instead"
                )
        self.count = self.draws * len(self.networks)

    @property
    def networks(self) -> list[nn.Module]:
        return [unwrapped(m) for m in self.model.networks] if isinstance(self.model, Ensemble) else [self.model]

    @property
    def network(self) -> nn.Module:
        return self.networks[0]

    @property
    def averaged(self) -> bool:
        return isinstance(self.model, Ensemble)

    @contextmanager
    def drawing(self) -> Iterator[Outputs]:
        masks = [_Masks(derived_seed(self.seed, "member", i), self.consistent) for i in range(len(self.networks))]

        def outputs(forward: Forward) -> Iterator[Tensor]:
            for network, some in zip(self.networks, masks, strict=True):
                for draw in range(self.draws):
                    some.begin(draw)
                    logits = forward(network)
                    some.check_rows(len(logits))
                    yield logits
                some.draw = None

        # the encoder's fused path knows neither dropout nor hooks
        fused = torch.backends.mha.get_fastpath_enabled()
        with ExitStack() as hooks:
            hooks.callback(torch.backends.mha.set_fastpath_enabled, fused)
            torch.backends.mha.set_fastpath_enabled(False)
            for network, some in zip(self.networks, masks, strict=True):
                for name, module in _dropouts(network).items():
                    hooks.callback(module.register_forward_hook(some.hook(name)).remove)
            yield outputs


def _dropouts(network: nn.Module) -> dict[str, _DropoutNd]:
    return {name: m for name, m in network.named_modules() if isinstance(m, _DropoutNd) and m.p > 0}


class _Masks:
    """What the dropout modules of one network drop, off outside of draws."""

    def __init__(self, seed: int, consistent: bool) -> None:
        self.seed = seed
        self.consistent = consistent
        self.draw: int | None = None
        self.calls: dict[str, int] = defaultdict(int)  # a module that runs twice in a pass drops apart
        self.generators: dict[tuple[str, int, int], torch.Generator] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.rests: dict[tuple[str, int], torch.Size] = {}

    def begin(self, draw: int) -> None:
        self.draw = draw
        self.calls.clear()
        self.shapes.clear()

    def check_rows(self, rows: int) -> None:
        for name, shape in self.shapes.items():
            if len(shape) > 2 and shape[0] != rows and shape[1] == rows:
                raise ValueError(
                    f"rows must lie along the first axis of what dropout {name!r} gets, got shape {tuple(shape)} for "
                    f"{rows} rows: a mask would not be the same for all of them; use batch_first=True"
                )

    def hook(self, name: str):  # type: ignore[no-untyped-def]
        def dropped(module: _DropoutNd, _: tuple[Tensor, ...], x: Tensor) -> Tensor | None:
            if self.draw is None:
                return None
            call = self.calls[name]
            self.calls[name] += 1
            self.shapes[name] = x.shape
            if self.consistent and not isinstance(module, _BY_CHANNEL):
                # masks of sequences [B, T, D] begin alike for all T; those of other shapes have nothing in common
                rest = self.rests.setdefault((name, call), x.shape[2:])
                if rest != x.shape[2:]:
                    raise ValueError(
                        f"what dropout {name!r} gets must be of one shape for a draw to be one network, got "
                        f"[.., {', '.join(map(str, rest))}] and [.., {', '.join(map(str, x.shape[2:]))}]; "
                        "consistent=False drops anew for each row"
                    )
            kept = self._kept(module, x.shape, (name, call, self.draw)).to(x.device)
            if not isinstance(module, _ALPHA):
                return x * (kept * (1 / (1 - module.p) if module.p < 1 else 0.0)).to(x.dtype)
            if module.p == 1:
                return torch.zeros_like(x)
            scale = 1 / math.sqrt((1 - module.p) * (1 + module.p * _SELU_FLOOR**2))
            shift = -scale * _SELU_FLOOR * module.p
            return torch.where(kept, x, _SELU_FLOOR) * scale + shift

        return dropped

    def _kept(self, module: _DropoutNd, shape: torch.Size, place: tuple[str, int, int]) -> Tensor:
        """Drawn on the CPU: the same on every device."""
        rows = 1 if self.consistent else shape[0]
        rest = [shape[1]] + [1] * (len(shape) - 2) if isinstance(module, _BY_CHANNEL) else list(shape[1:])
        generator = self.generators.get(place)
        if generator is None:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, *place))
            if not self.consistent:
                self.generators[place] = generator  # goes on from batch to batch
        return torch.rand([rows, *rest], generator=generator) >= module.p
