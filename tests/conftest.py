"""Shared by all tests: kernels and devices, seeds, and distances from the definition in float64.

``--kernels=emulated`` runs what the tests give to the CPU on the CUDA kernels as tests/emulation builds them, and
``--kernels=cuda`` on the GPU; the tests are the same.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels._bench import torchvision_ops

HOSTS = os.environ.get("ALKERNELS_HOSTS") == "1"
if HOSTS:
    torchvision_ops.declare()

DEVICES = ["cpu"] + (["cuda"] if alk.has_cuda_kernels() and torch.cuda.is_available() else [])
# What this machine can run: torch believes ATEN_CPU_CAPABILITY, and dies of instructions that there are not.
CAPABILITIES = ["default", "avx2", "avx512"][: {"AVX2": 2, "AVX512": 3}.get(torch.backends.cpu.get_cpu_capability(), 1)]
CUDA_OPS = {
    "conditional_entropy",
    "coverage_gains",
    "divergences",
    "draw_by_weight",
    "k_center_block",
    "kmeans_plusplus_block",
    "lower_distances",
    "nearest_divergences",
    "nearest_points",
    "paired_distances",
    "prediction_scores",
    "raise_covered",
    "top_candidates",
}
_LIBRARY = Path(__file__).parents[1] / "build" / "emulation" / "emulation" / "libalkernels_emulated.so"


def pytest_addoption(parser):
    parser.addoption(
        "--kernels",
        choices=["cpu", "emulated", "cuda"],
        default=os.environ.get("ALKERNELS_TEST_KERNELS", "cpu"),
        help="what runs the ops on CPU tensors: their own kernels, or those for CUDA, emulated or on the GPU",
    )


def pytest_configure(config):
    kernels = config.getoption("--kernels")
    if kernels == "cpu":
        return
    if kernels == "emulated":
        library = Path(os.environ.get("ALKERNELS_EMULATED", _LIBRARY))
        if alk.has_cuda_kernels():
            raise pytest.UsageError("--kernels=emulated needs an installation without CUDA kernels of its own")
        if not library.exists():
            raise pytest.UsageError(f"--kernels=emulated: no {library}; tests/emulate.sh builds it")
        torch.ops.load_library(library)
    elif not (alk.has_cuda_kernels() and torch.cuda.is_available()):
        raise pytest.UsageError("--kernels=cuda needs a GPU and an installation with CUDA kernels")
    config.alkernels_redirected = _redirect(_emulated if kernels == "emulated" else _on_gpu)


def pytest_sessionfinish(session):
    """Where every host is installed, as `make hosts` says, a skip is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if HOSTS and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("\nALKERNELS_HOSTS=1: no test may be skipped", red=True)
        session.exitstatus = 1


def pytest_report_header(config):
    kernels = config.getoption("--kernels")
    if kernels == "cpu":
        return f"kernels: cpu ({alk.build_info()['cpu_capability']})"
    names = config.alkernels_redirected[1]
    order = f", order {os.environ.get('ALK_EMU_ORDER', 'forward')}" if kernels == "emulated" else ""
    which = "all" if len(names) == len(CUDA_OPS) else ", ".join(names)
    return f"kernels: {kernels}{order}, {len(names)} of {len(CUDA_OPS)} ops: {which}"


