"""``alkernels.select``: any strategy by its name, on the arrays that one has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alkernels._inputs import as_tensor, check_generator, check_integer, check_rows
from alkernels._sources import DIMENSIONS, RowsOf, is_rows, shape_of
from alkernels._warnings import warn_user
from alkernels.strategies._arguments import check_one_of
from alkernels.strategies._catalogue import INPUTS, StrategyInfo, info, names, nearest
from alkernels.strategies._picking import TIE_BREAKS, top, top_scores


def select(
    strategy: str,
    batch_size: int,
    *,
    probs: Any = None,
    mc_probs: Any = None,
    votes: Any = None,
    features: Any = None,
    scores: Any = None,
    clusters: Any = None,
    correct: Any = None,
    predictions: Any = None,
    predicted_losses: Any = None,
    discriminator: Any = None,
    labeled_features: Any = None,
    labeled_probs: Any = None,
    labels: Any = None,
    target_mc_probs: Any = None,
    head_weight: Any = None,
    head_bias: Any = None,
    of: str | None = None,
    candidates: Any = None,
    prefilter: str | None = None,
    keep: int | None = None,
    tie_break: str = "index",
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> Any:
    """Pick the rows to label next by any strategy of the catalogue.

    Parameters
    ----------
    strategy : str
        A name of :func:`alkernels.strategies.names`; :func:`alkernels.strategies.info` says what it needs.
    batch_size : int
        How many rows to pick. More than there are: all of them, in order, with a warning.
    probs : Tensor or ndarray of shape (N, C), optional
        Class probabilities of the pool.
    mc_probs : Tensor or ndarray of shape (N, K, C), optional
        The same under K posterior draws.
    votes : integer array of shape (N, K), optional
        The classes that K members vote for, in place of `mc_probs`.
    features : Tensor or ndarray of shape (N, D), optional
        Feature vectors of the pool.
    scores : array of shape (N,), optional
        Scores of your own, for strategies that build on a score. By default those of the strategy `of`.
    clusters : integer array of shape (N,), optional
        A clustering of your own.
    correct : array of shape (N, T), optional
        Whether each row was classified right at each of T presentations during training.
    predictions : integer array of shape (N, T), optional
        The class predicted for each row at each of T checkpoints.
    predicted_losses : array of shape (N,), optional
        The losses that a loss prediction module expects.
    discriminator : array of shape (N,), optional
        The probability of being labelled that a discriminator gives.
    labeled_features, labeled_probs : Tensor or ndarray of shapes (L, D) and (L, C), optional
        The same of the labelled rows.
    labels : integer array of shape (L,), optional
        Their classes.
    target_mc_probs : Tensor or ndarray of shape (T, K, C), optional
        `mc_probs` of the points that predictions are wanted on.
    head_weight, head_bias : arrays of shapes (C, D) and (C,), optional
        The linear last layer.
    of : str, optional
        The strategy whose scores a strategy that builds on scores takes: ``select("power", b, of="bald", ...)``.
    candidates : mask of shape (N,) or row numbers, optional
        Restricts the pool to some rows, as if the others were not there. Indices that come back are of the whole, and
        so is an option `start`.
    prefilter, keep : str and int, optional
        Restricts the pool further, to the `keep` highest scores of another strategy:
        ``select("facility_location", b, prefilter="entropy", keep=10 * b, ...)``.
    tie_break : {"index", "random"}, default "index"
        Which of equal scores come first, for strategies that score each row.
    generator : torch.Generator or int, optional
        Decides all draws. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.
    memory_limit : int, optional
        Bytes that the strategy may take beyond what is in memory already: rows in files are read in tiles that fit.
        Default: a quarter of the free memory.
    checkpoint : str or Path, optional
        A file that a long selection saves its state to, and goes on from: see :func:`alkernels.k_center_greedy`.
    progress : bool, default False
        Show a progress bar, where a strategy takes long.
    **options
        The strategy's own, and those of `of`.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, distinct, in the order picked; ``scores`` (b,), the value that made each pick, higher =
        better. Some strategies return a named tuple with more behind these two. Tensors for tensors, NumPy for NumPy.

    Raises
    ------
    ValueError
        A strategy or an option that does not exist, an array that is missing, arrays that disagree, wrong values.
    TypeError
        An argument of the wrong type.

    Warns
    -----
    UserWarning
        `batch_size` above the number of rows.

    Notes
    -----
    Arrays that the strategy has no use for are left alone, so that a loop can pass all it has; of arrays that stand for
    each other (`mc_probs` and `votes`) the first that its entry names is taken. With an integer seed the strategy draws
    as its function does with that seed; what filters or scores before it draws from seeds derived from it.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])
    >>> alk.select("margin", 2, probs=probs).indices
    tensor([1, 2])
    """
    entry = info(strategy)
    given = {name: value for name, value in locals().items() if name in INPUTS and value is not None}
    run = {"generator": generator, "device": device, "memory_limit": memory_limit, "progress": progress}
    check_generator(generator)
    check_one_of(tie_break, "tie_break", TIE_BREAKS)
    if tie_break != "index" and not entry.each_row:
        raise ValueError(f"tie_break must be 'index' for {strategy}, which picks a batch, got {tie_break!r}")
    if (keep is None) != (prefilter is None):
        raise ValueError(f"prefilter and keep must be given together, got prefilter={prefilter!r} and keep={keep!r}")
    inner = _inner(entry, of, given)
    first = None if prefilter is None else _scoring(prefilter, "prefilter")
    entries = [e for e in (entry, inner, first) if e is not None]
    _check_options(entries, options)
    for e in entries:
        # what gives a strategy its scores is asked for in its place
        _check_needs(e, given, without="scores" if e is entry and inner is not None else None)
    if device is not None and not any("device" in e.parameters for e in entries):
        raise ValueError(f"device must be None for {strategy}, which works where its arrays are, got {device!r}")
    if memory_limit is not None and not any("memory_limit" in e.parameters for e in entries):
        raise ValueError(f"memory_limit must be None for {strategy}, which takes none, got {memory_limit!r}")
    if checkpoint is not None and "checkpoint" not in entry.parameters:
        raise ValueError(f"checkpoint must be None for {strategy}, which saves none, got {checkpoint!r}")

    used = {name: value for name, value in given.items() if any(name in e.arrays for e in entries)} or given
    count, where = _rows_of_the_pool(used, strategy)
    rows = None if candidates is None else check_rows(candidates, "candidates", count, where, "the pool")
    batch_size = check_integer(batch_size, "batch_size")
    most = count if rows is None else len(rows)
    if batch_size < 0:
        raise ValueError(f"batch_size must not be negative, got {batch_size}")
    if most == 0:
        raise ValueError("candidates must have at least one row, got none")
    if first is not None:
        keep = check_integer(keep, "keep")
        if keep < max(1, min(batch_size, most)):
            raise ValueError(f"keep must be at least batch_size, {batch_size}, got {keep}")
        most = min(keep, most)
        before = {**run, "generator": _derived(generator, 1)}
        best = top(torch.as_tensor(_call(first, _restricted(used, rows), options, before)), most).to(where)
        rows = (best if rows is None else rows[best]).sort().values
    wanted, batch_size = batch_size, min(batch_size, most)
    arrays = _restricted(used, rows)
    if inner is not None:
        arrays["scores"] = _call(inner, arrays, options, {**run, "generator": _derived(generator, 2)})
    if rows is not None and options.get("start") is not None and "start" in entry.options:
        options["start"] = _position(options["start"], rows)
    if entry.each_row:
        picked = top_scores(_call(entry, arrays, options, run), batch_size, tie_break=tie_break, generator=generator)
    else:
        picked = _call(entry, arrays, options, run, batch_size=batch_size, checkpoint=checkpoint)
    if wanted > most:
        what = f"all {most} {'rows' if rows is None else 'candidates'} are picked"
        warn_user(f"batch_size is {wanted}: {what}")
    return picked if rows is None else _of_the_whole(picked, rows)


def _inner(entry: StrategyInfo, of: str | None, given: dict[str, Any]) -> StrategyInfo | None:
    """The strategy that gives `entry` its scores, if it takes any and none are given."""
    if of is None:
        if "scores" in given:
            return None
        if entry.of is None and ("scores",) in entry.needs:
            wanted = f"of=, the strategy whose scores it takes, or scores= {_shape('scores')}"
            raise ValueError(f"{entry.name} needs {wanted}")
        return None if entry.of is None else info(entry.of)
    if "scores" not in entry.arrays:
        raise ValueError(f"of must not be given for {entry.name}, which takes no scores, got {of!r}")
    if "scores" in given:
        raise ValueError(f"of must not be given together with scores, got {of!r}")
    return _scoring(of, "of")


def _scoring(name: str, argument: str) -> StrategyInfo:
    if name not in names():
        raise ValueError(f"{argument} must be a name in the catalogue, got {name!r}{nearest(str(name), names())}")
    entry = info(name)
    if not entry.each_row:
        raise ValueError(f"{argument} must be a strategy that scores each row, got {name!r}, which picks a batch")
    return entry


def _shape(name: str) -> str:
    return f"{INPUTS[name].shape} ({INPUTS[name].meaning})"


class Involved(NamedTuple):
    """A strategy, the one whose scores it takes, and the one that filters before it."""

    strategy: StrategyInfo
    of: StrategyInfo | None
    prefilter: StrategyInfo | None

    @property
    def all(self) -> list[StrategyInfo]:
        return [e for e in self if e is not None]


def involved(strategy: str, options: Mapping[str, Any]) -> Involved:
    """Who takes part where `select` is called with such options, which are checked, before there are any arrays."""
    entry = info(strategy)
    of, prefilter = options.get("of") or entry.of, options.get("prefilter")
    found = Involved(entry, info(of) if of else None, info(prefilter) if prefilter else None)
    selects = ("of", "prefilter", "keep", "tie_break", "device", "memory_limit", "checkpoint", "progress")
    _check_options(found.all, {name: value for name, value in options.items() if name not in selects})
    return found


def _check_options(entries: list[StrategyInfo], options: dict[str, Any]) -> None:
    known = list(dict.fromkeys(option for e in entries for option in e.options))
    for option in options:
        if option not in known:
            who = " or ".join(dict.fromkeys(e.name for e in entries))
            raise ValueError(f"{option} is not an option of {who}{nearest(option, known)}")


def _check_needs(entry: StrategyInfo, given: dict[str, Any], without: str | None) -> None:
    missing = [g for g in entry.needs if without not in g and not any(name in given for name in g)]
    if missing:
        wanted = ", and ".join(" or ".join(f"{name}= {_shape(name)}" for name in g) for g in missing)
        got = ", ".join(given) or "no array"
        raise ValueError(f"{entry.name} needs {wanted}, got {got}")


def _rows_of_the_pool(used: dict[str, Any], strategy: str) -> tuple[int, torch.device]:
    """How many, on which device; the same for all arrays."""
    found: dict[str, int] = {}
    where = torch.device("cpu")
    for name, value in used.items():
        if not INPUTS[name].pool:
            continue
        parts = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value,)
        for part in parts:
            if not hasattr(part, "shape") and not is_rows(part):
                raise TypeError(f"{name} must be an array {INPUTS[name].shape}, got {type(value).__name__}")
            dims = INPUTS[name].shape.count(",") + 1
            if len(shape_of(part)) != dims:
                raise ValueError(f"{name} must be {DIMENSIONS[dims]}, got shape {shape_of(part)}")
        rows = [shape_of(part)[0] for part in parts]
        if rows[0] != rows[-1]:
            raise ValueError(f"the two factors of {name} must have as many rows, got {rows[0]} and {rows[-1]}")
        if rows[0] == 0:
            raise ValueError(f"{name} must have at least one row, got shape {shape_of(parts[0])}")
        if isinstance(parts[0], torch.Tensor) and not found:
            where = parts[0].device
        found[name] = rows[0]
    if not found:
        raise ValueError(f"{strategy} needs an array of the pool, got {', '.join(used) or 'none'}")
    if len(set(found.values())) > 1:
        counts = ", ".join(f"{n} of {name}" for name, n in found.items())
        raise ValueError(f"arrays of the pool must have as many rows, got {counts}")
    return next(iter(found.values())), where


def _restricted(arrays: dict[str, Any], rows: torch.Tensor | None) -> dict[str, Any]:
    """The arrays with some rows of the pool only."""
    if rows is None:
        return dict(arrays)

    def some(name: str, value: Any) -> Any:
        if not INPUTS[name].pool:
            return value
        if isinstance(value, (tuple, list)) and len(value) == 2 and name == "features":
            return tuple(RowsOf(v, rows) for v in value)
        if name in ("probs", "mc_probs", "features", "scores"):
            return RowsOf(value, rows) if is_rows(value) else value
        chosen = as_tensor(value, name, f"an array {INPUTS[name].shape}")[rows.to(getattr(value, "device", "cpu"))]
        return chosen if isinstance(value, torch.Tensor) else chosen.numpy()

    return {name: some(name, value) for name, value in arrays.items()}


def _call(
    entry: StrategyInfo, arrays: dict[str, Any], options: dict[str, Any], run: dict[str, Any], **more: Any
) -> Any:
    """The strategy's function with what it takes of all that there is."""
    parameters = entry.parameters
    offered = {**arrays, **options, **run, **more}
    for group in entry.needs:
        for name in [name for name in group if name in arrays][1:]:
            del offered[name]  # the first stands for the others
    if "pool" in parameters:
        offered["pool"] = next(value for name, value in arrays.items() if INPUTS[name].pool)
    return entry.function(**{name: value for name, value in offered.items() if name in parameters})


def _derived(generator: Any, stage: int) -> Any:
    """For what comes before the strategy: another seed, so that its draws are not the strategy's own."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    seeds = torch.randint(2**63 - 1, (stage,), generator=torch.Generator().manual_seed(int(generator)))
    return int(seeds[-1])


def _position(start: Any, rows: torch.Tensor) -> int:
    """A row of the whole pool as one of the restricted pool."""
    start = check_integer(start, "start")
    found = (rows == start).nonzero()
    if not len(found):
        raise ValueError(f"start must be one of the candidates that are left, got {start}")
    return int(found[0])


def _of_the_whole(picked: Any, rows: torch.Tensor) -> Any:
    """Row numbers of the restricted pool as those of the whole."""
    where = {}
    for field in picked._fields:
        value = getattr(picked, field)
        if field == "indices" or field.endswith("_indices"):
            is_tensor = isinstance(value, torch.Tensor)
            where[field] = rows.to(value.device)[value] if is_tensor else rows.cpu().numpy()[value]
    return picked._replace(**where)
