"""Pools in files: HDF5, Zarr, safetensors, Arrow, Parquet and memory maps give the picks of the same pool in memory."""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time

import numpy as np
import pytest
import torch
from test_ops import run_python

import alkernels as alk
from alkernels import _inputs
from alkernels._checkpoint import fingerprint
from alkernels._datasets import ParquetColumn
from alkernels._inputs import Pool
from alkernels._sources import ArraySource, RowsOf, free_host_memory, read_slabs

FORMATS = ["npy", "h5", "h5-gzip", "zarr", "zarr-sharded", "safetensors-pt", "safetensors-np", "arrow", "arrow-file"]
FORMATS += ["parquet"]


def stored(kind, rows, folder):
    """The rows in a file of some kind, opened by its own library."""
    path = folder / f"{kind}-{len(list(folder.iterdir()))}"
    rows = np.ascontiguousarray(rows)
    some = max(1, len(rows) // 7)
    if kind == "npy":
        np.save(f"{path}.npy", rows)
        return np.load(f"{path}.npy", mmap_mode="r")
    if kind.startswith("h5"):
        import h5py

        options = {"chunks": (some, *rows.shape[1:]), "compression": "gzip"} if kind == "h5-gzip" else {}
        with h5py.File(path, "w") as file:
            file.create_dataset("rows", data=rows, **options)
        return h5py.File(path)["rows"]
    if kind.startswith("zarr"):
        import zarr

        more = {"shards": (4 * some, *rows.shape[1:])} if kind == "zarr-sharded" else {}
        zarr.create_array(path, data=rows, chunks=(some, *rows.shape[1:]), **more)
        return zarr.open(path, mode="r")
    if kind.startswith("safetensors"):
        from safetensors import safe_open
        from safetensors.torch import save_file

        save_file({"rows": torch.from_numpy(rows)}, path)
        return safe_open(path, kind[-2:]).get_slice("rows")
    import pyarrow as arrow

    column = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), rows.shape[1])
    table = arrow.table({"rows": arrow.chunked_array([column[:some], column[some:some], column[some:]])})
    if kind == "arrow":
        return table["rows"]
    if kind == "arrow-file":
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return arrow.ipc.open_file(arrow.memory_map(str(path))).read_all()["rows"]
    import pyarrow.parquet as parquet

    parquet.write_table(table, path, row_group_size=some)
    return ParquetColumn(path, "rows")


@pytest.fixture
def small_tiles(monkeypatch):
    """So small that every walk has many slabs, some of which end amid a chunk."""
    monkeypatch.setattr(_inputs, "_BYTES_A_TILE", 5000)


def integers(count, width, dtype="float32", seed=0):
    return np.random.default_rng(seed).integers(-9, 10, (count, width)).astype(dtype)


def distributions(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape)
    return (np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)).astype(np.float32)


def equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_selections_are_those_in_memory(kind, dtype, tmp_path, small_tiles):
    x, labeled = integers(700, 12, dtype), integers(5, 12, dtype, seed=1)
    rows, known = stored(kind, x, tmp_path), stored(kind, labeled, tmp_path)
    options = {"labeled": known, "return_distances": True}
    in_memory = {"labeled": labeled, "return_distances": True}
    equal(alk.k_center_greedy(rows, 60, **options), alk.k_center_greedy(x, 60, **in_memory))
    equal(alk.k_center_greedy(rows, 9, metric="cosine", start=3), alk.k_center_greedy(x, 9, metric="cosine", start=3))
    equal(alk.kmeans_plusplus(rows, 60, generator=4, **options), alk.kmeans_plusplus(x, 60, generator=4, **in_memory))
    of = {"kernel": "tophat", "bandwidth": 18.0, "return_covered": True}
    equal(alk.greedy_coverage(rows, 9, labeled=known, **of), alk.greedy_coverage(x, 9, labeled=labeled, **of))
    equal(alk.knn(rows, known, 3), alk.knn(x, labeled, 3))
    equal(alk.knn(known, rows, 30), alk.knn(labeled, x, 30))


