"""Read-ahead of host pools on a simulated device: two streams whose work runs as late, or as early, as events allow."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels import _streaming
from alkernels._checkpoint import unsaved
from alkernels._inputs import Pool, check_labeled, check_pool
from alkernels._probabilities import Probabilities
from alkernels._streaming import HostSource, check_target, explain_memory, move, read_ahead
from alkernels.ops import batchbald, joint_entropy
from alkernels.ops import greedy_coverage as coverage
from alkernels.ops import k_center_greedy as k_center
from alkernels.ops import kmeans_plusplus as kmeans
from alkernels.ops import pairwise_kl as kl

GPU = alk.has_cuda_kernels() and torch.cuda.is_available()


class FakeStreams:
    """Streams whose queued operations run in any order that their events allow: drawn, or one stream always first."""

    def __init__(self, seed=0, first=None):
        self.draw, self.first = random.Random(seed), first
        self.queues = {"copy": [], "work": []}
        self.alive, self.finished = [], 0

    def pinned(self, shape, dtype):
        self.alive.append(torch.zeros(tuple(shape), dtype=dtype))
        return self.alive[-1]

    buffer = pinned

    def _append(self, stream, operation):
        self.queues[stream].append(operation)
        for _ in range(self.draw.randrange(4)):
            self._step()

    def _step(self, forced=False):
        streams = [self.first] if self.first and not forced else ["copy", "work"]
        self.draw.shuffle(streams)
        for name in streams:
            queue = self.queues[name]
            if queue and (not isinstance(queue[0], SimpleNamespace) or queue[0].wait.done):
                operation = queue.pop(0)
                if not isinstance(operation, SimpleNamespace):
                    operation()
                return True
        return False

    def _event(self, stream):
        event = SimpleNamespace(done=False)
        self._append(stream, lambda: setattr(event, "done", True))
        return event

    def copy(self, target, source):
        self._append("copy", lambda: target.copy_(source))

    def work(self, operation):
        self._append("work", operation)

    def copied(self):
        return self._event("copy")

    def worked(self):
        return self._event("work")

    def copy_after(self, event):
        self._append("copy", SimpleNamespace(wait=event))

    def work_after(self, event):
        self._append("work", SimpleNamespace(wait=event))

    def finish(self, event):
        self.finished += 1
        while not event.done:
            assert self._step(forced=True), "deadlock"

    def synchronize(self):
        while self._step(forced=True):
            pass
        assert not any(self.queues.values()), "deadlock"


class EagerStreams(FakeStreams):
    """Every operation is over at once."""

    def __init__(self, device=None):
        super().__init__()

    def _append(self, stream, operation):
        if not isinstance(operation, SimpleNamespace):
            operation()


ORDERS = [{"seed": s} for s in range(12)] + [{"first": "copy"}, {"first": "work"}]


def sources(*arrays):
    return Pool(arrays if len(arrays) > 1 else arrays[0], "features", arrays[0].ndim).sources


def walk(streams, arrays, size, slot_bytes):
    """What a consumer sees that queues its work and goes on: the tiles' bounds, the rows as its work found them."""
    count = len(arrays[0])
    seen = [torch.full(tuple(a.shape), -1.0, dtype=torch.float64) for a in arrays]
    bounds = []
    for begin, end, factors in read_ahead(sources(*arrays), count, size, streams, slot_bytes):
        bounds.append((begin, end))
        for out, factor in zip(seen, factors, strict=True):
            assert len(factor) == end - begin
            streams.work(lambda out=out, factor=factor, begin=begin, end=end: out[begin:end].copy_(factor))
    streams.synchronize()
    return bounds, seen


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("count", "size", "slot_rows"),
    [(1, 1, 1), (1, 100, 1), (7, 1, 1), (64, 8, 8), (65, 8, 20), (100, 7, 33), (100, 1000, 13), (100, 1000, 1000)],
)
def test_tiles_hold_the_rows_in_order(count, size, slot_rows, order):
    x = torch.arange(count * 3, dtype=torch.float32).view(count, 3)
    bounds, (seen,) = walk(FakeStreams(**order), [x], size, slot_rows * 12)
    assert torch.equal(seen, x.double())
    assert [b for b, _ in bounds] == [0, *(e for _, e in bounds[:-1])]
    assert bounds[-1][1] == count
    assert max(e - b for b, e in bounds) <= min(size, slot_rows)
    if size <= slot_rows:  # the caller's own tiles
        assert bounds == [(b, min(b + size, count)) for b in range(0, count, size)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_two_factors_share_a_slot(order):
    a = torch.arange(50.0).view(25, 2)
    h = np.arange(75, dtype=np.float64).reshape(25, 3)
    streams = FakeStreams(**order)
    bounds, (first, second) = walk(streams, [a, h], 10, 3 * (2 * 4 + 3 * 8))
    assert bounds[:2] == [(0, 3), (3, 6)]
    assert torch.equal(first, a.double())
    assert torch.equal(second, torch.from_numpy(h))
    assert len(streams.alive) == 8  # two slots, twice each, of two factors


def test_the_simulation_finds_a_missing_wait():
    """Without the waits that read_ahead asks for, some order of execution shows wrong rows."""
    x = torch.arange(60.0).view(60, 1)
    for missing in ("finish", "copy_after", "work_after"):
        wrong = False
        for order in ORDERS:
            streams = FakeStreams(**order)
            setattr(streams, missing, lambda event: None)
            wrong |= not torch.equal(walk(streams, [x], 4, 16)[1][0], x.double())
        assert wrong, missing


def test_an_empty_pool_has_no_tiles():
    assert list(read_ahead(sources(torch.empty(0, 3)), 0, 5, FakeStreams())) == []


def test_probabilities_keep_their_dimensions():
    x = torch.arange(60.0).view(5, 4, 3)
    _, (seen,) = walk(FakeStreams(), [x], 2, 2 * 48)
    assert torch.equal(seen, x.double())


@pytest.mark.parametrize("layout", ["transposed", "flipped", "big-endian", "read-only"])
def test_layouts(layout):
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    if layout == "transposed":
        x = np.asfortranarray(x)
    elif layout == "flipped":
        x = x[::-1, ::-1]
    elif layout == "big-endian":
        x = x.astype(">f4")
    else:
        x.setflags(write=False)
    _, (seen,) = walk(FakeStreams(), [x], 6, 7 * 12)
    assert np.array_equal(seen.numpy(), x.astype(np.float64))


def test_pages_of_a_memory_map_are_let_go(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(8000, dtype=np.float32).reshape(1000, 8))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    (source,) = sources(x)
    released = []
    monkeypatch.setattr(source, "release", lambda begin, end: released.append((begin, end)))
    rows = sum(len(f[0]) for _, _, f in read_ahead([source], 1000, 50, FakeStreams(), 300 * 32))
    assert rows == 1000
    assert released == [(0, 300), (300, 600), (600, 900), (900, 1000)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_consumer_that_stops_early_leaves_no_copy_behind_its_buffers(order):
    x = torch.arange(40.0).view(40, 1)
    streams = FakeStreams(**order)
    tiles = read_ahead(sources(x), 40, 4, streams, 16)
    next(tiles)
    next(tiles)
    with pytest.raises(RuntimeError, match="stop"):
        tiles.throw(RuntimeError("stop"))
    # whatever the work stream does with the memory from here on comes after the copies
    poison = [b.fill_ for b in streams.alive]
    for fill in poison:
        streams.work(lambda fill=fill: fill(-7.0))
    streams.synchronize()
    assert all((b == -7).all() for b in streams.alive)


def test_an_error_while_reading_waits_for_the_copies_before(monkeypatch):
    x = torch.arange(40.0).view(40, 1)
    (source,) = sources(x)
    tile = source.tile

    def broken(begin, end):
        if begin >= 8:
            raise OSError("disk")
        return tile(begin, end)

    monkeypatch.setattr(source, "tile", broken)
    streams = FakeStreams(first="work")
    with pytest.raises(OSError, match="disk"):
        list(read_ahead([source], 40, 4, streams, 16))
    for memory in streams.alive:
        streams.work(lambda memory=memory: memory.fill_(-7.0))
    streams.synchronize()
    assert all((b == -7).all() for b in streams.alive)


def test_two_walks_at_once():
    x = torch.arange(30.0).view(30, 1)
    streams = FakeStreams(seed=3)
    total = torch.zeros(())

    def add(a, b):
        total.add_((a * b.t()).sum())

    for _, _, (left,) in read_ahead(sources(x), 30, 4, streams, 24):
        for _, _, (right,) in read_ahead(sources(x), 30, 5, streams, 40):
            streams.work(lambda left=left, right=right: add(left, right))
    streams.synchronize()
    assert total == x.sum() ** 2


def test_what_fits_is_copied_once():
    x = torch.arange(300.0).view(100, 3)
    whole = move(sources(x), 100, torch.device("cpu"), lambda device: 2001, EagerStreams)
    assert torch.equal(whole[0], x)
    assert move(sources(x), 100, torch.device("cpu"), lambda device: 1999, EagerStreams) is None


def test_memory_in_pieces_is_no_memory():
    streams = FakeStreams()

    def fail(shape, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    streams.buffer = fail
    assert move(sources(torch.ones(4, 1)), 4, torch.device("cpu"), lambda d: 1 << 30, lambda d: streams) is None


def test_rows_are_gathered_on_the_host():
    source = HostSource(sources(torch.arange(12.0).view(6, 2))[0], torch.device("cpu"))
    assert source.gather(torch.tensor([5, 0])).tolist() == [[10, 11], [0, 1]]
    assert source.tile(2, 4).tolist() == [[4, 5], [6, 7]]
    assert (source.dtype, tuple(source.shape)) == (torch.float32, (6, 2))


@pytest.fixture
def simulated(monkeypatch):
    """A pool's target is the CPU behind fake streams that run at once; `share` is of 1 MB of memory."""
    from alkernels import _inputs

    meant = torch.device("cpu", 0)  # unlike the host's torch.device("cpu")
    monkeypatch.setattr(_inputs, "check_target", lambda device: meant)
    monkeypatch.setattr(_inputs, "CudaStreams", EagerStreams)
    monkeypatch.setattr(_inputs, "move", lambda *a: move(*a, free=lambda d: 1 << 20, streams=EagerStreams))
    return meant


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("kind", ["tensor", "array", "map", "pair"])
def test_a_pool_is_walked_as_on_the_host(kind, share, simulated, monkeypatch, tmp_path):
    monkeypatch.setattr(_streaming, "SHARE", share)
    monkeypatch.setattr(_streaming, "BYTES_A_SLOT", 1000)
    x = np.random.default_rng(0).normal(size=(203, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    rows = {
        "tensor": torch.from_numpy(x),
        "array": x,
        "map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "pair": (x, torch.from_numpy(x[:, :2])),
    }[kind]
    here, there = Pool(rows, "features"), Pool(rows, "features", device="cuda")
    assert (there.streamed, there.sliced, there.target) == (share == 0, False, simulated)
    assert there.widths == here.widths
    tiles = [tuple(f.clone() for f in factors) for _, _, factors in there.tiles(50)]
    for factor, tiled in zip(here.tile(0, 203), zip(*tiles, strict=True), strict=True):
        assert torch.equal(torch.cat(tiled), factor)
    index = torch.tensor([200, 3, 3])
    assert all(map(torch.equal, there.gather(index), here.gather(index)))
    assert all(map(torch.equal, there.tile(5, 9), here.tile(5, 9)))
    assert there.check_finite() == here.check_finite()
    assert type(there.out(index)) is type(here.out(index))


@pytest.mark.parametrize("slot", [100, 5000])
def test_ops_take_any_tiles(slot, simulated, monkeypatch, rng):
    """What the ops' loops find does not depend on where a streamed pool is cut."""
    monkeypatch.setattr(_streaming, "SHARE", 0.0)
    monkeypatch.setattr(_streaming, "BYTES_A_SLOT", slot)
    x = torch.randint(-8, 9, (300, 7), generator=rng).float()
    a, known = x[:, :3].contiguous(), torch.randint(-8, 9, (40, 7), generator=rng).float()
    probs = torch.rand(60, 4, 5, generator=rng).softmax(-1)

    def here(rows, name="features", dims=2):
        return Pool(rows, name, dims)

    def there(rows, name="features", dims=2):
        pool = Pool(rows, name, dims, device="cuda")
        assert pool.streamed
        return pool

    def centers(pool, op, *args):
        run = op.select(*args, track=True, progress=False)
        return run.indices, run.state.distances(), run.state.nearest

    worth = torch.ones(300).double()

    def results(pool):
        draws = Probabilities(pool(probs, "probs", 3), "probs", 3, False)
        draws.check()
        sides = [Probabilities(pool(probs[:, i].contiguous(), n), n, 2, False) for i, n in enumerate("pq")]
        return [
            *centers(pool, k_center, pool(x), 50, pool(known, "labeled"), None, "euclidean", None),
            *centers(pool, k_center, pool((a, x)), 50, None, 3, "outer", None),
            *centers(pool, kmeans, pool(x), 50, None, None, 0),
            *coverage.select(
                pool(x), 20, None, worth, torch.zeros(300).double(), pool(known, "labeled"), 2, 9.5, progress=False
            ),
            *batchbald.select(draws, 4, joint_entropy.Configurations(draws, 1000, 1000, 0), unsaved(0), progress=False),
            kl._full(*sides, False),
            *kl._top(*sides, 3, False, False),
            kl._mean(*sides),
            kl._gathered(*sides, torch.arange(120).view(60, 2) % 60, "q"),
        ]

    for streamed, whole in zip(results(there), results(here), strict=True):
        torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-7)  # what is promised of all pairs


def test_a_bad_row_is_named_as_on_the_host(simulated, monkeypatch):
    monkeypatch.setattr(_streaming, "SHARE", 0.0)
    monkeypatch.setattr(_streaming, "BYTES_A_SLOT", 64)
    x = torch.zeros(100, 2)
    x[77, 1] = torch.nan
    with pytest.raises(ValueError, match=r"features must be finite, got nan in row 77, column 1"):
        Pool(x, "features", device="cuda").check_finite()


def test_labelled_rows_follow_the_pool(simulated):
    pool = check_pool(torch.ones(9, 2), device="cuda")
    labeled = check_labeled(np.ones((3, 2)), pool)
    assert labeled.target == pool.target == simulated


def test_rows_elsewhere_are_refused(simulated):
    with pytest.raises(ValueError, match=r"features must be in host memory or on cpu:0 \(device\), got meta"):
        Pool(torch.ones(3, 2, device="meta"), "features", device="cuda")


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ("cpu", ValueError, "device must be a CUDA device such as 'cuda' or 'cuda:0', got 'cpu'"),
        (torch.device("meta"), ValueError, "device must be a CUDA device such as 'cuda' or 'cuda:0', got 'meta'"),
        ("gpu", ValueError, "device must be a CUDA device such as 'cuda' or 'cuda:0', got 'gpu'"),
        (0, TypeError, "device must be a torch.device or its name, such as 'cuda', got int"),
    ],
)
def test_devices_that_are_none(device, error, words):
    with pytest.raises(error) as found:
        Pool(torch.ones(3, 2), "features", device=device)
    assert str(found.value) == words


def test_devices_that_are_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device must be a CUDA device that torch can use, got 'cuda' where it finds"):
        check_target("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(ValueError, match="device must be one of 2 CUDA devices, got 'cuda:2'"):
        check_target("cuda:2")
    monkeypatch.setattr("alkernels._load.has_cuda_kernels", lambda: False)
    with pytest.raises(
        ValueError, match="device must be left out, got 'cuda:1': this build of alkernels has kernels fo"
    ):
        check_target("cuda:1")
    monkeypatch.setattr("alkernels._load.has_cuda_kernels", lambda: True)
    assert check_target("cuda") == torch.device("cuda:1")


def out_of_memory():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.00 GiB is "
        "free."
    )


def test_out_of_memory_says_what_to_do():
    pool = Pool(torch.ones(1000, 250), "features")
    with pytest.raises(torch.OutOfMemoryError) as found, explain_memory(pool, "300 picks", need=2_500_000_000):
        out_of_memory()
    assert str(found.value) == (
        "no GPU memory for 300 picks, about 2.5 GB beyond features itself: features (1000 x 250 float32, 1 MB) is on "
        "cpu. Tried to allocate 2.00 GiB. Pass a smaller k, or features in host memory with device='cpu', which "
        "streams what does not fit, or features in float16 or bfloat16."
    )
    assert isinstance(found.value.__cause__, torch.OutOfMemoryError)


def test_out_of_memory_offers_only_what_helps():
    pool = Pool((torch.ones(10, 2).half(), torch.ones(10, 3).half()), "features")
    pool.streamed = True
    for fewer, advice in (("batch_size", "Pass a smaller batch_size."), (None, "Pass less at a time.")):
        with pytest.raises(torch.OutOfMemoryError) as found, explain_memory(pool, "the batch", fewer=fewer):
            out_of_memory()
        assert str(found.value).startswith("no GPU memory for the batch: features (10 x 2 and 10 x 3 float16, 100 ")
        assert "is streamed. Tried to allocate 2.00 GiB. " in str(found.value)
        assert str(found.value).endswith(advice)


def test_other_errors_pass_through():
    pool = Pool(torch.ones(10, 2), "features")
    with pytest.raises(ValueError, match="mine"), explain_memory(pool, "nothing"):
        raise ValueError("mine")


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("slot", [1 << 16, 128 << 20])
def test_streamed_pools_on_a_gpu(share, slot, rng, monkeypatch):
    monkeypatch.setattr(_streaming, "SHARE", share)
    monkeypatch.setattr(_streaming, "BYTES_A_SLOT", slot)
    x = torch.randint(-8, 9, (20_000, 33), generator=rng).float()
    plain = alk.k_center_greedy(x, 300, start=0, return_distances=True)
    for rows in (x, x.numpy(), x.double()):
        pool = check_pool(rows, device="cuda")
        run = k_center.select(pool, 300, None, 0, "euclidean", None, track=True, progress=False)
        picks = pool.out(run.indices)
        assert isinstance(picks, np.ndarray) == isinstance(rows, np.ndarray)
        assert torch.equal(torch.as_tensor(picks), plain.indices)
        assert torch.equal(torch.as_tensor(pool.out(run.state.distances())).sqrt(), plain.distances)
