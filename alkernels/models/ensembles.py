"""Ensembles as posteriors: networks trained side by side, copies kept while one trains, and heads on one trunk."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils.data import Subset
from tqdm import tqdm

from alkernels._inputs import as_tensor, check_count, check_flag, seed_of
from alkernels.models._state import own_randomness
from alkernels.models._training import History
from alkernels.models.posterior import Forward, Outputs, Posterior, derived_seed

Make = Callable[[], nn.Module]
# Trains a network, in place or not.
Fit = Callable[[nn.Module, Any], "nn.Module | History | None"]


def check_network(value: Any, name: str) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a network (torch.nn.Module), got {type(value).__name__}")
    return value


def check_callable(value: Any, name: str) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def check_distinct(networks: list[nn.Module], name: str) -> None:
    first: dict[int, int] = {}
    for number, network in enumerate(networks):
        if id(network) in first:
            raise ValueError(f"{name} must be distinct networks, got number {first[id(network)]} again as {number}")
        first[id(network)] = number


def mean_logits(logits: list[Tensor]) -> Tensor:
    """Logarithms of the mean of probabilities whose logits [B, C, ...] are given."""
    return torch.stack([some.log_softmax(1) for some in logits]).logsumexp(0) - math.log(len(logits))


class Ensemble(nn.Module, Posterior):
    """Networks that each stand for a draw from a posterior.

    In a :class:`~alkernels.models.MCDropout` it is a stochastic ensemble: the draws are all members by all
    dropout masks.

    Parameters
    ----------
    members : sequence of Module
        Distinct networks of inputs to logits [B, C], or [B, C, ...] with positions. They are kept, not copied.

    Attributes
    ----------
    members : ModuleList
    count : int
        How many there are, K.

    Raises
    ------
    ValueError
        No member, or one that is there twice.
    TypeError
        Members that are no modules.

    References
    ----------
    .. [1] W. H. Beluch, T. Genewein, A. Nürnberger, J. M. Köhler. The power of ensembles for active learning in image
       classification. CVPR 2018.
    .. [2] R. Pop, P. Fulop. Deep ensemble Bayesian active learning. arXiv:1811.03897, 2018.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.ensembles import Ensemble
    >>> ensemble = Ensemble([torch.nn.Linear(4, 3) for _ in range(5)])
    >>> ensemble(torch.randn(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, members: Any) -> None:
        super().__init__()
        networks = [check_network(member, f"members[{number}]") for number, member in enumerate(members)]
        if not networks:
            raise ValueError("members must be at least one network, got none")
        check_distinct(networks, "members")
        self.members = nn.ModuleList(networks)
        self.count = len(networks)

    @property
    def networks(self) -> list[nn.Module]:
        """The members."""
        return list(self.members)

    @property
    def network(self) -> nn.Module:
        """The first member."""
        return self.members[0]

    @property
    def averaged(self) -> bool:
        """True: the mean of the members' probabilities stands for all."""
        return True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Natural logarithms of the mean of the members' probabilities, of the members' shape.

        They can stand where logits do: their softmax is the mean.
        """
        return mean_logits([member(*args, **kwargs) for member in self.members])

    @contextmanager
    def drawing(self) -> Iterator[Outputs]:
        """Draw k is member k."""

        def outputs(forward: Forward) -> Iterator[Tensor]:
            for member in self.members:
                yield forward(member)

        yield outputs


def naive_ensemble(
    make: Make,
    fit: Fit,
    data: Any,
    *,
    members: int = 5,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
) -> Ensemble:
    """Networks trained on the same data from initial weights and in an order of their own.

    Parameters
    ----------
    make : callable
        ``make()`` gives a new network.
    fit : callable
        ``fit(network, data)`` trains it, by any loop. It returns None, the trained network, or what
        :func:`alkernels.models.fit` does.
    data : object
        Goes to `fit` as it is.
    members : int, default 5
        How many networks.
    generator : Generator, int or None
        Each member's seed follows from it and from the member's number: of five members, the first three are those of
        an ensemble of three. While a member is made and trained, torch's global random numbers start from that seed
        (weights, dropout, the order of a DataLoader); afterwards they go on as if they had not been drawn. Those of
        Python and NumPy are left alone: a loop that draws from them has to seed them itself.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Ensemble
        In evaluation mode.

    Raises
    ------
    ValueError
        Less than one member; `make` or `fit` that gives the same network again.
    TypeError
        `make` or `fit` that gives something else than a network.

    References
    ----------
    .. [1] B. Lakshminarayanan, A. Pritzel, C. Blundell. Simple and scalable predictive uncertainty estimation using
       deep ensembles. NeurIPS 2017.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> from alkernels.models.ensembles import naive_ensemble
    >>> def fit(network, data):
    ...     return alk.models.fit(network, data, epochs=10)
    >>> data = torch.randn(20, 4), torch.randint(3, (20,))
    >>> naive_ensemble(lambda: torch.nn.Linear(4, 3), fit, data, members=3, generator=0).count
    3
    """
    check_callable(make, "make")
    seed = seed_of(generator)

    def train(number: int) -> nn.Module:
        return _trained(fit, check_network(make(), "what make() gives"), data, "fit")

    return _train(train, members, seed, "naive ensemble", progress)


def bootstrapped_ensemble(
    make: Make,
    fit: Fit,
    data: Any,
    *,
    members: int = 4,
    labels: Any = None,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
) -> Ensemble:
    """Networks trained on as many examples as there are, drawn with replacement for each of them.

    Where a draw has none of some class, then for each such class, in ascending order, a random one of its examples
    takes the place of a random one of the draws whose class was drawn more than once. So every member sees every class,
    draws that have all classes stay as they are, and no draw is made twice.

    Parameters
    ----------
    make : callable
        ``make()`` gives a new network.
    fit : callable
        ``fit(network, drawn)`` trains it, and returns what it does in :func:`naive_ensemble`.
    data : pair of arrays or map-style dataset
        For ``(x, y)``, tensors or ndarrays of L rows each, `drawn` is such a pair again; for a dataset of L examples
        it is a :class:`torch.utils.data.Subset`.
    members : int, default 4
        How many networks.
    labels : integer array of shape (L,), optional
        The classes to keep. Default: `y`, where it is a vector of integers; else (a dataset, or targets that are no
        classes) any draw will do.
    generator : Generator, int or None
        As in :func:`naive_ensemble`; it decides the draws as well.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Ensemble
        In evaluation mode.

    Raises
    ------
    ValueError
        No data, `x`, `y` and `labels` of different lengths; as in :func:`naive_ensemble`.
    TypeError
        Data that are neither a pair nor a dataset with a length, labels that are no integers.

    References
    ----------
    .. [1] L. Breiman. Bagging predictors. Machine Learning, 1996.
    .. [2] L. Yang, Y. Zhang, J. Chen, S. Zhang, D. Z. Chen. Suggestive annotation: a deep active learning framework
       for biomedical image segmentation. MICCAI 2017.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.ensembles import bootstrapped_ensemble
    >>> def fit(network, data):
    ...     print(data[0].flatten().tolist())
    >>> data = torch.arange(4.0)[:, None], torch.tensor([0, 0, 1, 1])
    >>> ensemble = bootstrapped_ensemble(lambda: torch.nn.Linear(1, 2), fit, data, members=2, generator=0)
    [0.0, 0.0, 1.0, 3.0]
    [2.0, 1.0, 2.0, 3.0]
    """
    check_callable(make, "make")
    pair = _is_pair(data)
    count = _examples(data, pair)
    classes = _classes(labels if labels is not None or not pair else data[1], count, given=labels is not None)
    seed = seed_of(generator)

    def train(number: int) -> nn.Module:
        index = _bootstrap(count, classes, torch.Generator().manual_seed(derived_seed(seed, "bootstrap", number)))
        drawn = tuple(_rows(part, index) for part in data) if pair else Subset(data, index.tolist())
        return _trained(fit, check_network(make(), "what make() gives"), drawn, "fit")

    return _train(train, members, seed, "bootstrapped ensemble", progress)


def diversity_encouraging_ensemble(
    make: Make,
    warm_up: Fit,
    fit: Fit,
    data: Any,
    *,
    members: int = 5,
    generator: torch.Generator | int | None = None,
    progress: bool = False,
) -> Ensemble:
    """Copies of one network that was trained for a while, each trained on with randomness of its own.

    Cheaper than :func:`naive_ensemble`: what the members have in common is learned once. What tells them apart are
    their dropout masks and the order of their data; dropout is off when the ensemble predicts.

    Parameters
    ----------
    make : callable
        ``make()`` gives a new network.
    warm_up : callable
        ``warm_up(network, data)`` trains it for the few epochs in common, and returns what `fit` does.
    fit : callable
        ``fit(network, data)`` trains a copy to the end, with an optimizer of its own, and returns what it does in
        :func:`naive_ensemble`.
    data : object
        Goes to `warm_up` and `fit` as it is.
    members : int, default 5
        How many copies.
    generator : Generator, int or None
        As in :func:`naive_ensemble`.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Ensemble
        In evaluation mode, without the network that was copied.

    Raises
    ------
    ValueError, TypeError
        As in :func:`naive_ensemble`.

    References
    ----------
    .. [1] W. H. Beluch, T. Genewein, A. Nürnberger, J. M. Köhler. The power of ensembles for active learning in image
       classification. CVPR 2018.

    Examples
    --------
    >>> import torch
    >>> from alkernels.models.ensembles import diversity_encouraging_ensemble
    >>> def fit(network, data):
    ...     with torch.no_grad():
    ...         network.bias += torch.rand(())
    >>> def make():
    ...     return torch.nn.Linear(4, 3)
    >>> ensemble = diversity_encouraging_ensemble(make, fit, fit, None, members=2, generator=0)
    >>> first, second = ensemble.members
    >>> torch.equal(first.weight, second.weight), torch.equal(first.bias, second.bias)
    (True, False)
    """
    check_callable(make, "make")
    check_callable(warm_up, "warm_up")
    check_callable(fit, "fit")
    check_count(members, "members")
    check_flag(progress, "progress")
    seed = seed_of(generator)
    with own_randomness(derived_seed(seed, "base")):
        base = _trained(warm_up, check_network(make(), "what make() gives"), data, "warm_up")

    def train(number: int) -> nn.Module:
        return _trained(fit, copy.deepcopy(base), data, "fit")

    return _train(train, members, seed, "diversity-encouraging ensemble", progress)


def _train(train: Callable[[int], nn.Module], members: int, seed: int, name: str, progress: bool) -> Ensemble:
    count = check_count(members, "members")
    progress = check_flag(progress, "progress")
    networks = []
    for number in tqdm(range(count), desc=name, unit="network", disable=not progress):
        with own_randomness(derived_seed(seed, "member", number)):
            networks.append(train(number))
        check_distinct(networks, "networks of make() and fit()")
    ensemble = Ensemble(networks)
    ensemble.eval()
    return ensemble


def trained(model: nn.Module, returned: Any, name: str) -> nn.Module | Posterior:
    """What a function that trains a model in place, or gives another, has trained.

    Parameters
    ----------
    model : Module
        What it was given.
    returned : Module, Posterior, History or None
        What it returned; :func:`alkernels.models.fit` returns a History of the model that it was given.
    name : str
        The function's name, for errors.
    """
    if returned is None or isinstance(returned, History):
        return model
    if not isinstance(returned, (nn.Module, Posterior)):
        raise TypeError(f"{name} must return None, a network, a posterior or a History, got {type(returned).__name__}")
    return returned


def _trained(fit: Fit, network: nn.Module, data: Any, name: str) -> nn.Module:
    check_callable(fit, name)
    return check_network(trained(network, fit(network, data), name), f"what {name}() gives")


def _is_pair(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(d, (Tensor, np.ndarray)) for d in data)


def _examples(data: Any, pair: bool) -> int:
    if pair:
        lengths = [part.shape[0] if part.ndim else 0 for part in data]
        if lengths[0] != lengths[1]:
            raise ValueError(f"data must be a pair of arrays with as many rows, got {lengths[0]} and {lengths[1]}")
        count = lengths[0]
    elif isinstance(data, (Tensor, np.ndarray, tuple, dict)) or not all(
        hasattr(data, method) for method in ("__getitem__", "__len__")
    ):
        raise TypeError(
            f"data must be a pair (x, y) of arrays or a map-style dataset with a length, got {type(data).__name__}"
        )
    else:
        count = len(data)
    if count == 0:
        raise ValueError("data must have at least one example, got none")
    return count


def _classes(labels: Any, count: int, *, given: bool) -> Tensor | None:
    """Each example's class, numbered from 0 without gaps; None where targets are no classes."""
    if labels is None:
        return None
    values = as_tensor(labels, "labels", "a vector of integers").cpu()
    if values.dim() != 1 or values.is_floating_point() or values.is_complex():
        if given:
            raise TypeError(f"labels must be a vector of integers, got {values.dtype} of shape {tuple(values.shape)}")
        return None
    if len(values) != count:
        raise ValueError(f"labels must have one class an example, shape ({count},), got ({len(values)},)")
    return values.long().unique(return_inverse=True)[1]


def _bootstrap(count: int, classes: Tensor | None, generator: torch.Generator) -> Tensor:
    index = torch.randint(count, (count,), generator=generator)
    if classes is None:
        return index
    drawn = classes[index]
    counts = drawn.bincount(minlength=int(classes.max()) + 1)
    for missing in (counts == 0).nonzero().flatten().tolist():
        # There is one: as many draws as examples, of fewer classes.
        spare = (counts[drawn] > 1).nonzero().flatten()
        place = spare[torch.randint(len(spare), (), generator=generator)]
        rows = (classes == missing).nonzero().flatten()
        counts[drawn[place]] -= 1
        drawn[place] = missing
        index[place] = rows[torch.randint(len(rows), (), generator=generator)]
    return index


def _rows(part: Tensor | np.ndarray, index: Tensor) -> Tensor | np.ndarray:
    return part[index.to(part.device)] if isinstance(part, Tensor) else part[index.numpy()]


class SnapshotEnsemble:
    r"""Copies of one network at the ends of the cycles of its learning rate.

    The learning rate of step t = 1, 2, ... is :math:`\alpha_0 / 2 \, (\cos(\pi ((t - 1) \bmod l) / l) + 1)` for cycles
    of l steps (in the paper, steps in all by cycles, rounded up) and the rate :math:`\alpha_0` that the optimizer was
    made with, for each group of its own.

    :meth:`step` is `on_step` of :func:`alkernels.models.fit`, and the whole is one of its trackers, for a checkpoint to
    hold the copies.

    Parameters
    ----------
    network : Module
        The one that trains.
    optimizer : Optimizer
        Its optimizer, new and without another schedule of its learning rate.
    cycle_length : int
        Optimizer steps a cycle. Training should end with a cycle: the last steps of one that does not are in no copy.

    Attributes
    ----------
    snapshots : list of Module
        The copies, in evaluation mode, oldest first.
    steps : int
        Steps so far.

    Raises
    ------
    ValueError
        A cycle of less than one step.
    TypeError
        Something else than a network and an optimizer.

    References
    ----------
    .. [1] G. Huang, Y. Li, G. Pleiss, Z. Liu, J. E. Hopcroft, K. Q. Weinberger. Snapshot ensembles: train 1, get M for
       free. ICLR 2017.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> from alkernels.models.ensembles import SnapshotEnsemble
    >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
    >>> network = torch.nn.Linear(4, 3)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> snapshots = SnapshotEnsemble(network, optimizer, cycle_length=10)
    >>> history = alk.models.fit(
    ...     network,
    ...     (x, y),
    ...     epochs=15,
    ...     batch_size=10,  # two steps an epoch, and so three cycles
    ...     optimizer=lambda parameters: optimizer,
    ...     on_step=snapshots.step,
    ...     trackers={"snapshots": snapshots},
    ... )
    >>> snapshots.ensemble(last=2).count
    2
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, *, cycle_length: int) -> None:
        self.network = check_network(network, "network")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.cycle_length = check_count(cycle_length, "cycle_length")
        self.schedule = CosineAnnealingWarmRestarts(optimizer, T_0=self.cycle_length)
        self.snapshots: list[nn.Module] = []
        self.steps = 0

    def step(self) -> None:
        """To be called after each step of the optimizer: sets the next learning rate, copies at the end of a cycle."""
        self.schedule.step()
        self.steps += 1
        if self.steps % self.cycle_length == 0:
            self.snapshots.append(copy.deepcopy(self.network).eval())

    def state_dict(self) -> dict[str, Any]:
        """Copies, steps and learning rates, as tensors, numbers and containers of them."""
        return {
            "cycle_length": self.cycle_length,
            "steps": self.steps,
            "schedule": self.schedule.state_dict(),
            "snapshots": [snapshot.state_dict() for snapshot in self.snapshots],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a :meth:`state_dict`; the optimizer's own state, with its learning rate, is loaded apart.

        Parameters
        ----------
        state_dict : dict

        Raises
        ------
        ValueError
            A state of cycles of another length.
        """
        if state_dict["cycle_length"] != self.cycle_length:
            raise ValueError(
                f"cycle_length must be {state_dict['cycle_length']}, as in the state, got {self.cycle_length}"
            )
        snapshots = []
        for weights in state_dict["snapshots"]:
            snapshot = copy.deepcopy(self.network).eval()
            snapshot.load_state_dict(weights)
            snapshots.append(snapshot)
        self.schedule.load_state_dict(state_dict["schedule"])
        self.snapshots, self.steps = snapshots, state_dict["steps"]

    def ensemble(self, last: int | None = None) -> Ensemble:
        """The latest copies.

        Parameters
        ----------
        last : int, optional
            How many of them. Default: all.

        Returns
        -------
        Ensemble
            In evaluation mode.

        Raises
        ------
        ValueError
            More than there are, or no cycle was finished.
        """
        if not self.snapshots:
            raise ValueError(f"a cycle of {self.cycle_length} steps must be finished, got {self.steps} steps")
        count = len(self.snapshots) if last is None else check_count(last, "last")
        if count > len(self.snapshots):
            raise ValueError(f"last must be at most {len(self.snapshots)}, the finished cycles, got {count}")
        ensemble = Ensemble(self.snapshots[-count:])
        ensemble.eval()
        return ensemble


class SplitHead(nn.Module, Posterior):
    """A trunk in common and several heads, each of which stands for a draw from a posterior.

    Draws run the trunk once a batch, for all heads. A `forward` of :func:`alkernels.collect` that calls the network
    more than once, for example on an image and its mirror image, has to do so alike for all heads.

    Parameters
    ----------
    trunk : Module
        A network of inputs to features, one tensor.
    make_head : callable
        ``make_head()`` gives a new network of features to logits [B, C]. A head must not change features in place.
    heads : int, default 5
        How many.
    generator : Generator, int or None
        Each head's initial weights come from a seed that follows from it and from the head's number. Torch's global
        random numbers go on as if they had not been drawn.

    Attributes
    ----------
    trunk : Module
    heads : ModuleList
    count : int
        How many heads there are, K.

    Raises
    ------
    ValueError
        Less than one head; `make_head` that gives the same head again.
    TypeError
        Something else than networks.

    References
    ----------
    .. [1] W. H. Beluch, T. Genewein, A. Nürnberger, J. M. Köhler. The power of ensembles for active learning in image
       classification. CVPR 2018.
    .. [2] I. Osband, C. Blundell, A. Pritzel, B. Van Roy. Deep exploration via bootstrapped DQN. NeurIPS 2016.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> from alkernels.models.ensembles import SplitHead
    >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
    >>> network = SplitHead(torch.nn.Linear(4, 8), lambda: torch.nn.Linear(8, 3), heads=2, generator=0)
    >>> def batch_loss(network, x, y):
    ...     mask = torch.rand(2, len(x), device=x.device) < 0.5  # which head learns from which rows
    ...     return network.loss(x, y, torch.nn.functional.cross_entropy, mask=mask)
    >>> history = alk.models.fit(network, (x, y), epochs=5, batch_loss=batch_loss)
    >>> network(x).shape
    torch.Size([20, 3])
    """

    def __init__(
        self, trunk: nn.Module, make_head: Make, heads: int = 5, *, generator: torch.Generator | int | None = None
    ) -> None:
        super().__init__()
        check_callable(make_head, "make_head")
        self.count = check_count(heads, "heads")
        self.trunk = check_network(trunk, "trunk")
        seed = seed_of(generator)
        made = []
        for number in range(self.count):
            with own_randomness(derived_seed(seed, "head", number)):
                made.append(check_network(make_head(), "what make_head() gives"))
        check_distinct(made, "networks of make_head()")
        self.heads = nn.ModuleList(made)

    @property
    def networks(self) -> list[nn.Module]:
        """The whole network."""
        return [self]

    @property
    def network(self) -> nn.Module:
        """The trunk with the first head."""
        return _OneHead(self.trunk, self.heads[0])

    @property
    def averaged(self) -> bool:
        """True: the mean of the heads' probabilities stands for all."""
        return True

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Natural logarithms of the mean of the heads' probabilities, of the heads' shape.

        They can stand where logits do: their softmax is the mean.
        """
        features = self.trunk(*args, **kwargs)
        return mean_logits([head(features) for head in self.heads])

    def loss(
        self, x: Any, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """What a minibatch is to be trained with: the sum of the heads' losses.

        Each head gets the gradient of its own loss, and the trunk the mean over the heads of the gradients that their
        losses give it.

        Parameters
        ----------
        x : object
            The trunk's input, B examples.
        y : Tensor of shape (B, ...)
            Their targets.
        criterion : callable
            ``criterion(logits, y)`` gives the loss of one head, for example :func:`torch.nn.functional.cross_entropy`.
        mask : bool Tensor of shape (heads, B), optional
            Which examples train which head; the criterion gets only those, and a head without any has a loss of 0.
            For example ``torch.rand(heads, B) < 0.5``, or numbers drawn once for each example of the data. Default:
            all train all.

        Returns
        -------
        Tensor
            One number. The trunk's part of the gradient is divided as it is computed: the number does not show it.

        Raises
        ------
        ValueError
            A mask of another shape.
        TypeError
            A mask that is not bool.
        """
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"mask must be a bool tensor, got {got}")
            if mask.shape != (self.count, len(y)):
                raise ValueError(
                    f"mask must be of shape ({self.count}, {len(y)}), heads by examples, got {tuple(mask.shape)}"
                )
        features = self.trunk(x)
        if features.requires_grad:
            features = features.view_as(features)  # the trunk's output may be a tensor of the caller's
            features.register_hook(lambda gradient: gradient / self.count)
        total = features.flatten()[:0].sum()  # 0, which can go backward even if the mask leaves nothing
        for number, head in enumerate(self.heads):
            logits, targets = head(features), y
            if mask is not None:
                if not mask[number].any():
                    continue
                logits, targets = logits[mask[number].to(logits.device)], y[mask[number].to(y.device)]
            total = total + criterion(logits, targets)
        return total

    @contextmanager
    def drawing(self) -> Iterator[Outputs]:
        """Draw k is head k."""

        def outputs(forward: Forward) -> Iterator[Tensor]:
            features: list[Any] = []
            for number, head in enumerate(self.heads):
                network = _OneHead(self.trunk, head, features, keeping=number == 0)
                logits = forward(network)
                if network.calls != len(features):
                    raise ValueError(_other_calls(len(features), network.calls))
                yield logits

        yield outputs


class _OneHead(nn.Module):
    """A trunk with one head, their modules named as in the whole.

    What the trunk gives in each call goes to `features` if the head is the first, and is taken from there if it is
    another; without a list the trunk runs each time.
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Module, features: list[Any] | None = None, *, keeping: bool = False
    ) -> None:
        super().__init__()
        self.trunk, self.heads, self.features, self.keeping = trunk, nn.ModuleList([head]), features, keeping
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.features is None:
            return self.heads[0](self.trunk(*args, **kwargs))
        if self.keeping:
            self.features.append(self.trunk(*args, **kwargs))
        elif self.calls == len(self.features):
            raise ValueError(_other_calls(len(self.features), self.calls + 1))
        self.calls += 1
        return self.heads[0](self.features[self.calls - 1])


def _other_calls(first: int, other: int) -> str:
    return f"forward must call the network as often for each head, got {first} for the first and {other} for another"