def _redirect(kernel_for):
    """Gives CPU tensors to the ops' CUDA kernels; the registrations last as long as the library that comes back."""
    names = sorted(
        name
        for name in CUDA_OPS
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"alkernels::{name}", torch._C.DispatchKey.CUDA)
    )
    missing = CUDA_OPS.difference(names)
    if missing and not os.environ.get("ALKERNELS_TEST_PARTIAL"):
        raise pytest.UsageError(f"no CUDA kernels for {', '.join(sorted(missing))}; ALKERNELS_TEST_PARTIAL=1 goes on")
    library = torch.library.Library("alkernels", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verrid")
        for name in names:
            library.impl(name, kernel_for(getattr(torch.ops.alkernels, name).default), "CPU", allow_override=True)
    return library, names


def _emulated(op):
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return lambda *args, **kwargs: op.redispatch(keys, *args, **kwargs)


def _on_gpu(op):
    written = [i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def moved(value, device):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        return tuple(moved(v, device) for v in value) if isinstance(value, (tuple, list)) else value

    def call(*args):
        there = [moved(a, "cuda") for a in args]
        result = op(*there)
        for i in written:
            if i < len(args) and args[i] is not None:
                args[i].copy_(there[i])
        return moved(result, "cpu")

    return call


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def as_double(x):
    """Any kind of rows as float64 tensors, one or two factors."""
    if isinstance(x, tuple):
        return tuple(as_double(f) for f in x)
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))
    return x.detach().cpu().double()


def true_squared(rows, center, metric="euclidean"):
    """Squared distances to one centre from differences in float64 (for cosine: of rows scaled to length one).

    Under ``symmetric_kl`` the distances themselves: infinite where one has a class that the other rules out.
    """
    if metric == "symmetric_kl":
        both = (rows > 0) & (center > 0)
        # log(p / q) without a difference of logarithms where the two are close
        ratio = torch.where(both, (rows - center) / torch.where(both, center, 1.0), 0.0)
        far = torch.where(both, rows, 1.0).log() - torch.where(both, center, 1.0).log()
        log = torch.where(ratio.abs() < 0.5, ratio.clamp(min=-0.5, max=0.5).log1p(), far)
        total = ((rows - center) * log).sum(1) / 2
        return torch.where(((rows > 0) == (center > 0)).all(1), total, torch.inf)
    if isinstance(rows, tuple):
        a, h = rows
        b, g = center
        # a x h - b x g = (a - b) x h + b x (h - g): small where the two are close
        u, v = a - b, h - g
        cross = 2 * (u @ b) * (h * v).sum(1)
        return ((u * u).sum(1) * (h * h).sum(1) + (b @ b) * (v * v).sum(1) + cross).clamp(min=0)
    if metric == "cosine":
        zero = (rows == 0).all(1) | bool((center == 0).all())
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
        center = center / center.norm().clamp(min=1e-300)
        return torch.where(zero, 2.0, ((rows - center) ** 2).sum(1))
    return ((rows - center) ** 2).sum(1)


def row(rows, i):
    return tuple(f[i] for f in rows) if isinstance(rows, tuple) else rows[i]


def length(rows):
    return len(rows[0]) if isinstance(rows, tuple) else len(rows)


def assert_farthest_first(features, selection, *, labeled=None, start=None, metric="euclidean"):
    """The specification: each pick's true distance is at least 1 - 1e-5 of the largest at that step."""
    x = as_double(features)
    picks = torch.as_tensor(selection.indices).tolist()
    assert len(set(picks)) == len(picks)
    d2 = torch.full((length(x),), torch.inf, dtype=torch.float64)
    if labeled is not None:
        known = as_double(labeled)
        for j in range(length(known)):
            d2 = torch.minimum(d2, true_squared(x, row(known, j), metric))
    for step, pick in enumerate(picks):
        chosen = step == 0 and (start is not None or labeled is None)
        distance = d2 if metric == "symmetric_kl" else d2.clamp(min=0).sqrt()
        if not chosen:
            assert distance[pick] >= (1 - 1e-5) * distance.max(), f"pick {step}: {distance[pick]} < {distance.max()}"
        score = float(torch.as_tensor(selection.scores)[step])
        unit = d2[pick] / 2 if metric == "cosine" else distance[pick]
        assert score == pytest.approx(float(unit), rel=2e-5, abs=1e-37)
        d2 = torch.minimum(d2, true_squared(x, row(x, pick), metric))
        d2[pick] = -1  # picked rows are never picked again
    return d2.clamp(min=0)
