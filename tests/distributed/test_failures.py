"""A rank that raises, dies, stops or gets bad input ends all ranks with an error that names it, and nobody hangs."""

from __future__ import annotations

import gc
import re
import time
import weakref

import harness
import numpy as np
import pytest
import torch
import torch.distributed as dist

import alkernels as alk


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    processes = harness.Processes(3, tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.end()


@pytest.fixture
def doomed(tmp_path):
    """Ranks that do not outlive the test."""
    made = []

    def make(size, **options):
        made.append(harness.Processes(size, tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for processes in made:
        processes.end()


def pool(n=600, d=6):
    return torch.randint(-8, 9, (n, d), generator=torch.Generator().manual_seed(1)).float()


PIECES = harness.shards(pool(), [200, 350])


def calls(name, k=60, *, change=None, at=1, **options):
    """Arguments of :func:`harness.call` for three ranks, of which one differs in something."""
    out = []
    for rank in range(3):
        mine = {"name": name, "shard": PIECES[rank], "k": k, **options}
        if rank == at and change is not None:
            mine |= change
        out.append(mine)
    return [((c.pop("name"), c.pop("shard"), c.pop("k")), c) for c in out]


def still_works(ranks):
    one = alk.k_center_greedy(pool(), 30, start=2)
    out = ranks.run(harness.call, each=[("k_center_greedy", piece, 30) for piece in PIECES])
    assert len({tuple(o[0].tolist()) for o in out}) == 1 and len(one.indices) == len(out[0][0])


DISAGREEMENTS = {
    "k": ({"k": 61}, r"ranks must agree on k, got 60 on ranks 0 and 2, 61 on rank 1"),
    "start": ({"start": 5}, r"ranks must agree on start, got 3 on ranks 0 and 2, 5 on rank 1"),
    "metric": ({"metric": "cosine"}, r"ranks must agree on metric, got euclidean on ranks 0 and 2, cosine on rank 1"),
    "width": (
        {"shard": torch.zeros(4, 7)},
        r"ranks must agree on the shape of a row of local_shard, got 6 on ranks 0 and 2, 7 on rank 1",
    ),
    "dtype": (
        {"shard": PIECES[1].double()},
        r"ranks must agree on the dtype of local_shard, got float32 on ranks 0 and 2, float64 on rank 1",
    ),
    "function": (
        {"name": "kmeans_plusplus"},
        r"ranks must agree on function, got k_center_greedy on ranks 0 and 2, kmeans_plusplus on rank 1",
    ),
    "factors": (
        {"shard": (torch.zeros(4, 6), torch.zeros(4, 6))},
        r"ranks must agree on the shape of a row of local_shard, got 6 on ranks 0 and 2, 6 and 6 on rank 1",
    ),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree_say_who_has_what(what, ranks):
    change, text = DISAGREEMENTS[what]
    errors = ranks.errors(harness.with_options, each=calls("k_center_greedy", start=3, change=change))
    assert errors == [("ValueError", text)] * 3
    still_works(ranks)


@pytest.mark.parametrize(
    ("first", "other", "text"),
    [
        (1, 2, "ranks must agree on generator, got seed 1 on ranks 0 and 2, seed 2 on rank 1"),
        (1, None, "ranks must agree on generator, got seed 1 on ranks 0 and 2, None on rank 1"),
    ],
)
@pytest.mark.parametrize("name", ["k_center_greedy", "kmeans_plusplus"])
def test_seeds_that_differ_are_an_error(name, first, other, text, ranks):
    errors = ranks.errors(harness.with_options, each=calls(name, generator=first, change={"generator": other}))
    assert errors == [("ValueError", text)] * 3


def test_labeled_rows_that_differ_are_an_error(ranks):
    known = pool(9)
    errors = ranks.errors(
        harness.with_options, each=calls("kmeans_plusplus", labeled=known, generator=0, change={"labeled": known[:8]})
    )
    assert {kind for kind, _ in errors} == {"ValueError"}
    assert all(text.startswith("ranks must agree on labeled, whose digest is compared, got ") for _, text in errors)


def spoiled(row, column, value):
    x = PIECES[2].clone()
    x[row, column] = value
    return x


WANTED = "float16, bfloat16, float32 or float64"
BAD = {
    "NaN": (
        {"shard": spoiled(3, 2, torch.nan)},
        "ValueError: local_shard must be finite, got nan in row 3, column 2",
    ),
    "infinity": (
        {"shard": spoiled(0, 5, -torch.inf)},
        "ValueError: local_shard must be finite, got -inf in row 0, column 5",
    ),
    "integers": (
        {"shard": PIECES[2].long()},
        f"TypeError: local_shard must be of dtype {WANTED}, got torch.int64; call .float() first",
    ),
    "no array": (
        {"shard": [1, 2, 3]},
        f"TypeError: local_shard must be a torch.Tensor or a numpy.ndarray of dtype {WANTED}, or a dataset whose "
        "slices are such rows (HDF5, Zarr, safetensors, Arrow), got list",
    ),
    "a vector": (
        {"shard": torch.zeros(6)},
        "ValueError: local_shard must be two-dimensional [rows, columns], got shape (6,)",
    ),
    "k": ({"k": "many"}, "TypeError: k must be an integer, got str 'many'"),
    "generator": (
        {"generator": "seven"},
        "TypeError: generator must be a torch.Generator, an integer seed or None, got str",
    ),
    "labelled rows": (
        {"labeled": torch.zeros(2, 5)},
        "ValueError: labeled must be as wide as local_shard, got width 5 and 6",
    ),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", ["k_center_greedy", "kmeans_plusplus"])
def test_bad_input_of_one_rank_is_an_error_on_all(name, what, ranks):
    change, error = BAD[what]
    kind, text = error.split(": ", 1)
    errors = ranks.errors(harness.with_options, each=calls(name, generator=0, change=change, at=2))
    assert errors == [(kind, f"rank 2: {text}")] * 3


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("name", ["k_center_greedy", "kmeans_plusplus"])
def test_rows_that_nobody_needs_are_looked_at_all_the_same(name, k, ranks):
    each = calls(name, k=k, start=0, generator=0, change={"shard": spoiled(3, 2, torch.nan)}, at=2)
    text = "rank 2: local_shard must be finite, got nan in row 3, column 2"
    assert ranks.errors(harness.with_options, each=each) == [("ValueError", text)] * 3


def test_bad_input_of_all_ranks_is_said_once(ranks):
    errors = ranks.errors(harness.with_options, each=calls("k_center_greedy", k=601, start=0))
    assert errors == [("ValueError", "every rank: k must be between 0 and 600 (rows of all shards), got 601")] * 3
    errors = ranks.errors(harness.with_options, each=calls("k_center_greedy", start=600))
    text = "every rank: start must be a row of all shards, between 0 and 599, got 600"
    assert errors == [("ValueError", text)] * 3
    errors = ranks.errors(harness.with_options, each=calls("k_center_greedy", start=0, metric="manhattan"))
    text = "every rank: metric must be 'euclidean', 'cosine' or 'symmetric_kl', got 'manhattan'"
    assert errors == [("ValueError", text)] * 3
    still_works(ranks)


def test_no_rows_on_any_rank(ranks):
    errors = ranks.errors(harness.call, each=[("k_center_greedy", torch.zeros(0, 4), 0)] * 3)
    text = "every rank: local_shard must have at least one row on some rank, got none on all 3"
    assert errors == [("ValueError", text)] * 3


def test_two_ranks_with_troubles_of_their_own_are_both_named(ranks):
    each = calls("k_center_greedy", start=0)
    each[0][1]["labeled"] = torch.zeros(2, 5)
    each[2] = ((each[2][0][0], PIECES[2].long(), 60), each[2][1])
    errors = ranks.errors(harness.with_options, each=each)
    assert [kind for kind, _ in errors] == ["ValueError", "RuntimeError", "TypeError"]
    assert all(
        re.fullmatch(r"rank 0: labeled must be as wide .*; rank 2: local_shard must be of dtype .*", text)
        for _, text in errors
    )


def test_bad_input_of_the_other_functions(ranks):
    draws = torch.rand(60, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    parts = harness.shards(draws, [20, 40])
    parts[1] = parts[1].clone()
    parts[1][7, 2] *= 1.5
    errors = ranks.errors(harness.call, each=[("batchbald", part, 3) for part in parts])
    assert len(set(errors)) == 1 and errors[0][0] == "ValueError"
    assert errors[0][1].startswith(
        "rank 1: local_shard must hold probabilities that sum to 1 within 0.001, got 1.5 in row 7, draw 2"
    )
    weights = [torch.ones(len(piece)) for piece in PIECES]
    weights[2][4] = -1
    options = [{"weights": w} for w in weights]
    each = [(("greedy_coverage", piece, 3), o) for piece, o in zip(PIECES, options, strict=True)]
    text = "rank 2: weights must not be negative, got -1 in row 4"
    assert ranks.errors(harness.with_options, each=each) == [("ValueError", text)] * 3
    each = [(("greedy_coverage", piece, 3), {"weights": torch.zeros(len(piece))}) for piece in PIECES]
    errors = ranks.errors(harness.with_options, each=each)
    assert errors == [("ValueError", "weights must have a sum above zero and finite, got 0.0")] * 3
    each = [(("greedy_coverage", piece, 4), {"candidates": [0]}) for piece in PIECES]
    errors = ranks.errors(harness.with_options, each=each)
    assert errors == [("ValueError", "k must be between 0 and 3 (candidates of all shards), got 4")] * 3
    each = [("knn", piece, piece, 601) for piece in PIECES]
    text = "every rank: k must be between 0 and 600 (rows of all shards), got 601"
    assert ranks.errors(harness.call, each=each) == [("ValueError", text)] * 3
    each = [("knn", piece, piece if rank else piece[:, :5], 2) for rank, piece in enumerate(PIECES)]
    text = "rank 0: points must be as wide as queries, got width 5 and 6"
    assert ranks.errors(harness.call, each=each) == [("ValueError", text)] * 3


@pytest.mark.parametrize(
    ("name", "what", "turn"),
    [
        ("k_center_greedy", "agreement", 1),
        ("k_center_greedy", "start", 1),
        ("k_center_greedy", "block", 3),
        ("k_center_greedy", "end", 1),
        ("kmeans_plusplus", "weights", 2),
        ("kmeans_plusplus", "block", 2),
        ("greedy_coverage", "gains", 2),
        ("greedy_coverage", "offers", 3),
    ],
)
def test_a_rank_that_raises_in_the_middle_ends_all(name, what, turn, ranks):
    options = {} if name == "greedy_coverage" else {"generator": 0}
    each = [(1, what, turn, ZeroDivisionError("at the worst moment"), name, piece, (60,), options) for piece in PIECES]
    text = "rank 1: ZeroDivisionError: at the worst moment"
    errors = ranks.errors(harness.disturbed, each=each)
    assert errors == [("RuntimeError", text), ("ZeroDivisionError", text), ("RuntimeError", text)]
    still_works(ranks)


def test_interrupting_one_rank_ends_all(ranks):
    each = [(0, "block", 2, "interrupt", "k_center_greedy", piece, (60,), {"start": 0}) for piece in PIECES]
    errors = ranks.errors(harness.disturbed, each=each)
    assert errors == [("KeyboardInterrupt", "")] + [("RuntimeError", "rank 0: KeyboardInterrupt")] * 2
    still_works(ranks)


def test_ranks_whose_picks_differ_are_an_error(ranks):
    each = [(1, "kmeans_plusplus", piece, (60,), {"generator": 0}) for piece in PIECES]
    errors = ranks.errors(harness.straying, each=each)
    assert len(set(errors)) == 1 and errors[0][0] == "RuntimeError"
    assert re.match(
        r"ranks no longer agree on the picks so far, whose digests are \w+ on ranks 0 and 2, \w+ on rank 1: ",
        errors[0][1],
    )
    still_works(ranks)


@pytest.mark.parametrize(
    ("method", "name", "what"), [("file", "k_center_greedy", "block"), ("tcp", "greedy_coverage", "offers")]
)
def test_a_rank_that_is_killed_is_named(method, name, what, doomed):
    processes = doomed(4, method=method)
    options = {"start": 0} if name == "k_center_greedy" else {}
    each = [(2, what, 2, "kill", name, piece, (60,), options) for piece in harness.shards(pool(), [9, 200, 350])]
    began = time.monotonic()
    processes.start(harness.disturbed, each=each)
    out = processes.results()
    assert time.monotonic() - began < 25
    assert out.pop(2) == ("died",)
    for result in out.values():
        assert result[:2] == ("raised", "RuntimeError") and result[2].startswith("rank 2 is gone or stopped: "), out


def test_rank_0_is_killed_with_the_store(doomed):
    processes = doomed(3, method="tcp")
    each = [(0, "block", 2, "kill", "k_center_greedy", piece, (60,), {"start": 0}) for piece in PIECES]
    processes.start(harness.disturbed, each=each)
    out = processes.results()
    assert out.pop(0) == ("died",)
    for result in out.values():
        assert result[:2] == ("raised", "RuntimeError")
        assert "the process group's store does not answer: rank 0, if its process holds that" in result[2], out


def test_a_rank_that_is_stopped_ends_all_within_the_timeout(doomed):
    processes = doomed(3, timeout=3)
    each = [(1, "block", 2, "stop", "k_center_greedy", piece, (60,), {"start": 0}) for piece in PIECES]
    began = time.monotonic()
    processes.start(harness.disturbed, each=each)
    out = processes.results(ranks=[0, 2])
    assert time.monotonic() - began < 20
    for result in out.values():
        assert result[:2] == ("raised", "RuntimeError") and result[2].startswith("rank 1 is gone or stopped: "), out


def test_a_rank_that_is_stuck_ends_all_within_the_timeout(doomed):
    processes = doomed(3, timeout=3)
    each = [(1, "block", 2, "sleep", "k_center_greedy", piece, (60,), {"start": 0}) for piece in PIECES]
    processes.start(harness.disturbed, each=each)
    out = processes.results(ranks=[0, 2])
    for result in out.values():
        assert result[:2] == ("raised", "RuntimeError")
        assert result[2].startswith("rank 1 is stuck or too slow, in the work before 'block', while others waited"), out


def test_a_rank_that_raises_between_collectives_is_named(doomed):
    processes = doomed(4)
    each = [(3, "k_center_greedy", piece, (60,), {"start": 0}) for piece in harness.shards(pool(), [9, 200, 350])]
    began = time.monotonic()
    processes.start(harness.torn, each=each)
    out = processes.results()
    assert time.monotonic() - began < 20  # the group's timeout is 60
    assert out.pop(3) == ("raised", "MemoryError", "no memory between collectives")
    for result in out.values():
        assert result[:2] == ("raised", "RuntimeError"), out
        assert result[2].startswith("rank 3: MemoryError: no memory between collectives"), out


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"alkernels\.distributed\.knn needs torch\.distributed: call"):
        alk.distributed.knn(np.zeros((2, 2)), np.zeros((2, 2)), 1)


CALLS = {
    "k_center_greedy": (6,),
    "kmeans_plusplus": (6,),
    "greedy_coverage": (6,),
    "batchbald": (1,),
    "knn": (torch.ones(3, 6), 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_does_not_keep_the_group(name, tmp_path):
    """Torch ends a group's threads with its last reference; one that outlives the interpreter aborts the process."""
    shard = pool(60) if name != "batchbald" else pool(60).view(60, 2, 3).softmax(-1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    kept = []
    gc.disable()
    try:
        group = weakref.ref(dist.group.WORLD)
        getattr(alk.distributed, name)(shard, *CALLS[name])
        try:
            getattr(alk.distributed, name)(shard * torch.nan, *CALLS[name])
        except ValueError as error:
            kept.append(error)
    finally:
        dist.destroy_process_group()
        still_there = group() is not None
        gc.enable()
    assert kept and not still_there
