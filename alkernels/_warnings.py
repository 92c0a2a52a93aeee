"""Warnings that point at the user's line, however many of ours lie between."""

from __future__ import annotations

import sys
import warnings


def warn_user(message: str) -> None:
    """A UserWarning at the innermost line outside of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "alkernels":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
