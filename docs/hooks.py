"""Fills the catalogue page from ``alkernels.strategies.info``, so that it says what the code does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from alkernels import strategies
from alkernels.strategies import StrategyInfo, described_needs
from alkernels.strategies._catalogue import FAMILIES, INPUTS

_FAMILIES = {
    "uncertainty": "How unsure one model is of each row.",
    "committee": "How much the members of a committee, or posterior draws, disagree.",
    "bayesian": "What a label says about the posterior, or about predictions that matter.",
    "diversity": "Rows that cover the pool, whatever a model thinks of them.",
    "gradient": "What a label would do to the model.",
    "dynamics": "What the epochs of training said.",
    "learned": "What networks beside the task's were trained to say of each row.",
    "hybrid": "A score together with a geometry, a sampling rule or a round of pseudo-labels.",
}


def on_files(files: Any, config: Any) -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    import figure

    files.append(File.generated(config, "picks.png", content=figure.draw()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != "catalogue.md":
        return markdown
    return markdown.replace("{{ table }}", "\n".join(_table())).replace("{{ entries }}", "\n".join(_entries()))


def _table() -> list[str]:
    lines = ["| strategy | needs | picks by | kernels |", "|---|---|---|---|"]
    for name in strategies.names():
        e = strategies.info(name)
        rule = ("highest scores" if e.each_row else "batch") + (", drawn" if e.random else "")
        needs = described_needs(e, "`")
        lines.append(f"| [`{name}`](#{name}) | {needs} | {rule} | {_code(e.kernels)} |")
    return lines


def _entries() -> list[str]:
    lines: list[str] = []
    for family in FAMILIES:
        lines += [f"## {family.capitalize()} {{ #{family} }}", "", _FAMILIES[family], ""]
        for name in strategies.names(family):
            lines += _entry(strategies.info(name))
    return lines


def _entry(e: StrategyInfo) -> list[str]:
    rows = {
        "needs": described_needs(e, "`"),
        "takes": ", ".join(f"`{n}` {INPUTS[n].shape}" for n in e.takes),
        "scores": f"of [`{e.of}`](#{e.of}) unless `of=` or `scores=` says otherwise" if e.of else "",
        "options": _code(f"{name}={value!r}" for name, value in e.options.items()),
        "cost": e.cost,
        "kernels": _code(e.kernels),
        "source": e.citation,
    }
    return [
        f"### {e.name} {{ #{e.name} }}",
        "",
        e.summary,
        "",
        f"\\[{e.formula}\\]",
        "",
        f"**When:** {e.use}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value.replace('|', chr(92) + '|')} |" for what, value in rows.items() if value),
        "",
        f"Function: [`strategies.{e.family}.{e.name}`][alkernels.strategies.{e.family}.{e.name}]",
        "",
    ]


def _code(words: Any) -> str:
    return ", ".join(f"`{w}`" for w in words)
