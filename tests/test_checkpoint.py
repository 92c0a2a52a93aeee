"""Long selections that are killed at any moment and go on to the picks they would have made."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels import _checkpoint
from alkernels._checkpoint import Checkpoint, fingerprint
from alkernels._inputs import Pool
from alkernels.ops.running_distances import RunningDistances


class Killed(BaseException):
    """As sudden as a signal: nothing in the package catches it."""


@pytest.fixture
def saved_often(monkeypatch):
    """Each block is saved."""
    monkeypatch.setattr(_checkpoint, "_SHARE", float("inf"))


def rows(count=400, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def draws(count=200, members=10, classes=4):
    return (2 * torch.randn(count, members, classes, generator=torch.Generator().manual_seed(1))).softmax(-1)


RUNS = {
    "k-center": lambda **o: alk.k_center_greedy(rows(), 120, generator=3, **o),
    "k-center, labelled, with distances": lambda **o: alk.k_center_greedy(
        rows(), 90, labeled=rows(7, seed=1), return_distances=True, **o
    ),
    "k-center, cosine": lambda **o: alk.k_center_greedy(rows(), 60, metric="cosine", start=5, **o),
    "k-center, symmetric KL": lambda **o: alk.k_center_greedy(
        rows().softmax(1), 60, metric="symmetric_kl", start=5, return_distances=True, **o
    ),
    # far from the origin and in tight clusters: rows are measured again
    "k-center, measured again": lambda **o: alk.k_center_greedy(
        1e4 + rows().round() + 1e-2 * rows(seed=9), 200, start=0, return_distances=True, **o
    ),
    "k-center, outer products": lambda **o: alk.k_center_greedy((rows(width=3), rows(seed=2)), 60, start=1, **o),
    "k-means++": lambda **o: alk.kmeans_plusplus(rows(), 120, generator=3, **o),
    "k-means++, labelled, with distances": lambda **o: alk.kmeans_plusplus(
        rows(), 90, labeled=rows(7, seed=1), generator=4, return_distances=True, **o
    ),
    "k-means++, of copies": lambda **o: alk.kmeans_plusplus(rows(9).repeat(40, 1), 50, generator=4, **o),
    "coverage": lambda **o: alk.greedy_coverage(rows(), 12, return_covered=True, **o),
    "coverage, weighted, labelled": lambda **o: alk.greedy_coverage(
        rows(), 12, kernel="rbf", bandwidth=2.0, weights=rows().abs()[:, 0], labeled=rows(3, seed=1),
        candidates=torch.arange(0, 400, 2), return_covered=True, **o,
    ),
    "BatchBALD": lambda **o: alk.batchbald(draws(), 4, **o),
    "BatchBALD, sampled": lambda **o: alk.batchbald(
        draws(members=40), 7, max_configurations=100, num_samples=900, generator=2, **o
    ),
    "BADGE": lambda **o: alk.select(
        "badge", 60, probs=rows(width=4).softmax(1), features=rows(seed=2), generator=1, **o
    ),
    "core-set": lambda **o: alk.select("k_center_greedy", 60, features=rows(), generator=1, **o),
    "facility location": lambda **o: alk.select("facility_location", 9, features=rows(), generator=1, **o),
}  # fmt: skip


def equal(found, wanted):
    for name in wanted._fields:
        a, b = getattr(found, name), getattr(wanted, name)
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name


@pytest.mark.parametrize("name", RUNS)
def test_killed_after_any_block_it_goes_on_to_the_same_picks(name, tmp_path, monkeypatch, saved_often):
    run, path = RUNS[name], tmp_path / "run.ckpt"
    wanted = run()
    save, blocks = Checkpoint.after_block, 0

    def count(self, *args, **options):
        nonlocal blocks
        blocks += self.path is not None
        return save(self, *args, **options)

    monkeypatch.setattr(Checkpoint, "after_block", count)
    equal(run(checkpoint=path), wanted)
    whole = blocks
    assert whole >= 2, "nothing to be killed between"
    for fatal in range(1, whole):
        path.unlink()
        blocks = 0

        def kill(self, *args, fatal=fatal, **options):
            nonlocal blocks
            save(self, *args, **options)
            blocks += 1
            if blocks == fatal:
                raise Killed

        monkeypatch.setattr(Checkpoint, "after_block", kill)
        with pytest.raises(Killed):
            run(checkpoint=path)
        blocks = whole  # and from here on it is not
        equal(run(checkpoint=path), wanted)


@pytest.mark.parametrize("name", ["k-center", "k-means++", "BatchBALD, sampled"])
def test_killed_at_every_block_it_still_ends(name, tmp_path, monkeypatch, saved_often):
    """Each attempt makes one block and dies."""
    run, path = RUNS[name], tmp_path / "run.ckpt"
    wanted, save = run(), Checkpoint.after_block

    def kill(self, *args, **options):
        save(self, *args, **options)
        raise Killed

    monkeypatch.setattr(Checkpoint, "after_block", kill)
    for _ in range(200):
        try:
            found = run(checkpoint=path)
        except Killed:
            continue
        break
    equal(found, wanted)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_ended_is_not_made_again(name, tmp_path, monkeypatch):
    run, path = RUNS[name], tmp_path / "run.ckpt"
    wanted = run(checkpoint=path)
    made = []
    save = Checkpoint.after_block
    monkeypatch.setattr(Checkpoint, "after_block", lambda self, *a, **o: (made.append(1), save(self, *a, **o)))
    equal(run(checkpoint=path), wanted)
    assert not made or name == "k-means++, of copies"  # those that follow in index order are added again


def test_a_fresh_seed_is_the_interrupted_runs(tmp_path, monkeypatch, saved_often):
    """Without a generator the seed is drawn once."""
    path, save = tmp_path / "run.ckpt", Checkpoint.after_block

    def kill(self, *args, **options):
        save(self, *args, **options)
        raise Killed

    monkeypatch.setattr(Checkpoint, "after_block", kill)
    torch.manual_seed(5)
    with pytest.raises(Killed):
        alk.kmeans_plusplus(rows(), 120, checkpoint=path)
    monkeypatch.undo()
    torch.manual_seed(6)
    found = alk.kmeans_plusplus(rows(), 120, checkpoint=path)
    torch.manual_seed(5)
    equal(found, alk.kmeans_plusplus(rows(), 120))


def test_without_a_checkpoint_draws_are_what_they_were():
    """A start or labelled rows decide: nothing is drawn from torch's global generator."""
    state = torch.get_rng_state()
    alk.k_center_greedy(rows(), 5, start=0)
    alk.k_center_greedy(rows(), 5, labeled=rows(2))
    alk.greedy_coverage(rows(), 3)
    alk.batchbald(draws(), 2)
    assert torch.equal(torch.get_rng_state(), state)


