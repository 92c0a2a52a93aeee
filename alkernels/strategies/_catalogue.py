"""The catalogue: one entry a strategy, made from its function's signature and docstring and a few words beside it."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Input(NamedTuple):
    """An array that strategies take.

    Attributes
    ----------
    shape : str
    meaning : str
    pool : bool
        One row for each row of the pool.
    """

    shape: str
    meaning: str
    pool: bool = True


# Every array by the name that functions and `select` have for it.
INPUTS = {
    "probs": Input("[N, C]", "class probabilities"),
    "mc_probs": Input("[N, K, C]", "class probabilities under K posterior draws"),
    "votes": Input("[N, K]", "the class that each of K members votes for"),
    "features": Input("[N, D]", "feature vectors"),
    "scores": Input("[N]", "a score a row, higher = more informative"),
    "clusters": Input("[N]", "cluster numbers"),
    "correct": Input("[N, T]", "whether each of T presentations was classified right"),
    "predictions": Input("[N, T]", "the class predicted at each of T checkpoints"),
    "predicted_losses": Input("[N]", "the losses that a loss prediction module expects"),
    "discriminator": Input("[N]", "the probability of being labelled that a discriminator gives"),
    "labeled_features": Input("[L, D]", "feature vectors of the labelled rows", False),
    "labeled_probs": Input("[L, C]", "class probabilities of the labelled rows", False),
    "labels": Input("[L]", "classes of the labelled rows", False),
    "target_mc_probs": Input("[T, K, C]", "mc_probs of target points", False),
    "head_weight": Input("[C, D]", "weights of the linear last layer", False),
    "head_bias": Input("[C]", "biases of the linear last layer", False),
}
# What `select` itself passes on.
RUN_ARGUMENTS = ("batch_size", "pool", "generator", "device", "memory_limit", "checkpoint", "progress")
FAMILIES = ("uncertainty", "committee", "bayesian", "diversity", "gradient", "dynamics", "learned", "hybrid")


@dataclass(frozen=True)
class StrategyInfo:
    """What is known of a strategy.

    Attributes
    ----------
    name : str
        Its name in :func:`alkernels.select`.
    family : str
        The module of :mod:`alkernels.strategies` that holds its function.
    summary : str
        One line.
    formula : str
        What is computed, as LaTeX.
    needs : tuple of tuples of str
        The arrays it must be given; of each inner tuple, one.
    takes : tuple of str
        Arrays that it can be given besides.
    options : dict
        Its options and their defaults.
    each_row : bool
        It scores each row by itself, and the best are picked; else it picks a batch.
    of : str or None
        The strategy whose scores it takes where none are given.
    random : bool
        It draws: the picks depend on the generator.
    kernels : tuple of str
        The functions and kernels of alkernels it runs on.
    cost : str
        Operations beyond the model's.
    use : str
        When to use it.
    citation : str
        Where it comes from.
    function : callable
    """

    name: str
    family: str
    summary: str
    formula: str
    needs: tuple[tuple[str, ...], ...]
    takes: tuple[str, ...]
    options: dict[str, Any]
    each_row: bool
    of: str | None
    random: bool
    kernels: tuple[str, ...]
    cost: str
    use: str
    citation: str
    function: Callable[..., Any]

    @property
    def arrays(self) -> tuple[str, ...]:
        """Every array it can be given."""
        return tuple(name for group in self.needs for name in group) + self.takes

    @property
    def parameters(self) -> set[str]:
        """All its function's parameters."""
        return set(inspect.signature(self.function).parameters)

    @property
    def short_citation(self) -> str:
        """The first source in a few words: first author and year."""
        first = re.match(r"(?:\w[\w.-]*\.[\s-]?)*([^,.:]+)", self.citation)
        year = re.search(r"\b(19|20)\d\d\b", self.citation)
        return f"{first[1].strip()} {year[0]}" if first and year else self.citation

    def __str__(self) -> str:
        lines = {
            "family": self.family,
            "needs": described_needs(self),
            "takes": ", ".join(self.takes),
            "options": ", ".join(f"{name}={value!r}" for name, value in self.options.items()),
            "scores of": self.of or "",
            "formula": self.formula,
            "cost": self.cost,
            "kernels": ", ".join(self.kernels),
            "use": self.use,
            "source": self.citation,
        }
        return "\n".join([f"{self.name}: {self.summary}", *(f"  {k:<10}{v}" for k, v in lines.items() if v)])