@pytest.mark.parametrize("kind", FORMATS)
def test_outer_products_and_distributions_are_those_in_memory(kind, tmp_path, small_tiles):
    p, h = distributions(300, 6), integers(300, 9)
    of_p, of_h = stored(kind, p, tmp_path), stored(kind, h, tmp_path)
    equal(alk.kmeans_plusplus((of_p, of_h), 40, generator=0), alk.kmeans_plusplus((p, h), 40, generator=0))
    equal(alk.k_center_greedy((of_p, h), 40, start=1), alk.k_center_greedy((p, h), 40, start=1))
    equal(
        alk.k_center_greedy(of_p, 20, metric="symmetric_kl", start=1),
        alk.k_center_greedy(p, 20, metric="symmetric_kl", start=1),
    )
    equal(alk.pairwise_kl(of_p, of_p, reduce="topk", k=4), alk.pairwise_kl(p, p, reduce="topk", k=4))
    for reduce in ("mean", "max"):
        np.testing.assert_array_equal(alk.pairwise_kl(of_p, of_p, reduce=reduce), alk.pairwise_kl(p, p, reduce=reduce))
    near = np.random.default_rng(2).integers(300, size=(300, 5))
    np.testing.assert_array_equal(alk.pairwise_kl(of_p, of_p, neighbors=near), alk.pairwise_kl(p, p, neighbors=near))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if "arrow" not in kind and kind != "parquet"])
def test_draws_are_those_in_memory(kind, tmp_path, small_tiles):
    draws = distributions(120, 7, 4)
    rows = stored(kind, draws, tmp_path)
    equal(alk.batchbald(rows, 5), alk.batchbald(draws, 5))
    np.testing.assert_array_equal(alk.bald(rows), alk.bald(draws))
    np.testing.assert_array_equal(alk.epig(rows, rows), alk.epig(draws, draws))
    some = stored(kind, draws[:3], tmp_path)
    np.testing.assert_array_equal(alk.joint_entropy(rows, some), alk.joint_entropy(draws, draws[:3]))


