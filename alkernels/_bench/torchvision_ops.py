"""torchvision where its compiled ops do not load: those on PyPI are built for CUDA, and torch may be a CPU build.

anomalib imports torchvision, and baal through torchmetrics where it is installed; neither needs those ops here.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys

import torch

# Whose schemas torchvision's import wants to be there (0.28).
_WANTED = ("nms", "qnms")
_declared: torch.library.Library | None = None


def declare() -> None:
    """Declares the ops that ``import torchvision`` asks for, without kernels, if its own library does not load."""
    global _declared
    found = importlib.util.find_spec("torchvision")
    if _declared is not None or "torchvision" in sys.modules or found is None or found.origin is None:
        return
    folder = found.submodule_search_locations[0]  # type: ignore[index]
    library = importlib.machinery.PathFinder.find_spec("_C", [folder])
    try:
        torch.ops.load_library(library.origin)  # type: ignore[union-attr]
    except (AttributeError, OSError):
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        for op in _WANTED:
            _declared.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
