"""The table, the numbers and the picture of a race."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from alkernels._bench.cases import OURS
from alkernels._bench.measure import Row
from alkernels._load import build_info
from alkernels._packages import package

# Of Okabe and Ito's palette, told apart by the colour-blind too.
_WON, _LOST, _INK = "#0072B2", "#D55E00", "#222222"


def machine() -> dict[str, Any]:
    """What the numbers depend on: processors, threads, versions, instruction set."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    info = build_info()
    return {
        "cpu": found[1].strip() if found else platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if info["cuda"] == "yes" and torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": info["cpu_capability"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "build": info,
    }


def title(about: dict[str, Any]) -> str:
    gpu = f", {about['gpu']}" if about["gpu"] else ""
    return f"{about['cpu']}{gpu}, {about['threads']} threads, {about['cpu_capability']}, torch {about['torch']}"


def header() -> list[str]:
    return [
        "medians; x = times the time of alkernels; MB beyond the input; sgemm: a matrix product of as many operations",
        f"{'':38} {'ms':>9} {'spread':>7} {'x':>7} {'rate':>13} {'peak MB':>8} {'passes':>7} {'of sgemm':>9}",
    ]


def heading(op: str, pool: str, device: str) -> str:
    return f"{op}, {pool}" + ("" if device == "cpu" else f", {device}")


def line(r: Row) -> str:
    ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
    peak = "" if r.peak_mb is None else f"{r.peak_mb:.1f}"
    of_sgemm = "" if r.of_sgemm is None else f"{r.of_sgemm:.2f}"
    passes = "" if r.passes is None else str(r.passes)
    return (
        f"  {r.side:36} {1e3 * r.seconds:9.2f} {r.spread:7.2f} {ratio:>7} {f'{r.rate:.3g} {r.unit}':>13}"
        f" {peak:>8} {passes:>7} {of_sgemm:>9}"
    )


def table(about: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """All lines at once."""
    lines = [title(about), *header()]
    for text, group in _groups(rows):
        lines += [text, *map(line, group)]
    return lines


def numbers(about: dict[str, Any], quick: bool, rows: Sequence[Row]) -> dict[str, Any]:
    """What the JSON file holds."""
    return {"machine": about, "quick": quick, "rows": [asdict(r) for r in rows]}


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for names, group in groupby(rows, key=lambda r: (r.op, r.pool, r.device)):
        yield heading(*names), list(group)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def draw(about: dict[str, Any], rows: Sequence[Row]) -> Any:
    """The figure: a bar for each rival, from 1 to its ratio; variants of ours are left to the table."""
    matplotlib, figures = package("matplotlib", "bench"), package("matplotlib.figure", "bench")
    bars: list[tuple[float, Row, Row]] = []
    headings: list[tuple[float, str]] = []
    y = 0.0
    for text, group in _groups(rows):
        ours = next(r for r in group if r.side == OURS)
        headings.append((y, text))
        for r in group:
            if not r.side.startswith(OURS):
                y += 1
                bars.append((y, r, ours))
        y += 1.5
    ratios = [r.ratio or 1.0 for _, r, _ in bars]
    low, high = min([0.8, *ratios]), max([2.0, *ratios])
    with matplotlib.rc_context({"font.size": 12, "text.color": _INK, "axes.labelcolor": _INK}):
        figure = figures.Figure(figsize=(12, 2.2 + 0.4 * y), layout="constrained")
        figure.suptitle("How many times the time of alkernels the others take", fontsize=18, fontweight="bold")
        axes = figure.subplots()
        # room on the right for what the longest bar is annotated with
        axes.set(xscale="log", xlim=(low / 1.3, high * (high / low) ** 0.55), ylim=(y - 0.8, -0.8))
        for (at, r, ours), ratio in zip(bars, ratios, strict=True):
            won = ratio >= 1
            axes.barh(at, ratio - 1, left=1, height=0.8, color=_WON if won else _LOST)
            factor = f"{ratio:.{max(0, 1 - math.floor(math.log10(ratio)))}f} x"
            axes.plot([1, 1], [at - 0.5, at + 0.5], color=_INK, linewidth=2)
            axes.annotate(factor, (max(ratio, 1), at), (6, 0), textcoords="offset points", va="center", weight="bold")
            axes.annotate(
                f"{_seconds(r.seconds)} against {_seconds(ours.seconds)}",
                (max(ratio, 1), at),
                (62, 0),
                textcoords="offset points",
                va="center",
                color="#555555",
            )
        axes.set_yticks([at for at, _, _ in bars], [r.side for _, r, _ in bars])
        for at, text in headings:
            axes.annotate(
                text,
                (0, at),
                (6, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                weight="bold",
            )
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low / 1.3 <= t <= high]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(
            f"times as long, on a logarithmic scale; blue: alkernels is faster, orange: slower\n{title(about)}"
        )
    return figure