def test_bfloat16_slices_are_read_as_tensors(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    x = torch.from_numpy(integers(200, 8)).bfloat16()
    save_file({"rows": x}, tmp_path / "x.safetensors")
    picks = alk.k_center_greedy(safe_open(tmp_path / "x.safetensors", "pt").get_slice("rows"), 20, start=0)
    assert torch.equal(picks.indices, alk.k_center_greedy(x, 20, start=0).indices)
    with pytest.raises(TypeError, match="features of dtype BF16 must be opened with framework='pt'"):
        alk.k_center_greedy(safe_open(tmp_path / "x.safetensors", "np").get_slice("rows"), 20)


@pytest.mark.parametrize("kind", FORMATS)
def test_select_takes_them_by_name_and_with_candidates(kind, tmp_path, small_tiles):
    x, probs = integers(300, 9), distributions(300, 4)
    arrays = {"features": stored(kind, x, tmp_path), "probs": stored(kind, probs, tmp_path)}
    some = np.arange(300) % 3 > 0
    for strategy in ("k_center_greedy", "badge", "margin", "facility_location"):
        for candidates in (None, some):
            found = alk.select(strategy, 12, candidates=candidates, generator=0, **arrays)
            wanted = alk.select(strategy, 12, candidates=candidates, generator=0, features=x, probs=probs)
            np.testing.assert_array_equal(np.asarray(found.indices), wanted.indices, err_msg=strategy)


@pytest.mark.parametrize("kind", FORMATS)
def test_results_are_of_the_files_kind(kind, tmp_path):
    picks = alk.k_center_greedy(stored(kind, integers(30, 4), tmp_path), 3, start=0)
    assert isinstance(picks.indices, torch.Tensor if kind == "safetensors-pt" else np.ndarray)


# ---- how they are read ----


class Sliced:
    """Rows that note which were asked for, and in which thread."""

    def __init__(self, rows, chunk=None):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.chunks = None if chunk is None else (chunk, *rows.shape[1:])
        self.asked, self.threads, self.delay = [], [], 0.0

    def __getitem__(self, rows):
        if rows.stop:
            self.asked.append((rows.start, rows.stop))
            self.threads.append(threading.current_thread().name)
            time.sleep(self.delay)
        return self.rows[rows]


def test_a_walk_reads_each_row_once_in_order_and_ahead():
    rows = Sliced(integers(1000, 8))
    rows.delay = 0.01
    pool = Pool(rows, "features")
    pool.tile_bytes = 100 * 32
    begun, seen, ahead = [], [], 0
    for begin, end, (tile,) in pool.tiles(25):
        begun.append(begin)
        seen.append(tile.clone())
        time.sleep(0.01)  # work, meanwhile the next slab is read
        ahead = max(ahead, rows.asked[-1][1] - end)
    assert begun == list(range(0, 1000, 25))
    assert rows.asked == [(b, b + 100) for b in range(0, 1000, 100)]
    assert torch.equal(torch.cat(seen), torch.from_numpy(rows.rows))
    assert ahead >= 100  # the slab after the one that is worked on
    assert "MainThread" not in rows.threads[1:]


def test_no_more_than_two_slabs_are_held():
    rows = Sliced(integers(1000, 8))
    pool = Pool(rows, "features")
    pool.tile_bytes = 100 * 32
    for _, end, _ in pool.tiles(100):
        time.sleep(0.005)
        assert rows.asked[-1][1] <= end + 100


@pytest.mark.parametrize(("chunk", "slabs"), [(7, 15), (30, 12), (50, 10), (100, 10), (250, 4), (999, 2)])
def test_slabs_end_where_chunks_do(chunk, slabs):
    """No chunk that fits is unpacked twice in a walk."""
    rows = Sliced(integers(1000, 8), chunk)
    pool = Pool(rows, "features")
    pool.tile_bytes = 100 * 32
    for _ in pool.tiles(10):
        pass
    assert all(begin % chunk == 0 for begin, _ in rows.asked)
    assert len(rows.asked) == slabs
    assert [b for b, _ in rows.asked] == [0, *(e for _, e in rows.asked[:-1])]


@pytest.mark.parametrize("chunk", [1, 5000])
def test_gathered_rows_are_read_in_runs(chunk):
    """A run goes on over a gap that costs less than another read, or to the end of a chunk."""
    rows = Sliced(integers(5000, 8), chunk)
    picked = torch.tensor([4999, 3, 4, 2500, 0])
    assert torch.equal(Pool(rows, "features").gather(picked)[0], torch.from_numpy(rows.rows)[picked])
    assert rows.asked == {1: [(0, 5), (2500, 2501), (4999, 5000)], 5000: [(0, 5000)]}[chunk]


@pytest.mark.parametrize("there", [False, True])
def test_a_map_is_asked_for_once_a_walk_and_only_what_is_not_there(tmp_path, monkeypatch, there):
    x = integers(20_000, 64)
    np.save(tmp_path / "x.npy", x)
    asked = []

    def advise(source, advice, start, size):
        if advice == mmap.MADV_WILLNEED:
            asked.append((start, start + size))

    monkeypatch.setattr(ArraySource, "_advise", advise)
    monkeypatch.setattr(ArraySource, "_is_there", lambda source, start: there)
    pool = Pool(np.load(tmp_path / "x.npy", mmap_mode="r"), "features")
    pool.tile_bytes = 3000 * 256
    for _ in range(2):
        asked.clear()
        assert torch.equal(torch.cat([f[0] for _, _, f in pool.tiles(1000)]), torch.from_numpy(x))
        if there:
            assert not asked
            continue
        assert asked[0][0] == 0 and asked[-1][1] == os.path.getsize(tmp_path / "x.npy")
        assert all(a[1] - mmap.PAGESIZE < b[0] <= a[1] for a, b in itertools.pairwise(asked))


def test_what_the_system_has_of_a_map_is_known(tmp_path):
    np.save(tmp_path / "x.npy", integers(20_000, 64))
    source = ArraySource(np.load(tmp_path / "x.npy", mmap_mode="r"), "features")
    np.load(tmp_path / "x.npy")
    assert source._is_there(0) and source._is_there(4 << 20)
    source.tells = False  # of another's file it is told that all is there, whatever there is
    assert not source._is_there(0)


def test_what_is_read_is_counted(tmp_path, small_tiles):
    x = integers(700, 12)
    rows = stored("npy", x, tmp_path)
    with alk.count_reads() as reads:
        alk.k_center_greedy(rows, 60, start=0)
    assert reads.passes > 1 and reads.bytes == reads.passes * x.nbytes
    assert 0 < reads.gathered_bytes <= 1000 * 48
    with alk.count_reads() as both, alk.count_reads() as inner:
        alk.k_center_greedy(rows, 60, start=0)
    assert both == inner == reads
    with alk.count_reads() as none:
        alk.k_center_greedy(x, 60, start=0)
    assert none == alk.Reads()


def test_a_selection_takes_few_passes(tmp_path):
    x = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
    with alk.count_reads() as reads:
        alk.k_center_greedy(stored("npy", x, tmp_path), 500, start=0)
    assert reads.passes <= 15


def test_an_error_while_reading_ahead_arrives(tmp_path):
    class Broken(Sliced):
        def __getitem__(self, rows):
            if rows.start >= 500 if rows.start else False:
                raise OSError("input/output error")
            return super().__getitem__(rows)

    pool = Pool(Broken(integers(1000, 8)), "features")
    pool.tile_bytes = 100 * 32
    with pytest.raises(OSError, match="input/output error"):
        list(pool.tiles(100))


def test_a_walk_that_is_left_early_ends_its_thread():
    pool = Pool(Sliced(integers(1000, 8)), "features")
    pool.tile_bytes = 100 * 32
    before = threading.active_count()
    for _ in itertools.islice(pool.tiles(100), 2):
        pass
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_slabs_of_any_size_give_the_same_rows():
    rows = Sliced(integers(97, 3), 10)
    sources = Pool(rows, "features").sources
    for size, most in itertools.product((1, 7, 10, 33, 200), (12, 100, 600, 10_000)):
        tiles = list(read_slabs(sources, 97, size, most))
        assert [b for b, _, _ in tiles] == [0, *(e for _, e, _ in tiles[:-1])] and tiles[-1][1] == 97
        assert torch.equal(torch.cat([f[0] for _, _, f in tiles]), torch.from_numpy(rows.rows))
        at_once = max(1, most // 12)
        if size <= at_once:  # the caller's own tiles
            assert [b for b, _, _ in tiles] == list(range(0, 97, size))


def test_rows_of_a_file_are_read_as_the_file_lies(tmp_path):
    x = integers(500, 6)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:200]
    for kind in ("npy", "h5", "parquet"):
        pool = Pool(RowsOf(stored(kind, x, tmp_path), order), "features")
        pool.tile_bytes = 30 * 24
        assert torch.equal(torch.cat([f[0] for _, _, f in pool.tiles(8)]), torch.from_numpy(x)[order])


# ---- memory ----


MEASURE = """
import resource, numpy as np, torch, alkernels as alk
def now(field):
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(field + ":"))
alk.k_center_greedy(torch.randn(3000, 64), 50, start=0)  # what torch and the kernels take once
"""


def limited_run(path, k, allowed, memory_limit):
    """Picks and reads of a child process that may take `allowed` bytes beyond what importing torch took, no more."""
    out = run_python(
        MEASURE
        + f"""
base = now("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (base + {allowed},) * 2)
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = now("VmRSS")
x = np.load({str(path)!r}, mmap_mode="r")
with alk.count_reads() as reads:
    picks = alk.k_center_greedy(x, {k}, start=0, memory_limit={memory_limit})
print(reads.passes, reads.bytes, reads.gathered_bytes, now("VmHWM") - before)
print(*picks.indices)
""",
        OMP_NUM_THREADS="2",
    )
    first, second = out.strip().split("\n")
    return [int(v) for v in first.split()], np.array([int(v) for v in second.split()])


def write_pool(path, count, width):
    rows = np.lib.format.open_memmap(path, "w+", "float32", (count, width))
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((64, width)).astype(np.float32)
    noise = rng.standard_normal((20_000, width)).astype(np.float32)
    for begin in range(0, count, 20_000):
        end = min(begin + 20_000, count)
        turned = np.roll(noise[: end - begin], begin // 20_000, axis=1)
        rows[begin:end] = middles[rng.integers(64, size=end - begin)] + turned
    rows.flush()


@pytest.mark.parametrize(
    ("count", "width", "k", "allowed"),
    [
        (150_000, 512, 200, 200 << 20),
        pytest.param(1_100_000, 1024, 1000, 400 << 20, marks=pytest.mark.slow),
    ],
)
def test_a_pool_larger_than_the_memory_that_it_may_take(count, width, k, allowed, tmp_path):
    """The picks of the same pool in memory, under a hard limit, and resident memory as small, mapped pages included."""
    path = tmp_path / "pool.npy"
    write_pool(path, count, width)
    (passes, read, gathered, peak), picks = limited_run(path, k, allowed, allowed)
    assert 1.4 * allowed < count * width * 4
    assert read == passes * count * width * 4
    assert gathered < read / 10
    assert peak <= allowed
    np.testing.assert_array_equal(picks, alk.k_center_greedy(torch.from_numpy(np.load(path)), k, start=0).indices)


def test_a_limit_makes_tiles_smaller_and_changes_nothing_else(tmp_path):
    x = integers(3000, 300)
    rows = Sliced(x)
    wanted = alk.k_center_greedy(x, 50, start=0)
    equal(alk.k_center_greedy(rows, 50, start=0), wanted)
    largest = max(end - begin for begin, end in rows.asked)
    rows.asked.clear()
    limit = (48 << 20) + 40 * 3000 + 3 * 100 * 8 * 300
    equal(alk.k_center_greedy(rows, 50, start=0, memory_limit=limit), wanted)
    assert max(end - begin for begin, end in rows.asked) <= 200 < largest


@pytest.mark.parametrize(
    "call",
    [
        lambda x, **o: alk.k_center_greedy(x, 5, start=0, **o),
        lambda x, **o: alk.kmeans_plusplus(x, 5, **o),
        lambda x, **o: alk.greedy_coverage(x, 5, **o),
        lambda x, **o: alk.knn(x, x, 5, **o),
        lambda x, **o: alk.pairwise_kl(x, x, reduce="max", **o),
        lambda x, **o: alk.select("badge", 5, features=x, probs=x, **o),
        lambda x, **o: alk.select("badge", 5, features=x, probs=x, bias=True, **o),
        lambda x, **o: alk.select("facility_location", 5, features=x, **o),
    ],
)
def test_a_limit_too_small_for_one_tile_is_named(call):
    x = distributions(200, 50)
    wanted = r"memory_limit must be at least \d+ bytes for 200 rows of \w+.*, got 100000$"
    with pytest.raises(ValueError, match=wanted) as refused:
        call(x, memory_limit=100_000)
    call(x, memory_limit=int(str(refused.value).split()[5]))  # what it takes is enough
    for wrong, error in ((0, ValueError), (2.5, TypeError), ("1GB", TypeError)):
        with pytest.raises(error, match="memory_limit must be"):
            call(x, memory_limit=wrong)


def test_a_limit_for_draws_is_named():
    draws = distributions(50, 6, 3)
    with pytest.raises(ValueError, match=r"memory_limit must be at least \d+ bytes for 50 rows of probs"):
        alk.batchbald(draws, 3, memory_limit=1000)
    with pytest.raises(ValueError, match="memory_limit must be None for margin, which takes none, got 5"):
        alk.select("margin", 5, probs=draws[:, 0], memory_limit=5)


@pytest.mark.parametrize("bias", [True, False])
def test_badge_reads_features_in_tiles(bias):
    """With a bias too, for which they are one column wider."""
    x, probs = integers(20_000, 99), distributions(20_000, 3)
    rows = Sliced(x)
    limit = (48 << 20) + 100 * 20_000
    wanted = alk.select("badge", 20, features=x, probs=probs, bias=bias, generator=0)
    found = alk.select("badge", 20, features=rows, probs=probs, bias=bias, generator=0, memory_limit=limit)
    equal(found, wanted)
    assert max(end - begin for begin, end in rows.asked) < 20_000


def test_free_memory_is_within_the_processes_limits():
    code = """
    import resource
    from alkernels._sources import free_host_memory
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
    print(free_host_memory())
    """
    assert 0 < int(run_python(code)) <= 3 << 29
    assert 1 << 26 < free_host_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ---- files that change, and what is no pool ----


def passes_with(pool, between):
    """Walks a pool once, lets something happen to the file, and walks it again."""
    for _ in pool.tiles(50):
        pass
    between()
    for _ in pool.tiles(50):
        pass


@pytest.mark.parametrize("tiles", ["one", "many"])
def test_a_map_that_shrinks_is_noticed(tmp_path, tiles, monkeypatch):
    """Reading behind the end of the file would end the process by a signal."""
    if tiles == "many":
        monkeypatch.setattr(_inputs, "_BYTES_A_TILE", 20_000)
    rows = stored("npy", integers(20_000, 8), tmp_path)
    with pytest.raises(ValueError, match=r"features must not shrink while it is read, got 100000 of \d+ bytes"):
        passes_with(Pool(rows, "features"), lambda: os.truncate(rows.filename, 100_000))
    with pytest.raises(ValueError, match="features must not shrink"):
        alk.k_center_greedy(rows, 5)
    with pytest.raises(ValueError, match="features must not shrink"):
        pool = Pool(stored("npy", integers(20_000, 8), tmp_path), "features")
        os.truncate(pool.sources[0].array.filename, 100_000)
        pool.gather(torch.tensor([19_999]))


@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_a_file_that_changes_is_noticed_at_the_next_pass(tmp_path, kind):
    rows = stored(kind, integers(500, 8), tmp_path)
    path = rows.filename if kind == "npy" else rows.file.filename

    def change():
        with open(path, "r+b") as file:
            file.seek(300)
            file.write(b"\1")
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1_000_000))

    with pytest.raises(ValueError, match=r"features must not change while it is read, but .* did"):
        passes_with(Pool(rows, "features"), change)


