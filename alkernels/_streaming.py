"""Pools in host memory, worked on by a GPU: copied over once where they fit, else read ahead tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

# A slot of the read-ahead; there are two, each once in pinned memory and once on the device. At 128 MB a copy takes
# some 3 ms, and what it costs to start one does not show.
BYTES_A_SLOT = 128 << 20
# A pool that takes no more than this share of the free device memory is copied over once.
SHARE = 0.6

Factors = tuple[torch.Tensor, ...]


class Source(Protocol):
    """Rows that can be sliced: the sources of :class:`alkernels._inputs.Pool`.

    Attributes
    ----------
    stored : bool
        Rows are read from a file.
    sliced : bool
        Tiles are made as they are asked for; never the whole of it at once.
    chunk : int
        So many rows are read together anyway.
    numpy : bool
        Results are to be NumPy's.
    """

    shape: Any
    dtype: torch.dtype
    device: torch.device
    stored: bool
    sliced: bool
    chunk: int
    numpy: bool

    def check(self) -> None:
        """Before each walk: raises where the file is no longer what it was."""

    def tile(self, begin: int, end: int) -> torch.Tensor: ...

    def gather(self, rows: torch.Tensor) -> torch.Tensor: ...

    def release(self, begin: int, end: int) -> None: ...


class HostSource:
    """Rows in host memory, handed out on a GPU: slices and gathered rows are plain copies."""

    def __init__(self, host: Source, device: torch.device) -> None:
        self.host, self.device = host, device
        self.shape, self.dtype = host.shape, host.dtype
        self.stored, self.chunk, self.numpy = host.stored, host.chunk, host.numpy
        self.sliced = False  # its walks are read ahead

    def tile(self, begin: int, end: int) -> torch.Tensor:
        return self.host.tile(begin, end).to(self.device)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self.host.gather(rows.cpu()).to(self.device)

    def release(self, begin: int, end: int) -> None:
        self.host.release(begin, end)

    def check(self) -> None:
        self.host.check()


class Streams(Protocol):
    """The two streams of a read-ahead: one copies, on the other (the caller's current one) the kernels work."""

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that copies can be made from while the host goes on."""

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Device memory, the work stream's."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Appends a copy to the copy stream."""

    def copied(self) -> Any:
        """An event behind all copies so far."""

    def worked(self) -> Any:
        """An event behind all work so far."""

    def copy_after(self, event: Any) -> None:
        """Lets later copies wait for an event."""

    def work_after(self, event: Any) -> None:
        """Lets later work wait for an event."""

    def finish(self, event: Any) -> None:
        """Lets the host wait for an event."""


class CudaStreams:
    """:class:`Streams` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.copies = device, torch.cuda.Stream(device)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.copies):
            target.copy_(source, non_blocking=True)

    def copied(self) -> torch.cuda.Event:
        return self.copies.record_event()

    def worked(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def copy_after(self, event: torch.cuda.Event) -> None:
        self.copies.wait_event(event)

    def work_after(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self, event: torch.cuda.Event) -> None:
        event.synchronize()


def read_ahead(
    sources: Sequence[Source], count: int, size: int, streams: Streams, slot_bytes: int | None = None
) -> Iterator[tuple[int, int, Factors]]:
    """Tiles of up to `size` rows on the device, in order, the next ones on their way while one is worked on.

    Two slots take turns. A slot holds many small tiles, or a part of a large one. Its pinned memory is filled again
    once the copy out of it is over, its device memory once the work on it is: a tile is the caller's until the next one
    is asked for, and may be used by work that is queued on the current stream until then.

    Parameters
    ----------
    sources : sequence of Source
        In host memory, of `count` rows each.
    count, size : int
    streams : Streams
    slot_bytes : int, optional
        Default: ``BYTES_A_SLOT``.
    """
    bytes_a_row = sum(s.dtype.itemsize * torch.Size(s.shape[1:]).numel() for s in sources)
    rows = min(max(1, (BYTES_A_SLOT if slot_bytes is None else slot_bytes) // bytes_a_row), count)
    size = min(size, rows)
    if size <= 0:
        return
    rows -= rows % size  # as many tiles as fit
    slots = range(0, count, rows)
    pinned = [[streams.pinned((rows, *s.shape[1:]), s.dtype) for s in sources] for _ in slots[:2]]
    buffers = [[streams.buffer((rows, *s.shape[1:]), s.dtype) for s in sources] for _ in slots[:2]]
    copied: list[Any] = [None, None]
    worked = [streams.worked()] * 2  # the buffers' memory may have been something else's until now

    def load(slot: int) -> None:
        turn, begin = slot % 2, slots[slot]
        end = min(begin + rows, count)
        if copied[turn] is not None:
            streams.finish(copied[turn])
        for source, memory in zip(sources, pinned[turn], strict=True):
            memory[: end - begin].copy_(source.tile(begin, end))
            source.release(begin, end)
        streams.copy_after(worked[turn])
        try:
            for target, memory in zip(buffers[turn], pinned[turn], strict=True):
                streams.copy(target[: end - begin], memory[: end - begin])
        finally:
            copied[turn] = streams.copied()

    for source in sources:
        source.check()
    try:
        load(0)
        for slot, first in enumerate(slots):
            turn = slot % 2
            # The work on the slot before was queued: the host reads while it goes on, the copy begins behind it.
            if slot + 1 < len(slots):
                load(slot + 1)
            streams.work_after(copied[turn])
            last = min(first + rows, count)
            for begin in range(first, last, size):
                end = min(begin + size, last)
                yield begin, end, tuple(b[begin - first : end - first] for b in buffers[turn])
            worked[turn] = streams.worked()
    finally:
        # The buffers go back to the work stream's memory: not before the last copy into them.
        for event in copied:
            if event is not None:
                streams.work_after(event)


def check_target(device: Any) -> torch.device:
    """The CUDA device that a pool in host memory is to be worked on by."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a torch.device or its name, such as 'cuda', got {type(device).__name__}")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be a CUDA device such as 'cuda' or 'cuda:0', got {device!r}") from None
    if target.type != "cuda":
        raise ValueError(f"device must be a CUDA device such as 'cuda' or 'cuda:0', got '{target}'")
    if not torch.cuda.is_available():
        raise ValueError(f"device must be a CUDA device that torch can use, got '{target}' where it finds none")
    count = torch.cuda.device_count()
    if target.index is not None and target.index >= count:
        raise ValueError(f"device must be one of {count} CUDA device{'s'[: count - 1]}, got '{target}'")
    from alkernels._load import has_cuda_kernels

    if not has_cuda_kernels():
        raise ValueError(
            f"device must be left out, got '{target}': this build of alkernels has kernels for the CPU only"
        )
    return torch.device("cuda", torch.cuda.current_device() if target.index is None else target.index)


