"""The features of a network: what its last Linear layer gets, or what a layer of a name gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

POOLING = ("mean", "first", "flatten")
_SAME_SCORES = 1e-3  # of their norm: how far scores may be from a multiple of a layer's outputs


class _Call(NamedTuple):
    """A module that ran: what it got and gave, copied before anything works on them in place."""

    module: nn.Module
    got: Any
    gave: Any
    copied: Any


class Features:
    """Watches a network run.

    Parameters
    ----------
    network : Module
    layer : str or None
        Whose output the features are; None for the input of the head.
    pooling : {"mean", "first", "flatten"} or None
        How what is not [B, D] becomes so.

    Attributes
    ----------
    head : Linear or None
        The last Linear layer, once the network ran.
    """

    def __init__(self, network: nn.Module, layer: str | None, pooling: str | None) -> None:
        self.network, self.layer, self.pooling = network, layer, pooling
        self.head: nn.Linear | None = None
        self._which = -1  # of the head's calls
        self.tapped: nn.Module | None = None
        if layer is not None:
            known = [name for name, _ in network.named_modules() if name]
            if layer not in known:
                raise ValueError(f"layer must be a module of the network, got {layer!r}; there are {', '.join(known)}")
            self.tapped = network.get_submodule(layer)

    @contextmanager
    def watching(self, head: bool) -> Iterator[list[_Call]]:
        """The calls of the layer, and of what may be the head where that is wanted or features are its inputs."""
        chosen = [] if self.tapped is None else [self.tapped]
        if head or self.tapped is None:
            linear = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
            chosen += linear if self.head is None else [self.head]
        calls: list[_Call] = []

        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], gave: Any) -> None:
            got = args[0] if args else next(iter(kwargs.values()), None)
            taken = isinstance(module, nn.Linear) and self.tapped is None
            calls.append(_Call(module, _copied(got) if taken else None, gave, _copied(gave)))

        with ExitStack() as hooks:
            for module in dict.fromkeys(chosen):
                hooks.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
            yield calls

    def find_head(self, calls: list[_Call], raw: Tensor, scores: Tensor) -> None:
        """Which Linear layer is the head: the one that gave the outputs, or the last they are a multiple of.

        Parameters
        ----------
        calls : list
        raw : Tensor
            The network's outputs.
        scores : Tensor of shape (B, C)
            Their logarithms, if they are probabilities.
        """
        if self.head is not None:
            return
        linear = [c for c in calls if isinstance(c.module, nn.Linear)]
        gave = [c for c in linear if c.gave is raw] or [c for c in linear if _is_multiple(scores, c.copied)]
        if not gave:
            found = ", ".join(name for name, _ in self.network.named_modules() if name)
            raise ValueError(
                "the network must end in a torch.nn.Linear layer that gives its class scores, for features, "
                "head_weight and head_bias to be found, and has none; name the layer whose output they are, layer=; "
                f"there are {found or 'no modules'}"
            )
        assert isinstance(gave[-1].module, nn.Linear)
        self.head = gave[-1].module
        self._which = [c is gave[-1] for c in linear if c.module is self.head].index(True)

    def of(self, calls: list[_Call], raw: Tensor) -> Tensor:
        """[B, D] features of a batch."""
        rows = len(raw)
        if self.tapped is not None:
            mine = [c for c in calls if c.module is self.tapped]
            if not mine:
                raise ValueError(f"layer must run with the network, and {self.layer!r} does not")
            value, where = mine[-1].copied, f"layer {self.layer!r}"
        else:
            mine = [c for c in calls if c.module is self.head]
            gave = [c for c in mine if c.gave is raw]
            value, where = (gave[-1] if gave else mine[self._which]).got, "the last Linear layer"
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != rows:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"features of {where} must have one row for each of {rows} inputs, got {got}")
        return self._pooled(value)

    def _pooled(self, value: Tensor) -> Tensor:
        if value.dim() == 2:
            return value
        if value.dim() == 3 and self.pooling is None:
            raise ValueError(
                f"features must be [B, D] or maps, got the sequences {tuple(value.shape)}: say pooling='mean', 'first' "
                "or 'flatten'"
            )
        if self.pooling == "flatten":
            return value.flatten(1)
        if value.dim() == 3:
            return value.mean(1) if self.pooling == "mean" else value[:, 0]
        maps = value.flatten(2)
        return maps[:, :, 0] if self.pooling == "first" else maps.mean(2)


def _copied(value: Any) -> Any:
    """The tensor in what a module gives, as it is now."""
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    elif not isinstance(value, Tensor):
        value = getattr(value, "last_hidden_state", value)
    return value.clone() if isinstance(value, Tensor) else value


def _is_multiple(scores: Tensor, gave: Any) -> bool:
    """Whether rows differ by a positive factor of all, and a shift of each: as temperatures and softmax leave them."""
    if not isinstance(gave, Tensor) or gave.shape != scores.shape:
        return False
    one, other = (v.double() - v.double().mean(1, keepdim=True) for v in (scores, gave))
    norm = other.square().sum()
    factor = (one * other).sum() / norm if norm > 0 else torch.zeros(())
    return bool(factor > 0) and bool((one - factor * other).norm() <= _SAME_SCORES * one.norm())