def test_a_selection_from_a_file_that_changes_ends(tmp_path, monkeypatch, small_tiles):
    rows = stored("npy", integers(2000, 8), tmp_path)
    from alkernels.ops.running_distances import RunningDistances

    add = RunningDistances.add_picks

    def changing(self, *args, **options):
        os.utime(rows.filename, ns=(0, os.stat(rows.filename).st_mtime_ns + 1_000_000))
        return add(self, *args, **options)

    monkeypatch.setattr(RunningDistances, "add_picks", changing)
    with pytest.raises(ValueError, match="features must not change while it is read"):
        alk.k_center_greedy(rows, 100, start=0)


def test_a_file_that_another_takes_the_place_of_is_still_read(tmp_path):
    x = integers(500, 8)
    rows = stored("npy", x, tmp_path)
    other = stored("npy", integers(10, 8), tmp_path)
    pool = Pool(rows, "features")
    passes_with(pool, lambda: os.replace(other.filename, rows.filename))
    equal(alk.k_center_greedy(rows, 9, start=0), alk.k_center_greedy(x, 9, start=0))


def test_a_dataset_that_shrinks_is_noticed():
    rows = Sliced(integers(500, 8))
    pool = Pool(rows, "features")
    rows.rows = rows.rows[:300]
    with pytest.raises(ValueError, match="features must not shrink while it is read, got 300 rows of 0 to 500"):
        list(pool.tiles(50))


