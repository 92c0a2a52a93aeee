"""Selection via proxy: a small network picks for a large one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from alkernels._inputs import Array
from alkernels._packages import package
from alkernels.strategies._catalogue import INPUTS, StrategyInfo, info
from alkernels.strategies._select import involved, select


class ProxySelection(NamedTuple):
    """Rows that a proxy picked.

    Attributes
    ----------
    indices : Tensor or ndarray of shape (b,), int64
        In the order picked.
    scores : Tensor or ndarray of shape (b,)
        The value that made each pick.
    rank_correlation : float or None
        Spearman's, of the proxy's scores and the target's over the candidates, where the target's arrays were given.
    proxy : object
        What `fit_proxy` gave.
    """

    indices: Array
    scores: Array
    rank_correlation: float | None
    proxy: Any


class SelectionViaProxy:
    """Any strategy on what a cheap network says: a smaller one, or one that is trained for fewer epochs.

    The proxy is trained anew each time; the target is trained on the labels only when it is wanted.

    Parameters
    ----------
    strategy : str
        A name of :func:`alkernels.strategies.names`.
    fit_proxy : callable
        ``fit_proxy(data)`` gives a proxy that is trained on labelled data.
    embed_proxy : callable
        ``embed_proxy(proxy)`` gives the arrays of the pool that the strategy takes, as :func:`alkernels.collect` does.
    measure : str, default "entropy"
        The scores whose ranks are compared with the target's, where the strategy picks a batch and scores no row.
    **options
        The strategy's, as :func:`alkernels.select` takes them.

    Raises
    ------
    ValueError
        A strategy that does not exist, a measure that does not score each row.

    References
    ----------
    .. [1] C. Coleman, C. Yeh, S. Mussmann, B. Mirzasoleiman, P. Bailis, P. Liang, J. Leskovec, M. Zaharia. Selection
       via proxy: efficient data selection for deep learning. ICLR 2020.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> x, y = torch.randn(100, 4), torch.arange(100) % 3
    >>> def fit_proxy(data):
    ...     net = torch.nn.Linear(4, 3)
    ...     alk.models.fit(net, data, epochs=3, generator=0)
    ...     return net
    >>> proxy = alk.models.SelectionViaProxy(
    ...     "margin", fit_proxy=fit_proxy, embed_proxy=lambda net: alk.collect(net, x, "margin")
    ... )
    >>> proxy.select(5, (x[:20], y[:20]), candidates=range(20, 100)).indices.shape
    torch.Size([5])
    """

    def __init__(
        self,
        strategy: str,
        *,
        fit_proxy: Callable[[Any], Any],
        embed_proxy: Callable[[Any], Mapping[str, Any]],
        measure: str = "entropy",
        **options: Any,
    ) -> None:
        self.entry = info(strategy)
        self.measured: StrategyInfo = self.entry if self.entry.each_row and self.entry.needs else info(measure)
        if not self.measured.each_row:
            raise ValueError(f"measure must be a strategy that scores each row, got {measure!r}, which picks a batch")
        for name, value in {"fit_proxy": fit_proxy, "embed_proxy": embed_proxy}.items():
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        involved(strategy, options)
        self.fit_proxy, self.embed_proxy, self.options = fit_proxy, embed_proxy, options

    def select(
        self,
        batch_size: int,
        data: Any,
        *,
        candidates: Any = None,
        target: Mapping[str, Any] | None = None,
        generator: torch.Generator | int | None = None,
    ) -> ProxySelection:
        """Train a proxy on labelled data, and let it pick.

        Parameters
        ----------
        batch_size : int
            How many rows to pick.
        data : object
            What `fit_proxy` takes.
        candidates : mask of shape (N,) or row numbers, optional
            The rows that may be picked. Default: all.
        target : mapping of str to array, optional
            The arrays of the target network over the same pool: adds the rank correlation of both networks' scores.
        generator : torch.Generator or int, optional
            Decides the strategy's draws.

        Returns
        -------
        ProxySelection
        """
        proxy = self.fit_proxy(data)
        arrays = dict(self.embed_proxy(proxy))
        correlation = None
        if target is not None:
            rows = {"candidates": candidates} if candidates is not None else {}
            own, other = (_scores(self.measured, dict(a), rows, self.options) for a in (arrays, target))
            if own.shape != other.shape:
                raise ValueError(f"target must hold arrays of the same pool, got {len(other)} rows for {len(own)}")
            correlation = float(package("scipy.stats", "strategies").spearmanr(own, other).statistic)
        picked = select(
            self.entry.name, batch_size, **arrays, candidates=candidates, generator=generator, **self.options
        )
        return ProxySelection(picked.indices, picked.scores, correlation, proxy)


def _scores(entry: StrategyInfo, arrays: dict[str, Any], rows: dict[str, Any], options: dict[str, Any]) -> Any:
    """The scores of all candidates, in the order of their rows."""
    own = {name: value for name, value in options.items() if name in entry.options}
    pool = next((value for name, value in arrays.items() if name in INPUTS and INPUTS[name].pool), None)
    if pool is None:
        raise ValueError(f"arrays of the pool must be given for {entry.name}, got {', '.join(arrays) or 'none'}")
    length = len(pool[0]) if isinstance(pool, (tuple, list)) else len(pool)  # a pair of factors has one row each
    count = len(torch.arange(length)[torch.as_tensor(rows["candidates"])]) if rows else length
    picked = select(entry.name, count, **arrays, **rows, **own)
    order = torch.as_tensor(picked.indices).argsort()
    return torch.as_tensor(picked.scores)[order].cpu().numpy()