CHANGED = {
    "another k": ({"k": 51}, "k is 50 there and 51 here"),
    "another seed": ({"generator": 2}, "seed is 1 there and 2 here"),
    "labelled rows": ({"labeled": rows(3)}, "labeled is None there and '3x8 float32 [0-9a-f]{16}' here"),
    "another metric": ({"metric": "cosine"}, "metric is 'euclidean' there and 'cosine' here"),
    "distances too": ({"return_distances": True}, "return_distances is False there and True here"),
    "another start": ({"start": 3}, "start is None there and 3 here"),
    "another number": ({"features": rows() + 1e-3 * torch.eye(400, 8)}, "features is '400x8 float32 .*' there and '"),
    "rows in another order": ({"features": rows().flip(0)}, "features is '400x8 float32 .*' there and '400x8 float32"),
    "fewer rows": ({"features": rows()[:399]}, "features is '400x8 float32 .*' there and '399x8 float32"),
    "another dtype": ({"features": rows().double()}, "features is '400x8 float32 .*' there and '400x8 float64"),
}  # fmt: skip


@pytest.mark.parametrize("which", CHANGED)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(which, tmp_path):
    path = tmp_path / "run.ckpt"
    usual = {"features": rows(), "k": 50, "generator": 1}
    alk.k_center_greedy(**usual, checkpoint=path)
    before = path.read_bytes()
    changed, message = CHANGED[which]
    with pytest.raises(ValueError, match=f"must be of this run, but .*{message}.*: delete it or give another file"):
        alk.k_center_greedy(**{**usual, **changed}, checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_version_or_op_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    alk.k_center_greedy(rows(), 9, start=0, checkpoint=path)
    with pytest.raises(ValueError, match="op is 'k_center_greedy' there and 'kmeans_plusplus' here"):
        alk.kmeans_plusplus(rows(), 9, start=0, checkpoint=path)
    monkeypatch.setattr(_checkpoint, "version", "99.0")
    with pytest.raises(ValueError, match=r"alkernels is .* there and '99.0' here"):
        alk.k_center_greedy(rows(), 9, start=0, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "run.ckpt"
    if content is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="must be one of a selection: it cannot be read as such"):
        alk.k_center_greedy(rows(), 9, checkpoint=path)


def test_bad_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint must be in an existing folder, got .*nowhere/run.ckpt"):
        alk.k_center_greedy(rows(), 9, checkpoint=tmp_path / "nowhere" / "run.ckpt")
    with pytest.raises(TypeError, match="checkpoint must be a path, got int 3"):
        alk.k_center_greedy(rows(), 9, checkpoint=3)
    with pytest.raises(ValueError, match=r"checkpoint must be None for margin, which saves none"):
        alk.select("margin", 3, probs=rows().softmax(1), checkpoint=tmp_path / "run.ckpt")
    with pytest.raises(Exception, match=r"checkpoint must be None inside torch.compile"):
        torch.compile(lambda x: alk.k_center_greedy(x, 3, start=0, checkpoint="x"), fullgraph=True)(rows())


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, saved_often):
    path, save, replacing = tmp_path / "run.ckpt", torch.save, 0

    def full(state, file):
        nonlocal replacing
        replacing += 1
        if replacing == 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"checkpoint .*run.ckpt could not be written: No space left on device"):
        alk.k_center_greedy(rows(), 120, start=0, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
    equal(alk.k_center_greedy(rows(), 120, start=0, checkpoint=path), alk.k_center_greedy(rows(), 120, start=0))


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """A slow disk is written to rarely, but always at the end."""
    saves, save = [], torch.save

    def slow(state, file):
        saves.append(state["state"]["picks"])
        time.sleep(0.2)
        save(state, file)

    monkeypatch.setattr(torch, "save", slow)
    alk.k_center_greedy(rows(2000), 500, start=0, checkpoint=tmp_path / "run.ckpt")
    assert [len(saves[0]) < 500, len(saves[-1])] == [True, 500]
    assert len(saves) == 2  # the blocks between took much less than 20 times 0.2 s


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 8])
def test_a_fingerprint_tells_any_changed_bit(dtype, width):
    x = rows(50, width).to(dtype)
    usual = fingerprint(Pool(x, "features"))
    assert fingerprint(Pool(x.t().contiguous().t(), "features")) == usual
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    draw = random.Random(0)
    seen = {usual}
    for _ in range(60):
        changed = x.clone().view(kind)
        bit = draw.randrange(8 * dtype.itemsize - 1)
        changed[draw.randrange(50), draw.randrange(width)] ^= 1 << bit
        seen.add(fingerprint(Pool(changed.view(dtype), "features")))
    assert len(seen) > 55  # the same bit may be drawn twice
    swapped = x.clone()
    swapped[[3, 4]] = x[[4, 3]]
    assert fingerprint(Pool(swapped, "features")) != usual


