"""Strategies of other libraries against ours, through the library's own call, in one process.

    python benchmarks/side_by_side [--out FILE.json] [--plot FILE.png] [--rounds 3] [--only NAME ...]

Prints a table: seconds (medians of rounds in turns, each of another seed), the memory needed on top of what was there,
and what the picks achieve on average, for both. ``ALKERNELS_BENCH_SMALL=1`` takes a small pool, to see that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import data as d
import numpy as np
import report
import threadpoolctl
import torch
from data import Data
from hosts import CASES, OURS, THEIRS, Case

from alkernels._bench.measure import peak_memory

_PACKAGES = ("torch", "numpy", "scikit-learn", "scikit-activeml", "anomalib", "batchbald_redux", "baal", "small-text")


def measured(case: Case, data: Data, rounds: int) -> dict[str, Any]:
    data = data.first(case.most)
    k = int(case.picks * len(data.X)) if isinstance(case.picks, float) else case.picks
    k = min(k, len(data.unlabeled) // 4)
    calls = {side: case.call(side, data, k) for side in (OURS, THEIRS)}
    # batchbald_redux collects garbage at each step, and is not to walk through what other libraries hold
    gc.collect()
    gc.freeze()
    row: dict[str, Any] = {"host": case.host, "strategy": case.strategy, "data": data.name, "rows": len(data.X)}
    row |= {"columns": data.X.shape[1], "picks": k, "quality": case.what}
    times: dict[str, list[float]] = {side: [] for side in calls}
    found: dict[str, list[float]] = {side: [] for side in calls}
    for side, call in calls.items():  # the first run of each is for its memory
        peak = peak_memory(functools.partial(call, 0), "cpu")
        row[f"{side}_peak_mb"] = None if peak is None else peak / 1e6
    for turn in range(rounds):
        for side, call in calls.items():
            begin = time.perf_counter()
            picks = np.asarray(call(turn))
            times[side].append(time.perf_counter() - begin)
            found[side].append(case.quality(data, picks))
            row[f"{side}_distinct"] = min(row.get(f"{side}_distinct", k), len(set(picks.tolist())))
    for side in calls:
        row[f"{side}_quality"], row[f"{side}_qualities"] = statistics.mean(found[side]), found[side]
        row[f"{side}_seconds"] = statistics.median(times[side])
        row[f"{side}_times"] = times[side]
    row["times_as_fast"] = row["theirs_seconds"] / row["ours_seconds"]
    mine, host = row["ours_quality"], row["theirs_quality"]
    row["no_worse"] = math.isclose(mine, host, rel_tol=0.02, abs_tol=1e-9) or case.best(mine, host) == mine
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("side_by_side.json"))
    parser.add_argument("--plot", type=Path, help="also draw the ratios of times")
    parser.add_argument("--rounds", type=int, default=1 if d.SMALL else 3)
    parser.add_argument("--only", nargs="*", help="hosts or strategies")
    options = parser.parse_args()

    warnings.filterwarnings("ignore")
    rows = []
    with threadpoolctl.threadpool_limits(torch.get_num_threads()):
        for case in CASES:
            if options.only and not {case.host, case.strategy} & set(options.only):
                continue
            for data in d.pools():
                # bars, of either side, go nowhere
                with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                    rows.append(measured(case, data, options.rounds))
                print(report.line(rows[-1]), flush=True)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    where = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), **versions}
    options.out.write_text(json.dumps({"where": where, "small": d.SMALL, "rows": rows}, indent=1) + "\n")
    print("\n" + report.table(rows) + f"\n\n{where}; {options.out}")
    worse = [f"{r['host']} {r['strategy']} on {r['data']}" for r in rows if not r["no_worse"]]
    print(f"picks worse than theirs by more than 2 %: {', '.join(worse) or 'none'}")
    if options.plot:
        report.plot(rows, options.plot)


if __name__ == "__main__":
    main()
