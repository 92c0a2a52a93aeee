"""Long selections that survive: what they have so far in a file, after each block."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from alkernels._files import replacing
from alkernels._inputs import Pool, seed_of
from alkernels._load import version

_FORMAT = 1
# Saving takes at most this share of the time.
_SHARE = 0.05
# Odd numbers, so that no bit of what they multiply is lost.
_OF_COLUMNS, _OF_ROWS = 0x9E3779B1, 0x2545F4914F6CDD1D


class Checkpoint:
    """A selection's state in a file, or nowhere.

    Attributes
    ----------
    seed : int
        Decides all draws: the generator's, or the interrupted run's where no generator is given.
    state : dict of tensors, or None
        What an interrupted run left; None to begin with the first pick.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], seed: int, state: dict[str, Any] | None) -> None:
        self.path, self._about, self.seed, self.state = path, about, seed, state
        self._interrupted = False
        self._saved_at, self._cost = -float("inf"), 0.0

    def after_block(self, state: Callable[[], Mapping[str, Any]], *, last: bool = False) -> None:
        """Saves what `state` gives, tensors and numbers, unless that was done a moment ago.

        After Ctrl-C it saves in any case, and ends the run; the last state is always saved.
        """
        if self.path is None:
            return
        begin = time.monotonic()
        if not (last or self._interrupted or (begin - self._saved_at) * _SHARE >= self._cost):
            return
        with replacing(self.path, "checkpoint") as file:
            try:
                torch.save({"about": self._about, "state": dict(state())}, file)
            except RuntimeError as error:  # torch's own, in place of what the file raised
                if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                    raise error.__context__ from None
                raise
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begin
        if self._interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def _holding_back_interrupts(self) -> Iterator[None]:
        """The first Ctrl-C lets the block end and the state be saved; the second ends the run at once."""
        is_main = threading.current_thread() is threading.main_thread()
        if self.path is None or not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._interrupted:
            raise KeyboardInterrupt


def unsaved(generator: torch.Generator | int | None) -> Checkpoint:
    """For a selection that is not saved."""
    return Checkpoint(None, {}, seed_of(generator), None)


@contextmanager
def checkpointed(
    path: str | Path | None,
    op: str,
    arrays: Mapping[str, Any],
    generator: torch.Generator | int | None,
    **settings: Any,
) -> Iterator[Checkpoint]:
    """What a selection saves its state with, and finds that of an interrupted run in.

    Parameters
    ----------
    path : str or Path, optional
        None: nothing is saved.
    op : str
    arrays : dict of Pool, Tensor or None
        What comes in: a checkpoint is of these numbers, by their fingerprints. Pools are walked once for them.
    generator : torch.Generator or int, optional
    **settings
        Whatever else decides the picks: numbers and words.

    Raises
    ------
    ValueError
        A file that is no checkpoint, or that of another run: the error says what differs.
    FileNotFoundError
        A folder that does not exist.
    """
    if path is None:
        yield unsaved(generator)
        return
    if not isinstance(path, (str, Path)):
        raise TypeError(f"checkpoint must be a path, got {type(path).__name__} {path!r}")
    path = Path(os.path.realpath(path))  # the file behind a link is replaced, not the link
    if not path.parent.is_dir():
        raise FileNotFoundError(f"checkpoint must be in an existing folder, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint must be a file, got {path}, a directory")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    about: dict[str, Any] = {"format": _FORMAT, "alkernels": version, "op": op, **plain}
    state = None
    if path.exists():
        found, state = _read(path)
        _compare(path, found, about)  # before anything is walked
    about |= {name: None if array is None else _described(array) for name, array in arrays.items()}
    if state is None:
        about["seed"] = seed_of(generator)
    else:
        about["seed"] = found["seed"] if generator is None else seed_of(generator)
        _compare(path, found, about)
    checkpoint = Checkpoint(path, about, about["seed"], state)
    with checkpoint._holding_back_interrupts():
        yield checkpoint


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return dict(saved["about"]), dict(saved["state"])
    except Exception as error:  # what a damaged file makes torch raise is documented nowhere
        raise ValueError(f"checkpoint {path} must be one of a selection: it cannot be read as such") from error


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wrong = [name for name, value in wanted.items() if found.get(name) != value]
    if wrong:
        differs = "; ".join(f"{name} is {found.get(name)!r} there and {wanted[name]!r} here" for name in wrong)
        raise ValueError(f"checkpoint {path} must be of this run, but {differs}: delete it or give another file")


def _described(array: Pool | torch.Tensor) -> str:
    pool = array if isinstance(array, Pool) else Pool(array.double().view(len(array), 1), "")
    kinds = [f"{'x'.join(map(str, s.shape))} {str(s.dtype).removeprefix('torch.')}" for s in pool.sources]
    return f"{' and '.join(kinds)} {fingerprint(pool)}"


def fingerprint(pool: Pool) -> str:
    """A number that any changed bit of the rows changes, and nearly all changes of several: as fast as reading them."""
    totals = [torch.zeros((), dtype=torch.int64, device=pool.device) for _ in pool.sources]
    for begin, end, factors in pool.tiles(pool.rows_of(16 * sum(pool.widths))):
        of_rows = torch.arange(begin, end, device=pool.device) * (2 * _OF_ROWS) + 1
        for factor, total in zip(factors, totals, strict=True):
            numbers = factor.flatten(1).contiguous()
            words = numbers.view(torch.int16).int() if numbers.element_size() == 2 else numbers.view(torch.int32)
            of_columns = (torch.arange(words.shape[1], device=pool.device) * (2 * _OF_COLUMNS) + 1).int()
            # sums of 32 bits that wrap: torch's of 64 bits are 25 times as slow
            total += ((words * of_columns).sum(1, dtype=torch.int32) * of_rows).sum()
    return "-".join(f"{int(total) % 2**64:016x}" for total in totals)
