"""BALD of a file of draws that need not fit into memory, against plain PyTorch on the same file.

python benchmarks/mapped_draws.py [--rows 1000000] [--draws 20] [--classes 100] [--folder .] [--json FILE]

Writes a .npy file of float32 draws (8 GB by default) into the folder, and removes it at the end. The sides run in
turns; the system may keep the file in memory between them or not, for both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import alkernels as alk
from alkernels._bench.measure import peak_memory, seconds_of
from alkernels._bench.report import machine

ROWS_A_CHUNK = 10_000


def write(path: Path, rows: int, draws: int, classes: int) -> np.memmap:
    """Draws around a linear model's predictions, written chunk by chunk."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, draws, classes))
    g = torch.Generator().manual_seed(0)
    for begin in tqdm(range(0, rows, ROWS_A_CHUNK), desc="writing", unit="chunk"):
        n = min(ROWS_A_CHUNK, rows - begin)
        logits = 3 * torch.randn(n, 1, classes, generator=g) + torch.randn(n, draws, classes, generator=g)
        out[begin : begin + n] = logits.softmax(-1).numpy()
    out.flush()
    del out
    return np.load(path, mmap_mode="r")


def plain(draws: np.memmap) -> torch.Tensor:
    """The formula, a chunk at a time."""
    scores = []
    for begin in range(0, len(draws), ROWS_A_CHUNK):
        p = torch.from_numpy(np.array(draws[begin : begin + ROWS_A_CHUNK]))
        scores.append(torch.special.entr(p.mean(1)).sum(-1) - torch.special.entr(p).sum(-1).mean(-1))
    return torch.cat(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".", help="where the file goes")
    parser.add_argument("--json", help="where the numbers go")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        draws = write(Path(folder) / "draws.npy", args.rows, args.draws, args.classes)
        sides = {"alkernels": lambda: torch.from_numpy(alk.bald(draws)), "plain PyTorch": lambda: plain(draws)}
        ours, theirs = (call() for call in sides.values())
        torch.testing.assert_close(theirs.double(), ours, rtol=1e-3, atol=1e-5)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, call in sides.items():
                times[name].append(seconds_of(call))
        rows = [
            {
                "side": name,
                "seconds": statistics.median(times[name]),
                "times": times[name],
                "GB/s": draws.nbytes / statistics.median(times[name]) / 1e9,
                "peak_mb": (peak_memory(call, "cpu") or 0) / 1e6,
            }
            for name, call in sides.items()
        ]
    about = machine()
    print(f"BALD of {args.rows} x {args.draws} x {args.classes} float32 in a file, {about['cpu']}")
    for row in rows:
        ratio = row["seconds"] / rows[0]["seconds"]
        print(
            f"  {row['side']:<16}{row['seconds']:8.2f} s  x {ratio:5.2f}  {row['GB/s']:6.2f} GB/s  "
            f"{row['peak_mb']:8.1f} MB beyond what was held"
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
