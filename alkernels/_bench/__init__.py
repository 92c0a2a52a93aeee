"""``alkernels bench``: ours against the plain PyTorch twins in one run, as a table, numbers and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from alkernels._bench import cases, report, strategies
from alkernels._bench.cases import Case
from alkernels._bench.data import QUICK_NUMBERS, QUICK_ROWS, picks
from alkernels._bench.measure import Row, devices, label, moved, race
from alkernels._files import check_out, read_array, replacing
from alkernels._inputs import Pool
from alkernels._packages import package

CASES = [*cases.CASES, *strategies.CASES]


def bench(
    ops: Sequence[str], features: str | None, batch_size: int | None, quick: bool, out: str, numbers: str | None
) -> None:
    """Races, prints the table as it goes, writes the picture and the numbers.

    Parameters
    ----------
    ops : sequence of str
        Names of kernels; empty for all.
    features : str, optional
        A file to race on instead of the pools that come with packages.
    batch_size : int, optional
        How many rows of it to pick.
    quick : bool
        One small pool an op, ours and the plain twin only, few rounds.
    out : str
        The picture, a .png file.
    numbers : str, optional
        The numbers, a .json file; by default beside the picture.
    """
    inputs = [] if features is None else [features]
    picture = check_out(out, (".png",), inputs)
    beside = str(Path(out).with_suffix(".json")) if numbers is None else numbers
    listing = check_out(beside, (".json",), inputs, flag="--json")
    races = chosen(ops, with_features=features is not None)
    if features is None and batch_size is not None:
        raise ValueError(f"-b/--batch-size goes with --features, got {batch_size} without it")
    x = None if features is None else own_features(features, quick)
    k = min(picks(quick), len(x)) if x is not None else 0
    if x is not None and batch_size is not None:
        if batch_size > len(x):
            raise ValueError(f"-b/--batch-size must be at most {len(x)} (rows of {features}), got {batch_size}")
        k = batch_size
    package("matplotlib", "bench")  # before the minutes, not after them

    about = report.machine()
    rows: list[Row] = []
    print(report.title(about), *report.header(), sep="\n", flush=True)
    for case in races:
        if x is None:
            pools = {name: partial(make, quick) for name, make in list(case.pools.items())[: 1 if quick else None]}
        else:
            assert case.own is not None and features is not None
            pools = {Path(features).name: partial(case.own, x, k)}
        for name, make in pools.items():
            data = make()
            pool = label(name, data)
            for device in devices():
                print(report.heading(case.op, pool, device), flush=True)
                raced = race(case, pool, moved(data, device), device, quick)
                print(*map(report.line, raced), sep="\n", flush=True)
                rows += raced
    figure = report.draw(about, rows)
    with replacing(listing, "--json") as file:
        file.write(json.dumps(report.numbers(about, quick, rows), indent=1, allow_nan=False).encode())
    with replacing(picture) as file:
        figure.savefig(file, format="png", dpi=150)
    print(f"picture written to {out}, numbers to {beside}")


def chosen(ops: Sequence[str], with_features: bool) -> list[Case]:
    """The cases of the ops that were asked for; with a user's features those that take some."""
    names = list(dict.fromkeys(case.op for case in CASES))
    for op in ops:
        if op not in names:
            raise ValueError(f"OP must be one of {', '.join(names)}, got {op}")
        if with_features and all(case.own is None for case in CASES if case.op == op):
            raise ValueError(f"--features is not an option of {op}, which takes no features")
    return [case for case in CASES if (not ops or case.op in ops) and (case.own is not None or not with_features)]


def own_features(file: str, quick: bool) -> torch.Tensor:
    """A user's file as float32 rows in memory; its first rows with `quick`."""
    pool = Pool(read_array(file, "--features"), f"--features {file}")
    if pool.count == 0:
        raise ValueError(f"{pool.name} must have at least one row, got shape {tuple(pool.sources[0].shape)}")
    most = max(1, min(QUICK_ROWS, QUICK_NUMBERS // pool.widths[0])) if quick else pool.count
    (rows,) = pool.tile(0, min(pool.count, most))
    x = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    Pool(x, pool.name).check_finite()
    return x