def test_a_fingerprint_does_not_depend_on_tiles(monkeypatch):
    x = rows(500)
    usual = fingerprint(Pool(x, "features"))
    pool = Pool(x, "features")
    pool.tile_bytes = 1000
    assert fingerprint(pool) == usual
    assert fingerprint(Pool((x, x[:, :3]), "features")).startswith(usual + "-")


# ---- signals ----

LONG = """
import sys, numpy as np, torch, alkernels as alk
from alkernels import _checkpoint
_checkpoint._SHARE = float("inf")
x = torch.randn(30_000, 32, generator=torch.Generator().manual_seed(0))
p = torch.randn(800, 20, 8, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
print("go", flush=True)
picks = {
    "k_center_greedy": lambda: alk.k_center_greedy(x, 4000, start=0, checkpoint=sys.argv[2]),
    "kmeans_plusplus": lambda: alk.kmeans_plusplus(x, 4000, generator=1, checkpoint=sys.argv[2]),
    "greedy_coverage": lambda: alk.greedy_coverage(x[:3000], 200, checkpoint=sys.argv[2]),
    "batchbald": lambda: alk.batchbald(p, 10, generator=1, checkpoint=sys.argv[2]),
}[sys.argv[1]]()
np.save(sys.argv[3], picks.indices.numpy())
"""


SLOW = ("k_center_greedy", "greedy_coverage")