def arrow_column(values, kind=None):
    import pyarrow as arrow

    return arrow.chunked_array([arrow.array(values, type=kind)])


def no_pools():
    import pyarrow as arrow

    fixed = arrow.list_(arrow.float32(), 2)
    return {
        "text": (
            "rows",
            TypeError,
            "or a dataset whose slices are such rows .HDF5, Zarr, safetensors, Arrow., got str",
        ),
        "list": ([[1.0]], TypeError, "features must be a torch.Tensor or a numpy.ndarray .* got list"),
        "integers": (Sliced(np.zeros((3, 2), dtype=np.int32)), TypeError, "features must be of dtype .* got int32"),
        "one dimension": (Sliced(np.zeros(3, dtype=np.float32)), ValueError, r"two-dimensional .*, got shape \(3,\)"),
        "three": (Sliced(np.zeros((3, 2, 2), np.float32)), ValueError, r"two-dimensional .*, got shape \(3, 2, 2\)"),
        "no columns": (Sliced(np.zeros((3, 0), dtype=np.float32)), ValueError, "at least one column"),
        "lists": (arrow_column([[1.0], [2.0, 3.0]]), TypeError, "a column of fixed-size lists of numbers, got one of"),
        "numbers": (arrow_column([1.0, 2.0]), TypeError, "a column of fixed-size lists of numbers, got one of type d"),
        "of integers": (arrow_column([[1, 2]], arrow.list_(arrow.int32(), 2)), TypeError, "of dtype .* got int32"),
        "null list": (arrow_column([[1, 2], None], fixed), ValueError, "no null, got one in rows 0 to 1"),
        "null number": (arrow_column([[1, 2], [None, 3]], fixed), ValueError, "no null, got one in rows 0 to 1"),
        "NaN": (arrow_column([[1, 2], [np.nan, 3]], fixed), ValueError, "finite, got nan in row 1, column 0"),
    }