def free_memory(device: torch.device) -> int:
    """Bytes of device memory that torch may still hand out."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held


def move(
    sources: Sequence[Source],
    count: int,
    device: torch.device,
    free: Callable[[torch.device], int] = free_memory,
    streams: Callable[[torch.device], Streams] = CudaStreams,
) -> Factors | None:
    """The whole pool on the device, where it takes a modest share of the free memory; else None, and it is streamed."""
    shapes = [(count, *s.shape[1:]) for s in sources]
    size = sum(s.dtype.itemsize * torch.Size(shape).numel() for s, shape in zip(sources, shapes, strict=True))
    if size > SHARE * free(device):
        return None
    two = streams(device)
    try:
        whole = tuple(two.buffer(shape, s.dtype) for s, shape in zip(sources, shapes, strict=True))
    except torch.OutOfMemoryError:  # free, but in pieces
        return None
    for begin, end, factors in read_ahead(sources, count, max(1, count), two):
        for out, factor in zip(whole, factors, strict=True):
            out[begin:end].copy_(factor)
    return whole


def _size(count: float) -> str:
    return next((f"{count / n:.3g} {unit}" for n, unit in ((1e9, "GB"), (1e6, "MB")) if count >= n), f"{count} bytes")


@contextmanager
def explain_memory(pool: Any, what: str, *, need: int | None = None, fewer: str | None = "k") -> Iterator[None]:
    """Says what to do where the GPU's memory does not suffice.

    Parameters
    ----------
    pool : Pool
    what : str
        What was going on, to follow "no GPU memory for ": "10000 picks".
    need : int, optional
        Bytes that it takes beyond the pool, as far as is known.
    fewer : str, optional
        The argument that takes less memory where it is smaller.

    Raises
    ------
    torch.OutOfMemoryError
        In place of torch's own, which stays its cause.
    """
    try:
        yield
    except RuntimeError as error:
        # our ops speak of their own memory in a plain RuntimeError
        if not isinstance(error, torch.OutOfMemoryError) and "CUDA out of memory" not in str(error):
            raise
        shapes = " and ".join(" x ".join(map(str, s.shape)) for s in pool.sources)
        size = sum(s.dtype.itemsize * torch.Size(s.shape).numel() for s in pool.sources)
        kind = str(pool.sources[0].dtype).removeprefix("torch.")
        held = f"{pool.name} ({shapes} {kind}, {_size(size)}) " + (
            "is streamed" if pool.streamed else f"is on {pool.device}"
        )
        wanted = "" if need is None else f", about {_size(need)} beyond {pool.name} itself"
        advice = []
        if fewer is not None:
            advice.append(f"a smaller {fewer}")
        if not pool.streamed:
            advice.append(f"{pool.name} in host memory with device='{pool.device}', which streams what does not fit")
            if any(s.dtype.itemsize > 2 for s in pool.sources):
                advice.append(f"{pool.name} in float16 or bfloat16")
        said = str(error).removeprefix("CUDA out of memory. ").split(" GPU ")[0].strip().rstrip(".")
        raise torch.OutOfMemoryError(
            f"no GPU memory for {what}{wanted}: {held}. {said}. Pass {', or '.join(advice) or 'less at a time'}."
        ) from error
