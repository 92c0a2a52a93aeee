"""``alkernels select --distributed`` beside the same command in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import harness
import numpy as np
import pytest

from alkernels import cli


@pytest.fixture(scope="module")
def ranks():
    commands = harness.Commands(3)
    yield commands
    commands.end()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pool = rng.integers(-8, 9, (500, 6)).astype(np.float32)
    np.save("pool.npy", pool)
    np.save("other.npy", pool[:, :2] + 1)
    np.save("labeled.npy", pool[:7] + 1)
    np.save("worth.npy", rng.integers(1, 5, 500).astype(np.float64))
    np.save("draws.npy", rng.dirichlet(np.ones(4), (60, 9)).astype(np.float32))
    pool[400, 3] = np.nan
    np.save("bad.npy", pool)
    return tmp_path


CASES = [
    ("k_center_greedy", ["--features", "pool.npy", "--labeled", "labeled.npy", "-o", "metric=cosine"]),
    ("k_center_greedy", ["--features", "pool.npy", "other.npy", "-o", "start=4"]),
    ("kmeans_plusplus", ["--features", "pool.npy", "other.npy"]),
    ("batchbald", ["--mc-probs", "draws.npy", "-o", "max_configurations=1000"]),
    (
        "facility_location",
        ["--features", "pool.npy", "--scores", "worth.npy", "-o", "kernel=tophat", "-o", "bandwidth=7"],
    ),
    ("facility_location", ["--features", "pool.npy"]),
]


@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_picks_are_those_of_one_process(strategy, options, folder, ranks, capsys):
    argv = ["select", strategy, "-b", 5, "--seed", 3, "--json", *options]
    assert cli.main([str(a) for a in [*argv, "--out", "one.npz"]]) == 0
    one = json.loads(capsys.readouterr().out)
    out = ranks.call(folder, *argv, "--distributed", "--out", "all.npz")
    assert [status for status, *_ in out] == [0] * 3
    report = json.loads(out[0][1])
    assert [said for _, said, _ in out[1:]] == ["", ""]
    assert report.pop("ranks") == 3
    for volatile in ("seconds", "out"):
        del one[volatile], report[volatile]
    if "cover_radius" in one:
        one["cover_radius"] = pytest.approx(one["cover_radius"], rel=1e-6)
    assert report == one
    with np.load("one.npz") as alone, np.load("all.npz") as together:
        assert np.array_equal(alone["indices"], together["indices"])
        np.testing.assert_allclose(alone["scores"], together["scores"], rtol=1e-6)


def test_a_seed_of_its_own_is_one_for_all(folder, ranks):
    argv = ["select", "kmeans_plusplus", "-b", 9, "--features", "pool.npy", "--distributed"]
    first = ranks.call(folder, *argv, "--json", "--out", "a.npy")
    seed = json.loads(first[0][1])["seed"]
    ranks.call(folder, *argv, "--seed", seed, "--out", "b.npy")
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))


def test_a_batch_larger_than_the_pool_warns_once(folder, ranks):
    argv = ["select", "batchbald", "-b", 61, "--mc-probs", "draws.npy"]
    out = ranks.call(folder, *argv, "--distributed", "--out", "a.npy")
    assert "batch_size is 61, and the pool has 60 rows" in out[0][2]
    assert all("batch_size" not in wrong for _, _, wrong in out[1:])
    assert sorted(np.load("a.npy")) == list(range(60))


def test_a_bad_row_of_one_part_is_an_error_on_all(folder, ranks):
    argv = ["select", "k_center_greedy", "-b", 5, "--features", "bad.npy"]
    out = ranks.call(folder, *argv, "--distributed", "--out", "a.npy")
    text = (
        "alkernels: error: rank 2: --features bad.npy must be finite, got nan in row 67, column 3, counted in the "
        "rank's part\n"
    )
    assert out == [(2, "", text)] * 3
    assert not Path("a.npy").exists()


POOL = ["--features", "pool.npy"]
NAMES = "k_center_greedy, kmeans_plusplus, batchbald, facility_location"
TORCHRUN = "torchrun --nproc-per-node 4 -m alkernels select k_center_greedy ... --distributed"
REFUSED = [
    ("badge", POOL, f"--distributed works with the strategies {NAMES}, got badge"),
    ("k_center_greedy", ["--mc-probs", "draws.npy"], "k_center_greedy needs --features"),
    (
        "k_center_greedy",
        [*POOL, "--probs", "pool.npy"],
        "--probs must be left out, k_center_greedy has no use for it",
    ),
    (
        "k_center_greedy",
        [*POOL, "-o", "kernel=rbf"],
        "--option must be one of start, metric for k_center_greedy, got kernel",
    ),
    (
        "k_center_greedy",
        [*POOL, "--candidates", "worth.npy"],
        "--candidates must be left out with --distributed",
    ),
    ("k_center_greedy", POOL, f"--distributed must be started by torchrun, as in {TORCHRUN}"),
]


@pytest.mark.parametrize(("strategy", "options", "text"), REFUSED)
def test_refused(strategy, options, text, folder, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["select", strategy, "-b", "5", *options, "--distributed", "--out", "a.npy"]) == 2
    assert capsys.readouterr().err == f"alkernels: error: {text}\n"
    assert not Path("a.npy").exists()


@pytest.mark.slow
def test_under_torchrun(folder):
    options = ["-b", "20", "--features", "pool.npy", "--seed", "0"]
    assert cli.main(["select", "k_center_greedy", *options, "--out", "one.npy"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*torchrun, "-m", "alkernels", "select", "k_center_greedy", *options, "--distributed", "--out", "all.npy"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("written to") == 1
    assert np.array_equal(np.load("one.npy"), np.load("all.npy"))