@pytest.mark.parametrize("which", no_pools())
def test_what_is_no_pool_is_named(which):
    rows, error, message = no_pools()[which]
    with pytest.raises(error, match=message):
        alk.k_center_greedy(rows, 1)


def test_sparse_matrices_are_no_pool():
    from scipy import sparse

    with pytest.raises(TypeError, match=r"features must be a torch.Tensor or a numpy.ndarray .* got csr_"):
        alk.k_center_greedy(sparse.eye_array(4, format="csr", dtype=np.float32), 1)


def test_a_parquet_column_is_sliced_in_any_order(tmp_path):
    x = integers(1000, 5)
    column = stored("parquet", x, tmp_path)
    column._batch_rows = 37
    rng = np.random.default_rng(1)
    for begin in [0, 10, 999, 5, 500, 501, 142, *rng.integers(1000, size=40)]:
        end = int(min(1000, begin + rng.integers(1, 300)))
        np.testing.assert_array_equal(column[int(begin) : end], x[int(begin) : end])
    assert column[5:5].shape == column[9:2].shape == (0, 5)
    with pytest.raises(TypeError, match="must be a slice, got int"):
        column[3]
    with pytest.raises(ValueError, match="must have step 1, got 2"):
        column[0:10:2]
    with pytest.raises(ValueError, match="must have a column other, got rows"):
        ParquetColumn(column.path, "other")


