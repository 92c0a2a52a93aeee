"""anomalib 2.7: the core-set of PatchCore and AnomalyDINO. The class itself needs torch only."""

from __future__ import annotations

import importlib
import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from alkernels._inputs import check_flag, check_number
from alkernels._load import has_cuda_kernels
from alkernels.ops.k_center_greedy import k_center_greedy

# Johnson and Lindenstrauss's distortion that anomalib allows.
_DISTORTION = 0.9
# What anomalib 2.7 reads the class from: its models, each from its own module.
_MODELS = ("anomalib.models.image.patchcore.torch_model", "anomalib.models.image.anomaly_dino.torch_model")


class KCenterGreedy:
    """anomalib's ``KCenterGreedy``: a core-set of an embedding by k-center greedy.

    In place of ``anomalib.models.components.KCenterGreedy``, with its methods ``select_coreset_idxs`` and
    ``sample_coreset``. What differs: distances are those of the embedding itself, not of a random projection of it
    (unless `projection`), and the pool is walked once for a block of picks. The methods of a single step
    (``update_distances``, ``get_new_idx``) are not there.

    Parameters
    ----------
    embedding : Tensor of shape (N, D) or (N, ...)
        Rows of more dimensions are flattened.
    sampling_ratio : float
        The core-set has ``int(N * sampling_ratio)`` rows.
    projection : bool, default False
        Select on a sparse random projection as anomalib does (of the width that Johnson and Lindenstrauss's lemma gives
        for a distortion of 0.9, some hundreds), where that is narrower than the rows.
    device : torch.device or str, optional
        A CUDA device to work on an embedding in host memory with.
    progress : bool, default True
        Show a progress bar, as anomalib does.

    Attributes
    ----------
    embedding : Tensor
    coreset_size, n_observations : int

    Raises
    ------
    ValueError
        A core-set of no rows, or of more than there are; when it selects, NaN or infinity in the embedding.
    TypeError
        An embedding that is no floating-point tensor, an argument of the wrong type.

    Notes
    -----
    The first row is drawn from torch's global generator as anomalib draws it, on the embedding's device, and is part of
    the core-set. Rows that anomalib does not project (of three dimensions and more) get the same core-set as there, but
    for ties and rounding. Rows on other devices than a CPU or a CUDA device that this build has kernels for are copied
    to host memory for the selection.

    References
    ----------
    .. [1] K. Roth, L. Pemula, J. Zepeda, B. Schölkopf, T. Brox, P. Gehler. Towards total recall in industrial anomaly
       detection. CVPR 2022.

    Examples
    --------
    >>> import torch
    >>> from alkernels.integrations.anomalib import KCenterGreedy
    >>> KCenterGreedy(torch.randn(1000, 64), 0.1, progress=False).sample_coreset().shape
    torch.Size([100, 64])
    """

    def __init__(
        self,
        embedding: torch.Tensor,
        sampling_ratio: float,
        *,
        projection: bool = False,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(embedding, torch.Tensor):
            raise TypeError(f"embedding must be a torch.Tensor, got {type(embedding).__name__}")
        if embedding.dim() < 2:
            raise ValueError(f"embedding must have rows of features, got shape {tuple(embedding.shape)}")
        check_flag(projection, "projection")
        check_flag(progress, "progress")
        ratio = check_number(sampling_ratio, "sampling_ratio", "between 0 and 1")
        self.embedding = embedding
        self.n_observations = len(embedding)
        self.coreset_size = int(self.n_observations * ratio)
        if self.coreset_size <= 0 or ratio > 1:
            raise ValueError(
                "sampling_ratio must be at most 1 and so large that the core-set has a row, got "
                f"{sampling_ratio!r} of {self.n_observations} rows"
            )
        self.projection, self.device, self.progress = projection, device, progress

    def select_coreset_idxs(self) -> list[int]:
        """The rows of the core-set, in the order picked.

        Returns
        -------
        list of int
            Distinct.
        """
        rows = self.embedding.detach().flatten(1)
        if not (rows.device.type == "cpu" or (rows.device.type == "cuda" and has_cuda_kernels())):
            rows = rows.cpu()
        if self.projection:
            rows = _projected(rows)
        start = torch.randint(self.n_observations, (1,), device=self.embedding.device)
        picks = k_center_greedy(
            rows, self.coreset_size, start=int(start), device=self.device, progress=self.progress
        ).indices
        return picks.tolist()

    def sample_coreset(self) -> torch.Tensor:
        """The core-set itself.

        Returns
        -------
        Tensor of shape (coreset_size, ...)
            Rows of the embedding, in the order picked.
        """
        return self.embedding[self.select_coreset_idxs()]


def _projected(rows: torch.Tensor) -> torch.Tensor:
    """Rows times a sparse matrix of random signs: distances are kept on average."""
    count, width = rows.shape
    narrow = int(4 * math.log(count) / (_DISTORTION**2 / 2 - _DISTORTION**3 / 3))
    if not 0 < narrow < width:
        return rows
    draws = torch.rand(2, narrow, width)
    density = 1 / math.sqrt(width)
    signs = torch.where(draws[0] < density, torch.where(draws[1] < 0.5, -1.0, 1.0), 0.0)
    return rows @ (signs / math.sqrt(density * narrow)).T.to(rows.device, rows.dtype)


def use_in_anomalib(*, projection: bool = False, device: torch.device | str | None = None) -> ExitStack:
    """Make PatchCore and AnomalyDINO select with :class:`KCenterGreedy`, from now on or for a while.

    Replaces ``anomalib.models.image.patchcore.torch_model.KCenterGreedy``, and the same of ``anomaly_dino`` where the
    installed anomalib has it.

    Parameters
    ----------
    projection : bool, default False
        As in :class:`KCenterGreedy`.
    device : torch.device or str, optional
        As in :class:`KCenterGreedy`.

    Returns
    -------
    contextlib.ExitStack
        Puts back what was there when a ``with`` block that it heads ends, or by ``close()``; otherwise never.

    Raises
    ------
    ImportError
        anomalib is missing, or cannot be imported beside the installed torch and torchvision.

    Examples
    --------
    >>> from alkernels.integrations.anomalib import use_in_anomalib
    >>> with use_in_anomalib():  # doctest: +SKIP
    ...     Engine().fit(Patchcore(), datamodule=datamodule)
    """
    check_flag(projection, "projection")
    try:
        modules: list[Any] = [importlib.import_module(_MODELS[0])]
    except (ImportError, RuntimeError) as error:  # of torch and torchvision that do not match, a RuntimeError
        raise ImportError(
            "use_in_anomalib needs the package anomalib: pip install 'alkernels[anomalib]', with a torchvision that "
            "fits the installed torch"
        ) from error
    try:
        modules.append(importlib.import_module(_MODELS[1]))
    except ImportError:
        pass  # older than AnomalyDINO
    sampler = partial(KCenterGreedy, projection=projection, device=device)
    undo = ExitStack()
    for module in modules:
        if hasattr(module, "KCenterGreedy"):
            undo.callback(setattr, module, "KCenterGreedy", module.KCenterGreedy)
            module.KCenterGreedy = sampler
    return undo
