"""k-center with outliers: the smallest radius by integer programming, and approximations by greedy discs."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

from alkernels._inputs import Pool
from alkernels._packages import package
from alkernels.ops.greedy_coverage import KERNELS, Coverage
from alkernels.ops.lazy_greedy import LazyGreedy

# The bisection of the 3-approximation ends where it knows the radius this well.
_TOLERANCE = 1e-3
_LARGEST_STEPS = 40


def radius_of(distances: np.ndarray, outliers: int) -> float:
    """The smallest radius that all but `outliers` of some distances are within."""
    within = len(distances) - outliers
    return float(np.partition(distances, within - 1)[within - 1]) if within > 0 else 0.0


def exact(
    distances: np.ndarray,
    to_labeled: np.ndarray,
    picks: np.ndarray,
    count: int,
    outliers: int,
    bound: float,
    time_limit: float,
    progress: bool,
) -> tuple[np.ndarray, bool]:
    """At most `count` centres of the smallest radius, and whether that is proved.

    Parameters
    ----------
    distances : ndarray of shape (n, n)
    to_labeled : ndarray of shape (n,)
        To the nearest labelled row; infinite without.
    picks : ndarray of shape (n',)
        Centres to improve on.
    count : int
        How many there may be.
    outliers : int
        How many rows need not be within the radius.
    bound : float
        No radius below this is possible.
    time_limit : float
        Seconds for all steps together.
    """
    solvers = package("scipy.optimize", "strategies"), package("scipy.sparse", "strategies")
    deadline = time.monotonic() + time_limit
    best, radius = picks, _radius(distances, to_labeled, picks, outliers)
    some = [x[(x >= bound) & (x < radius)] for x in (np.zeros(1), distances, to_labeled)]
    levels = np.unique(np.concatenate(some))
    low, high = 0, len(levels)  # the optimum is levels[low] at least, and levels[high], or the first radius, at most
    with tqdm(desc="robust k-center", unit="step", disable=not progress) as bar:
        while low < high:
            middle = (low + high) // 2
            left = deadline - time.monotonic()
            found = None
            if left > 0:
                found = _centers(*solvers, distances, to_labeled, levels[middle], count, outliers, left)
            if found is None:
                return best, False
            if len(found) > count:
                low = middle + 1
            else:
                best = _needed(distances, to_labeled, found, levels[middle], outliers)
                radius = _radius(distances, to_labeled, best, outliers)
                high = min(middle, int(np.searchsorted(levels, radius)))
            bar.update()
            bar.set_postfix(radius=f"{radius:.6g}")
    return best, True


def _radius(distances: np.ndarray, to_labeled: np.ndarray, centers: np.ndarray, outliers: int) -> float:
    return radius_of(np.minimum(to_labeled, distances[:, centers].min(1, initial=np.inf)), outliers)


def _centers(
    optimize: ModuleType,
    sparse: ModuleType,
    distances: np.ndarray,
    to_labeled: np.ndarray,
    radius: float,
    count: int,
    outliers: int,
    seconds: float,
) -> np.ndarray | None:
    """Up to `count` centres that leave no more than `outliers` rows out; all rows if there are none; None: no answer.

    One binary u_j a row says whether it is a centre, and one number z_i for each row that no labelled row covers,
    whether it is left out: ``Σ_{j: d_ij <= radius} u_j + z_i >= 1``, ``Σ u <= count``, ``Σ z <= outliers``.
    """
    rows = np.flatnonzero(to_labeled > radius)
    n, m = len(distances), len(rows)
    if m <= outliers:
        return rows[:0]
    near = sparse.csr_array((distances[rows] <= radius).astype(np.float64))
    some = optimize.LinearConstraint
    solution = optimize.milp(
        np.zeros(n + m),
        constraints=[
            some(sparse.hstack([near, sparse.eye_array(m)], format="csr"), 1, np.inf),
            some(sparse.csr_array(np.repeat([1.0, 0.0], [n, m])[None]), -np.inf, count),
            some(sparse.csr_array(np.repeat([0.0, 1.0], [n, m])[None]), -np.inf, outliers),
        ],
        integrality=np.repeat([1, 0], [n, m]),
        bounds=optimize.Bounds(0, 1),
        options={"time_limit": seconds},
    )
    if solution.x is not None:
        centers = np.flatnonzero(solution.x[:n] > 0.5)
        # the solver's tolerances are not ours
        if len(centers) <= count and (~(distances[np.ix_(rows, centers)] <= radius).any(1)).sum() <= outliers:
            return centers
        return None
    return np.arange(n) if solution.status == 2 else None


def _needed(
    distances: np.ndarray, to_labeled: np.ndarray, centers: np.ndarray, radius: float, outliers: int
) -> np.ndarray:
    """The centres without those that the radius does not need: what is left over can be spent better."""
    near = distances[:, centers] <= radius
    times = near.sum(1) + (to_labeled <= radius)
    keep = np.ones(len(centers), dtype=bool)
    for j in range(len(centers)):
        fewer = times - near[:, j]
        if (fewer == 0).sum() <= outliers:
            keep[j], times = False, fewer
    return centers[keep]


class Discs:
    """Greedy covers by discs of one radius or another.

    Parameters
    ----------
    pool : Pool
    labeled : Pool, optional
        Centres that are there already.
    outliers : int
        How many rows need not be covered.
    """

    def __init__(self, pool: Pool, labeled: Pool | None, outliers: int) -> None:
        self.pool, self.labeled, self.outliers = pool, labeled, outliers

    def centers(self, count: int, radius: float, spread: float) -> torch.Tensor | None:
        """Up to `count` centres that leave no more than the outliers outside of `spread` times the radius, or None.

        Each is the one whose disc of the radius holds most rows that are still outside. With a spread of 3 this is
        Charikar's rule: it fails only where no `count` centres do within the radius itself.
        """
        ones = torch.ones(self.pool.count, dtype=torch.float64, device=self.pool.device)
        covered, width = torch.zeros_like(ones), max(radius * (1 + 1e-9), 1e-140)
        discs = Coverage(self.pool, KERNELS["tophat"], width, ones, covered)
        wide = Coverage(self.pool, KERNELS["tophat"], spread * width, ones, covered, self.labeled)  # the same `covered`
        greedy = LazyGreedy(
            torch.full_like(ones, torch.inf),
            (lambda rows: discs.gains(rows, exact=False)) if discs.narrow else None,
            lambda rows: discs.gains(rows, exact=True),
        )
        picks: list[int] = []
        while (outside := int((covered == 0).sum()) > self.outliers) and len(picks) < count:
            pick, _ = greedy.best()
            picks.append(pick)
            greedy.exclude(pick)
            wide.add(self.pool.gather(torch.tensor([pick], device=self.pool.device))[0])
        return None if outside else torch.tensor(picks, dtype=torch.int64, device=self.pool.device)


def approximate(
    discs: Discs,
    picks: torch.Tensor,
    radius_of_picks: Callable[[torch.Tensor], float],
    bound: float,
    progress: bool,
) -> torch.Tensor:
    """At most as many centres as `picks` are, of at most three times the smallest radius; never worse than `picks`.

    A spread of 1 finds small radii but promises nothing. Where they are not proved to be within three times the
    smallest by the lower bound, a spread of 3 is tried until they are.

    Parameters
    ----------
    discs : Discs
    picks : Tensor of shape (b,)
    radius_of_picks : function
        The radius of some centres.
    bound : float
        No radius below this is possible.
    """
    best, radius = picks, radius_of_picks(picks)
    with tqdm(desc="robust k-center", unit="step", disable=not progress) as bar:
        for spread in (1.0, 3.0):
            low, high = bound, radius
            for _ in range(_LARGEST_STEPS):
                gap = high - low if spread == 1 else radius - 3 * low
                if gap <= _TOLERANCE * high:
                    break
                middle = (low + high) / 2
                found = discs.centers(len(picks), middle, spread)
                if found is None:
                    low = middle
                else:
                    reached = radius_of_picks(found)
                    if reached < radius:
                        best, radius = found, reached
                    high = min(middle, reached)
                bar.update()
                bar.set_postfix(radius=f"{radius:.6g}")
    return best