def begin(op, path, out):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + LONG
    run = subprocess.Popen([sys.executable, "-c", code, op, path, out], env=env, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "go\n"
    return run


@pytest.mark.parametrize(
    "op", ["kmeans_plusplus", "batchbald", *(pytest.param(op, marks=pytest.mark.slow) for op in SLOW)]
)
def test_a_run_killed_at_random_moments_makes_the_same_picks(op, tmp_path):
    wanted = tmp_path / "wanted.npy"
    run = begin(op, tmp_path / "other.ckpt", wanted)
    clock = time.monotonic()
    assert run.wait(300) == 0
    seconds = time.monotonic() - clock
    path, out, draw = tmp_path / "run.ckpt", tmp_path / "out.npy", random.Random(op)
    killed = 0
    for _ in range(2):
        run = begin(op, path, out)
        time.sleep(draw.uniform(0, seconds / 2))
        run.send_signal(signal.SIGKILL)
        killed += run.wait() == -signal.SIGKILL
    assert killed
    assert begin(op, path, out).wait(300) == 0
    np.testing.assert_array_equal(np.load(out), np.load(wanted))


def test_ctrl_c_saves_before_it_ends(tmp_path):
    path, out = tmp_path / "run.ckpt", tmp_path / "out.npy"
    run = begin("kmeans_plusplus", path, out)
    while not path.exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == -signal.SIGINT or run.returncode == 1
    assert not out.exists()
    assert 0 < len(torch.load(path, weights_only=True)["state"]["picks"]) < 4000


def test_ctrl_c_in_a_run_that_saves_rarely(tmp_path, monkeypatch):
    """The block that it came in is saved, though the last one was a moment ago; the handler is as it was afterwards."""
    monkeypatch.setattr(_checkpoint, "_SHARE", 1e-9)  # but for the first block
    path, saves, save = tmp_path / "run.ckpt", [], torch.save
    blocks, add = [], RunningDistances.add_picks

    def saving(state, file):
        saves.append(len(state["state"]["picks"]))
        save(state, file)

    def adding(self, picked, **options):
        blocks.append(len(picked))
        if len(blocks) == 4:
            signal.raise_signal(signal.SIGINT)
        add(self, picked, **options)

    monkeypatch.setattr(torch, "save", saving)
    monkeypatch.setattr(RunningDistances, "add_picks", adding)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            alk.k_center_greedy(rows(2000), 900, start=0, checkpoint=path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(blocks) == 4 and saves == [sum(blocks[:2]), sum(blocks)]
    monkeypatch.undo()
    equal(alk.k_center_greedy(rows(2000), 900, start=0, checkpoint=path), alk.k_center_greedy(rows(2000), 900, start=0))


def test_the_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    def twice(self, *args, **options):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was held back as well")

    monkeypatch.setattr(RunningDistances, "add_picks", twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            alk.k_center_greedy(rows(), 100, start=0, checkpoint=tmp_path / "run.ckpt")
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_and_other_handlers_are_left_alone(tmp_path):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        alk.k_center_greedy(rows(), 20, start=0, checkpoint=tmp_path / "a.ckpt")
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]
    picks = []
    thread = threading.Thread(
        target=lambda: picks.append(alk.k_center_greedy(rows(), 20, start=0, checkpoint=tmp_path / "b.ckpt"))
    )
    thread.start()
    thread.join()
    equal(picks[0], alk.k_center_greedy(rows(), 20, start=0))


def test_a_disk_that_is_really_full_is_named(tmp_path):
    """torch puts an error of its own in place of the system's."""
    from test_ops import run_python

    out = run_python(f"""
    import resource, signal, torch, alkernels as alk
    x = torch.randn(2000, 8)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        alk.k_center_greedy(x, 50, start=0, checkpoint={str(tmp_path / "run.ckpt")!r})
    except OSError as error:
        print(type(error).__name__, error)
    """)
    assert "run.ckpt could not be written: File too large" in out
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_are_numbers(tmp_path):
    path = tmp_path / "run.ckpt"
    for _ in range(2):
        picks = alk.batchbald(draws(), np.int64(3), max_configurations=np.int64(500), generator=1, checkpoint=path)
    equal(picks, alk.batchbald(draws(), 3, max_configurations=500, generator=1))
    other = tmp_path / "other.ckpt"
    for _ in range(2):
        alk.k_center_greedy(
            rows(), 9, start=0, metric=np.str_("cosine"), return_distances=np.bool_(True), checkpoint=other
        )


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.ckpt"
    link.symlink_to(tmp_path / "there" / "run.ckpt")
    alk.k_center_greedy(rows(), 9, start=0, checkpoint=link)
    assert link.is_symlink() and (tmp_path / "there" / "run.ckpt").is_file()
    with pytest.raises(IsADirectoryError, match=r"checkpoint must be a file, got .*there, a directory"):
        alk.k_center_greedy(rows(), 9, start=0, checkpoint=tmp_path / "there")
