"""BatchBALD: a batch by greedy joint mutual information, lazily."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from alkernels._checkpoint import Checkpoint, checkpointed
from alkernels._inputs import Array, Selection, check_generator, check_integer, check_memory_limit, not_compiled
from alkernels._probabilities import Probabilities
from alkernels._streaming import explain_memory
from alkernels._warnings import warn_user
from alkernels.ops.joint_entropy import (
    MAX_CONFIGURATIONS,
    NUM_SAMPLES,
    Configurations,
    check_draws,
    check_positive,
    compiled_seed,
)
from alkernels.ops.lazy_greedy import LazyGreedy
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.ops.running_distances import rounding_share
from alkernels.ops.selection import detached, library

# Beside tiles and configurations a selection takes so many bytes, and so many a row.
_BYTES, _BYTES_A_ROW = 48 << 20, 48
# Gains below this are no information: such picks go by BALD, then by index.
NOTHING = 1e-9
# Gains and BALD come of different sums: by how much rounding may put one above the other, as a share of 1 + H.
_ABOVE = 1e-12
# Share of log K, the most that K draws can tell, from which on the rest of the batch is picked on what is left.
_SATURATED = 0.95
# Where configurations are sampled, gains may seem to rise from step to step: three times the largest rise seen, on
# random and on real draws, times the root of the number of configurations.
_NOISE = 0.5


def batchbald(
    probs: Array | Probabilities,
    batch_size: int,
    *,
    log_input: bool = False,
    max_configurations: int = MAX_CONFIGURATIONS,
    num_samples: int = NUM_SAMPLES,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection:
    """Pick a batch whose labels together say the most about the posterior draws.

    Greedy maximisation of ``I(y_1, ..., y_b; ω)``: each pick adds the most to the joint mutual information of the
    batch, so that near-copies of a pick are worth little. Only candidates that may still win are scored.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities under K posterior draws. Draw k must be the same weights (dropout masks) for every row.
        float16, bfloat16, float32 or float64, any strides; a ``numpy.memmap``, or a dataset in a file that
        slices by rows (HDF5, Zarr, safetensors, Arrow).
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    max_configurations : int, default 40000
        The picks' label configurations are enumerated while at most so many have a probability above zero (``C ** t``
        after t picks, or fewer): these steps are exact. From then on configurations are sampled.
    num_samples : int, default 40000
        How many are sampled then: ``max(1, num_samples // K)`` from each draw.
    generator : torch.Generator or int, optional
        Draws the samples. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with: copied to it once where it takes up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where probs is.
    memory_limit : int, optional
        Bytes that the call may take beyond what is in memory already: rows in files are read in tiles that fit.
        Default: a quarter of the free memory.
    checkpoint : str or Path, optional
        A file that the state is saved to now and then, and taken from where it exists: a run that was killed at any
        moment goes on to the picks it would have made. Ctrl-C saves before it ends; a second one ends at once.
        Probs are walked once more, for a fingerprint. The file stays behind.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Selection
        ``indices`` (b,) int64, distinct, in the order picked; ``scores`` (b,) float64, each pick's gain in joint mutual
        information, in nats: their running sum is the batch's score, at most ``log K``.

    Raises
    ------
    ValueError
        `batch_size` or an option out of range, distributions that do not sum to 1 within 1e-3, negative probabilities,
        NaN, shapes that disagree.
    TypeError
        An array that is not floating-point, an argument of the wrong type.

    Warns
    -----
    UserWarning
        The batch reaches 0.95 of ``log K``: K draws cannot tell more, and the rest is picked on next to nothing. Or K
        is 1, where every score is 0.

    Notes
    -----
    The first pick is the BALD argmax. While configurations are enumerated, picks and gains are those of scoring every
    candidate at every step in float64 (float32 only bounds gains from above), ties to the lowest index; among gains
    below 1e-9 the largest BALD wins. Once they are sampled, gains are estimates: the picks' labels are drawn once and
    each later pick's are added to them, and candidates are skipped that were too far behind at an earlier step, by a
    margin of the noise; with more samples both approach the exact answer. What a pick's rows lack of 1 by rounding is
    taken out of the configurations. At most ``2 b N K C M`` operations, M the
    number of configurations; memory beyond `probs`: 50 MB, 40 bytes a row, and 32 bytes a configuration and draw. Not
    differentiable.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> a, b = [0.9, 0.1], [0.2, 0.8]
    >>> probs = torch.tensor([[a, a, b, b], [a, a, b, b], [a, b, a, b]])  # row 1 is a copy of row 0
    >>> alk.batchbald(probs, 2).indices
    tensor([0, 2])
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device, memory_limit=memory_limit, checkpoint=checkpoint)
        return Selection(
            *torch.ops.alkernels.batchbald(
                *detached(probs),
                batch_size,
                log_input=log_input,
                max_configurations=max_configurations,
                num_samples=num_samples,
                seed=compiled_seed(generator),
            )
        )
    draws = check_draws(probs, "probs", log_input, device=device)
    batch_size = check_integer(batch_size, "batch_size")
    if not 0 <= batch_size <= draws.count:
        raise ValueError(f"batch_size must be between 0 and {draws.count} (rows of {draws.name}), got {batch_size}")
    check_positive(max_configurations, "max_configurations")
    check_positive(num_samples, "num_samples")
    check_generator(generator)
    configured = max(max_configurations, num_samples) * draws.shape[1]
    draws.limit_memory(check_memory_limit(memory_limit), _BYTES + _BYTES_A_ROW * draws.count + 32 * configured)
    settings = {
        "batch_size": batch_size,
        "log_input": log_input,
        "max_configurations": max_configurations,
        "num_samples": num_samples,
    }
    # a generator is asked for a seed once there is something to draw, unless that has to be the same when it goes on
    drawn = generator if checkpoint is not None else 0
    with (
        explain_memory(draws.pool, f"{batch_size} picks", fewer="batch_size"),
        checkpointed(checkpoint, "batchbald", {"probs": draws.pool}, drawn, **settings) as saved,
    ):
        seed = generator if checkpoint is None else saved.seed
        configurations = Configurations(draws, max_configurations, num_samples, seed)
        picks, gains = select(draws, batch_size, configurations, saved, progress=progress)
    return Selection(draws.pool.out(picks), draws.pool.out(gains))


