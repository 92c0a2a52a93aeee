"""Prints what the benchmarks measured as the table of ``alkernels bench``: ours against the rivals, in the same run."""

import functools
import os

import pytest
import torch

from alkernels._bench import report
from alkernels._bench.measure import Sgemm, compare, seconds_of

SMALL = os.environ.get("ALKERNELS_BENCH_SMALL") == "1"
ROWS = []


def pytest_configure(config):
    torch.set_num_threads(2)


@pytest.fixture
def small():
    return SMALL


@pytest.fixture
def rows():
    return ROWS


@pytest.fixture(scope="session")
def sgemm_rate():
    """sgemm_rate(device): operations a second of one large matrix product, the floor."""

    @functools.cache
    def rate(device):
        product = Sgemm(device, SMALL)
        return product.rate([seconds_of(product.call) for _ in range(15)])

    return rate


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    compare(ROWS)
    for line in ("", *report.table(report.machine(), ROWS)):
        terminalreporter.write_line(line)