def test_a_parquet_walk_decodes_each_row_once(tmp_path, monkeypatch):
    x = integers(1000, 5)
    column = stored("parquet", x, tmp_path)
    column._batch_rows = 37
    decoded = []
    decode = ParquetColumn._decode

    def counting(self):
        decode(self)
        decoded.append(len(self._rest))

    monkeypatch.setattr(ParquetColumn, "_decode", counting)
    pool = Pool(column, "features")
    pool.tile_bytes = 90 * 20
    for _ in range(2):
        decoded.clear()
        assert torch.equal(torch.cat([f[0] for _, _, f in pool.tiles(30)]), torch.from_numpy(x))
        assert sum(decoded) == 1000


# ---- files by their names ----


@pytest.mark.parametrize("kind", FORMATS)
def test_open_array_reads_every_kind(kind, tmp_path):
    x = integers(60, 4)
    stored(kind, x, tmp_path)
    (made,) = (p for p in tmp_path.iterdir() if p.name != "arrow") if kind != "arrow" else (None,)
    if made is None:
        return
    ending, name = {
        "npy": (".npy", ""),
        "h5": (".h5", ":rows"),
        "zarr": (".zarr", ""),
        "safetensors": (".safetensors", ":rows"),
        "arrow": (".arrow", ":rows"),
        "parquet": (".parquet", ":rows"),
    }[kind.partition("-")[0]]
    path = tmp_path / f"pool{ending}"
    os.rename(made, path)
    for text in {f"{path}{name}", str(path)}:
        rows = alk.open_array(text)
        equal(alk.k_center_greedy(rows, 5, start=0), alk.k_center_greedy(x, 5, start=0))
    assert fingerprint(Pool(rows, "features")) == fingerprint(Pool(x, "features"))


def test_open_array_names_what_is_wrong(tmp_path, monkeypatch):
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b"], file["c"] = integers(3, 2), np.arange(3)
    with pytest.raises(
        ValueError, match=r"path .*x.h5 cannot be read as an array: it holds the arrays a/b, c; pick one"
    ):
        alk.open_array(tmp_path / "x.h5")
    np.testing.assert_array_equal(alk.open_array(f"{tmp_path}/x.h5:c"), [0, 1, 2])
    with pytest.raises(FileNotFoundError, match=r"path must be a file, got .*, which does not exist"):
        alk.open_array(tmp_path / "y.zarr")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="cannot be read as an array"):
        alk.open_array(tmp_path / "x.parquet")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"path .*x.h5:c cannot be read: the package h5py is missing, pip install"):
        alk.open_array(f"{tmp_path}/x.h5:c")


def test_links_nested_groups_and_tensors_of_a_fixed_shape_are_found(tmp_path):
    import h5py
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    import zarr

    x = integers(60, 4)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/rows"] = x
        file["soft"] = h5py.SoftLink("/a/rows")
    zarr.create_group(tmp_path / "x.zarr").create_group("inner").create_array("rows", data=x)
    flat = arrow.FixedSizeListArray.from_arrays(arrow.array(x.ravel()), 4)
    shaped = arrow.ExtensionArray.from_storage(arrow.fixed_shape_tensor(arrow.float32(), [4]), flat)
    parquet.write_table(arrow.table({"rows": shaped}), tmp_path / "x.parquet")
    wanted = alk.k_center_greedy(x, 5, start=0)
    for text in ("x.h5:soft", "x.h5:a/rows", "x.zarr:inner/rows", "x.zarr", "x.parquet:rows"):
        equal(alk.k_center_greedy(alk.open_array(f"{tmp_path}/{text}"), 5, start=0), wanted)