def select(
    probs: Probabilities, batch_size: int, configurations: Configurations, saved: Checkpoint, *, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lazy rule: picks and their gains."""
    alone, gain, greedy = lazily(probs, configurations)
    picks: list[int] = []
    gains: list[float] = []
    warned = False

    def add(pick: int) -> None:
        configurations.add(probs.gather(torch.tensor([pick], device=probs.device), torch.float64)[0])
        greedy.margin = margin(configurations)

    def state() -> dict[str, Any]:
        found = {"picks": picks, "gains": gains, "bounds": greedy.bounds, "block": greedy.block}
        return {**found, "warned": warned}

    if saved.state is not None:
        picks, gains, warned = (saved.state[name] for name in ("picks", "gains", "warned"))
        greedy.bounds, greedy.block = saved.state["bounds"].to(probs.device), saved.state["block"]
        for pick in picks[: batch_size - 1]:
            add(pick)
    if probs.shape[1] == 1 and batch_size:
        warn_user(f"{probs.name} holds one draw, which cannot disagree: every score is 0")
    with tqdm(total=batch_size, initial=len(picks), desc="BatchBALD", unit="pick", disable=not progress) as bar:
        for step in range(len(picks), batch_size):
            if step == 0:
                pick = int((alone == alone.max()).nonzero()[0])
                found = float(alone[pick])
            else:
                pick, found = greedy.best()
                if found < NOTHING and not configurations.sampled:
                    left = torch.where(greedy.bounds > -torch.inf, alone, -torch.inf)
                    pick = int((left == left.max()).nonzero()[0])
                    found = float(gain(torch.tensor([pick], device=probs.device), True))
                if probs.shape[1] == 1:
                    found = 0.0
                elif not configurations.sampled:
                    found = max(found, 0.0)
            picks.append(pick)
            gains.append(found)
            greedy.exclude(pick)
            bar.update()
            if step + 1 < batch_size:
                add(pick)
            warned = warned or saturated(gains, probs.shape[1], batch_size)
            saved.after_block(state, last=step + 1 == batch_size)
    device = probs.device
    return (
        torch.tensor(picks, dtype=torch.int64, device=device),
        torch.tensor(gains, dtype=torch.float64, device=device),
    )


def lazily(
    probs: Probabilities, configurations: Configurations
) -> tuple[torch.Tensor, Callable[[torch.Tensor, bool], torch.Tensor], LazyGreedy]:
    """What the rule works with: each row's BALD, the gains of some rows beside the configurations, in float32 or in
    float64, and the rows of the largest.
    """
    alone, entropies = prediction_scores(probs, "bald"), prediction_scores(probs, "mean_entropy")  # checked as well

    def gain(rows: torch.Tensor, wide: bool) -> torch.Tensor:
        parts = [
            configurations.conditional_entropy(probs.gather(some, torch.float64 if wide else None), wide=wide)
            for some in rows.split(probs.rows_a_tile)
        ]
        return torch.cat(parts) - entropies[rows]

    share = rounding(probs.shape[1])

    def estimate(rows: torch.Tensor) -> torch.Tensor:
        found = gain(rows, False)
        return found + share * (found + entropies[rows] + 1)

    greedy = LazyGreedy(
        torch.where(alone > 0, alone + _ABOVE * (1 + alone + entropies), 0.0),
        None if probs.dtype == torch.float64 else estimate,
        lambda rows: gain(rows, True),
    )
    return alone, gain, greedy


def margin(configurations: Configurations) -> float:
    """By how much gains may seem to rise, once configurations are sampled."""
    return _NOISE / math.sqrt(len(configurations.mass)) if configurations.sampled else 0.0


def saturated(gains: list[float], draws: int, batch_size: int) -> bool:
    """Whether the picks tell all that the draws can, with more picks to come; warns."""
    most = math.log(draws)
    if not (most > 0 and sum(gains) > _SATURATED * most and len(gains) < batch_size):
        return False
    warn_user(
        f"after {len(gains)} of {batch_size} picks the batch holds {sum(gains):.3g} of the {most:.3g} nats "
        f"that {draws} draws can tell: the rest is picked on next to nothing; use more draws"
    )
    return True


def rounding(draws: int) -> float:
    """By how much a float32 conditional entropy H may be off, as a share of H + 1.

    A product q off by a share e of itself moves -q log q by at most e q (|log q| + 1). e: the register tile's sums, the
    roundings of weights, probabilities, masses and the logarithm.
    """
    return rounding_share(draws, torch.float32) + 6 * torch.finfo(torch.float32).eps


@torch.library.impl(library, "batchbald", "CompositeExplicitAutograd")
def _(  # type: ignore[no-untyped-def]
    probs, batch_size, *, log_input=False, max_configurations=MAX_CONFIGURATIONS, num_samples=NUM_SAMPLES, seed=0
):
    return tuple(
        batchbald(
            probs,
            batch_size,
            log_input=log_input,
            max_configurations=max_configurations,
            num_samples=num_samples,
            generator=seed,
        )
    )


@torch.library.register_fake("alkernels::batchbald")
def _(  # type: ignore[no-untyped-def]
    probs, batch_size, *, log_input=False, max_configurations=MAX_CONFIGURATIONS, num_samples=NUM_SAMPLES, seed=0
):
    torch._check(probs.dim() == 3, lambda: f"probs must be three-dimensional [N, K, C], got {probs.dim()}")
    torch._check(batch_size >= 0, lambda: f"batch_size must not be negative, got {batch_size}")
    torch._check(batch_size <= probs.shape[0], lambda: f"batch_size must be at most N, got {batch_size}")
    return probs.new_empty(batch_size, dtype=torch.int64), probs.new_empty(batch_size, dtype=torch.float64)
