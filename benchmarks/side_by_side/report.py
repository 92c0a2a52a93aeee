"""The table and the plot of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_MARKERS = {"digits": "o", "MNIST": "s", "normal": "^"}


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def line(r: dict[str, Any]) -> str:
    mb = " / ".join("?" if r[f"{s}_peak_mb"] is None else f"{r[f'{s}_peak_mb']:.0f}" for s in ("ours", "theirs"))
    distinct = "" if r["theirs_distinct"] == r["picks"] else f" ({r['theirs_distinct']} distinct of theirs)"
    return (
        f"| {r['host']} | `{r['strategy']}` | {r['data']}, {r['rows']} x {r['columns']} | {r['picks']}{distinct} "
        f"| {_time(r['ours_seconds'])} | {_time(r['theirs_seconds'])} | x {r['times_as_fast']:.3g} "
        f"| {mb} | {r['quality']} | {r['ours_quality']:.4g} / {r['theirs_quality']:.4g} |"
    )


def table(rows: list[dict[str, Any]]) -> str:
    head = "| library | strategy | pool | picks | ours | theirs | | peak MB, ours / theirs | quality | ours / theirs |"
    return "\n".join([head, "|" + "---|" * 10, *map(line, rows)])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One line a strategy, one mark a pool: how many times as fast ours is."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys((r["host"], r["strategy"]) for r in rows))
    hosts = list(dict.fromkeys(host for host, _ in names))
    colors = {host: plt.get_cmap("tab10")(i) for i, host in enumerate(hosts)}
    figure, axes = plt.subplots(figsize=(8, 1 + 0.27 * len(names)), layout="constrained")
    for y, name in enumerate(names):
        found = [r for r in rows if (r["host"], r["strategy"]) == name]
        ratios = [r["times_as_fast"] for r in found]
        axes.plot([min(ratios), max(ratios)], [y, y], color=colors[name[0]], linewidth=1.2, alpha=0.4)
        for r in found:
            axes.plot(r["times_as_fast"], y, _MARKERS[r["data"]], color=colors[r["host"]], markersize=6)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(
        xscale="log", ylim=(len(names) - 0.4, -0.6), xlabel="time of the library over ours: right of 1, ours is faster"
    )
    axes.set_yticks(range(len(names)), [strategy for _, strategy in names], fontsize=8)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.grid(axis="x", alpha=0.3)
    for label, (host, _) in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(colors[host])
    marks = [plt.Line2D([], [], color=colors[h], linewidth=6, label=h) for h in hosts]
    marks += [
        plt.Line2D([], [], color="grey", marker=m, linestyle="", label=pool)
        for pool, m in _MARKERS.items()
        if any(r["data"] == pool for r in rows)
    ]
    figure.legend(handles=marks, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
