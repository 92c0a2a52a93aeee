"""Packages that only one command needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def package(name: str, extra: str) -> ModuleType:
    """The module `name`, or an error that says which extra brings it; extras are called as their commands are."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        what = "this strategy" if extra == "strategies" else f"the {extra}"
        raise ImportError(f"{what} needs the package {missing}: pip install 'alkernels[{extra}]'") from None