_entries: dict[str, StrategyInfo] = {}


def strategy(
    *,
    formula: str,
    cost: str,
    use: str,
    kernels: tuple[str, ...] = (),
    either: tuple[str, ...] = (),
    of: str | None = None,
) -> Callable[[F], F]:
    """Enters a function into the catalogue, under its own name and the family that its module is.

    Parameters named in `INPUTS` are its arrays: needed where they have no default, and one of `either`. With a
    parameter `batch_size` it picks a batch and returns a :class:`Selection`; without, it returns one score a row. All
    others but `RUN_ARGUMENTS` are its options. `of` is the strategy that its `scores` come from by default.
    """

    def enter(function: F) -> F:
        parameters = inspect.signature(function).parameters
        arrays = {name: p for name, p in parameters.items() if name in INPUTS}
        needs = tuple((n,) for n, p in arrays.items() if p.default is p.empty and n not in either)
        summary, citation = _documented(function.__doc__ or "")
        name = function.__name__
        _entries[name] = StrategyInfo(
            name=name,
            family=function.__module__.rpartition(".")[2],
            summary=summary,
            formula=formula,
            needs=needs + ((either,) if either else ()),
            takes=tuple(n for n, p in arrays.items() if p.default is not p.empty and n not in either),
            options={n: p.default for n, p in parameters.items() if n not in INPUTS and n not in RUN_ARGUMENTS},
            each_row="batch_size" not in parameters,
            of=of,
            random="generator" in parameters,
            kernels=kernels,
            cost=cost,
            use=use,
            citation=citation,
            function=function,
        )
        return function

    return enter


def _documented(text: str) -> tuple[str, str]:
    """A docstring's first line, and its references in one line each."""
    text = inspect.cleandoc(text)
    found = re.search(r"^References\n-+\n(.*?)(?=\n\n\S[^\n]*\n-{3,}|\Z)", text, re.DOTALL | re.MULTILINE)
    sources = re.split(r"^\.\. \[\d+\] ", found[1] if found else "", flags=re.MULTILINE)
    return text.partition("\n")[0], " ".join(" ".join(s.split()) for s in sources if s.strip())


def names(family: str | None = None) -> list[str]:
    """The catalogue's names, in the order of the families.

    Parameters
    ----------
    family : str, optional
        Only those of one family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    chosen = FAMILIES if family is None else (family,)
    return [name for f in chosen for name, entry in _entries.items() if entry.family == f]


def info(name: str) -> StrategyInfo:
    """What a strategy is, needs and costs.

    Parameters
    ----------
    name : str
        One of :func:`names`.

    Raises
    ------
    ValueError
        A name that is not in the catalogue; the error says which one is near.

    Examples
    --------
    >>> import alkernels as alk
    >>> alk.strategies.info("badge").needs
    (('probs',), ('features',))
    """
    if not isinstance(name, str):
        raise TypeError(f"strategy must be a name, got {type(name).__name__}; see alkernels.strategies.names()")
    if name not in _entries:
        raise ValueError(f"strategy must be a name in the catalogue, got {name!r}{nearest(name, _entries)}")
    return _entries[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """What somebody may have meant, as the end of an error message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else "; there are none"


def described_needs(entry: StrategyInfo, mark: str = "") -> str:
    """The needed arrays with their shapes, in words; names between marks."""
    parts = [" or ".join(f"{mark}{name}{mark} {INPUTS[name].shape}" for name in group) for group in entry.needs]
    return ", ".join(parts) or "any array of the pool"