@pytest.mark.parametrize("ending", ["safetensors", "arrow"])
def test_a_file_that_open_array_opened_is_watched(ending, tmp_path):
    """Both are mapped: reading behind the end of a file that was cut off would end the process by a signal."""
    path = tmp_path / f"x.{ending}"
    kind = {"safetensors": "safetensors-pt", "arrow": "arrow-file"}[ending]
    stored(kind, integers(20_000, 8), tmp_path)
    os.rename(next(tmp_path.iterdir()), path)
    pool = Pool(alk.open_array(path), "features")
    pool.tile_bytes = 10_000
    with pytest.raises(ValueError, match="features must not change while it is read"):
        passes_with(pool, lambda: os.truncate(path, 1000))


def test_a_parquet_column_goes_on_after_an_error(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    numbers = np.repeat(np.arange(300, dtype=np.float32), 2)
    column = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers), 2, mask=arrow.array(np.arange(300) == 60))
    parquet.write_table(arrow.table({"rows": column}), tmp_path / "x.parquet", row_group_size=100)
    rows = ParquetColumn(tmp_path / "x.parquet", "rows")
    rows._batch_rows = 50
    with pytest.raises(ValueError, match="must hold no null, got one in rows 50 to 99"):
        rows[0:300]
    np.testing.assert_array_equal(rows[110:112], [[110, 110], [111, 111]])


def test_candidates_far_apart_are_read_within_the_limit():
    """No slice is larger than a tile, though the candidates of a tile span four."""
    x = integers(40_000, 64)
    rows, some = Sliced(x), np.arange(0, 40_000, 4)
    wanted = alk.select("k_center_greedy", 20, features=x, candidates=some, start=0)
    limit = (48 << 20) + 40 * 10_000 + 3 * 500 * 8 * 64
    found = alk.select("k_center_greedy", 20, features=rows, candidates=some, start=0, memory_limit=limit)
    equal(found, wanted)
    assert max(end - begin for begin, end in rows.asked) <= 2 * 500 + 4


def test_a_chunk_larger_than_the_limit_is_read_in_parts():
    x = integers(40_000, 64)
    rows = Sliced(x, 40_000)
    limit = (48 << 20) + 40 * 40_000 + 3 * 500 * 8 * 64
    equal(alk.k_center_greedy(rows, 20, start=0, memory_limit=limit), alk.k_center_greedy(x, 20, start=0))
    labeled = alk.k_center_greedy(x[:100], 9, labeled=rows, memory_limit=limit - 40 * 39_900)
    equal(labeled, alk.k_center_greedy(x[:100], 9, labeled=x))
    assert max(end - begin for begin, end in rows.asked) <= 2 * 500


@pytest.mark.parametrize("kind", ["zarr", "safetensors-pt", "parquet"])
def test_small_arrays_may_lie_in_files_too(kind, tmp_path):
    x, probs = integers(50, 6), distributions(50, 4)
    rows = stored(kind, x, tmp_path)
    np.testing.assert_array_equal(
        np.asarray(alk.select("random", 5, features=rows, generator=0).indices),
        alk.select("random", 5, features=x, generator=0).indices,
    )
    head = stored(kind, np.ascontiguousarray(integers(4, 6, seed=5)), tmp_path)
    more = {"probs": probs, "features": x, "labeled_features": x[:9], "labels": np.arange(9) % 4, "generator": 0}
    found = alk.select("alfa_mix", 5, head_weight=head, **more)
    np.testing.assert_array_equal(
        found.indices, alk.select("alfa_mix", 5, head_weight=integers(4, 6, seed=5), **more).indices
    )


def test_lists_of_any_length_are_no_pool_for_select():
    import pyarrow as arrow

    with pytest.raises(TypeError, match=r"the pool must be a torch.Tensor .* got ListArray of type list"):
        alk.select("k_center_greedy", 1, features=arrow.array([[1.0, 2.0]] * 5))
