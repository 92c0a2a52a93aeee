"""What ranks tell each other: messages of equal size, each with a header that says how its rank fares.

Work between two collectives runs inside of :meth:`Ranks.exchange`, so that a rank that raises still takes part in the
next collective, and all of them end with its error. A rank that is gone or stuck is looked for through the store that
the process group was made with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from alkernels._load import version

# Of a message: whether its rank failed, how many collectives it has seen, a digest of its picks, rows that it fills.
_HEADER = 4
_BYTES_OF_TEXT = 2048
# How often a rank looks whether others have given up, and how long it waits for them to say that they are there.
_LOOK_SECONDS, _ROLL_CALL_SECONDS = 0.5, 5.0

Field = tuple[torch.dtype, tuple[int, ...]]
_calls: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_counting: list[Traffic] = []


class Message(NamedTuple):
    """One collective: what it carried, and how many bytes each rank put in."""

    what: str
    bytes: int


class Traffic:
    """The collectives of this process's calls, in order.

    Attributes
    ----------
    messages : list of Message
        ``what`` and ``bytes``: what a collective carried, and how many bytes each rank put in, its header included.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def collectives(self) -> int:
        """How many there were."""
        return len(self.messages)

    @property
    def bytes(self) -> int:
        """How many bytes each rank put in, all together."""
        return sum(message.bytes for message in self.messages)

    @property
    def largest(self) -> int:
        """The bytes of the largest."""
        return max((message.bytes for message in self.messages), default=0)

    def count(self, what: str) -> int:
        """How many of one kind there were: a ``"block"`` of k-center greedy or k-means++ is one pass over the shard."""
        return sum(message.what == what for message in self.messages)


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Counts what the calls inside of a ``with`` block send.

    Returns
    -------
    context manager of Traffic

    Examples
    --------
    >>> import alkernels as alk
    >>> with alk.distributed.traffic() as sent:
    ...     pass  # calls
    >>> sent.collectives, sent.bytes
    (0, 0)
    """
    counted = Traffic()
    _counting.append(counted)
    try:
        yield counted
    finally:
        _counting.remove(counted)


class Gathered(NamedTuple):
    """What all ranks put into a collective: how many rows each filled, and each field with ranks in front."""

    counts: list[int]
    fields: tuple[torch.Tensor, ...]

    def joined(self, field: int = 0) -> torch.Tensor:
        """The filled rows of all ranks, in their order."""
        return torch.cat([part[:count] for part, count in zip(self.fields[field], self.counts, strict=True)])


class Ranks:
    """The ranks of a group during one call; a context manager.

    Parameters
    ----------
    group : ProcessGroup, optional
        Default: all ranks.
    op : str
        The function that all of them must have called.

    Attributes
    ----------
    rank, size : int
    device : torch.device
        Where messages are: in host memory, but for NCCL.
    home : torch.device
        Where what comes back is put: the shard's device, once that is known.
    counts, starts : list of int
        Each rank's rows, and the global number of its first.
    total : int
        The rows of all shards.
    """

    def __init__(self, group: dist.ProcessGroup | None, op: str) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                f"alkernels.distributed.{op} needs torch.distributed: call torch.distributed.init_process_group first, "
                "in a process that torchrun started"
            )
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise ValueError("group must be a process group that this process is a member of, got one that it is not")
        on_gpu = str(dist.get_backend(self.group)) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.home, self.op = self.device, op
        self.counts, self.starts, self.total = [0], [0], 0
        self._step, self._told = 0, False
        self._hash = hashlib.blake2b(digest_size=8)
        call = _calls[self.group] = _calls.get(self.group, 0) + 1
        self._watch = _Watch(self.rank, self.size, _store(self.group), f"alkernels/{op}/{call}")

    @property
    def offset(self) -> int:
        """The global number of this rank's first row."""
        return self.starts[self.rank]

    def __enter__(self) -> Ranks:
        self._watch.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not self._told:
            # between collectives, where nobody can say how large the next one is: others hear of it by the store
            self._watch.tell({"rank": self.rank, "text": _said(error)})
        self._watch.stop()
        # Whoever keeps the error keeps this object too. It must not keep the group: torch ends a group's threads when
        # the last reference is gone, and one that outlives the interpreter aborts the process.
        del self.group

    def agree(self, work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        """The first collective: all ranks must have the same facts, but for their numbers of ``rows`` and ``drawn``.

        Parameters
        ----------
        work : function
            Checks this rank's arguments; returns the facts, ``rows`` among them.

        Returns
        -------
        list of dict
            Each rank's.
        """

        def facts() -> tuple[torch.Tensor]:
            return (_as_bytes({"function": self.op, "version of alkernels": version, **work()}),)

        got = self.exchange("agreement", [(torch.uint8, (_BYTES_OF_TEXT,))], facts)
        told = [_of_bytes(text[:count]) for text, count in zip(got.fields[0], got.counts, strict=True)]
        for fact in dict.fromkeys(key for facts in told for key in facts):
            values = [facts.get(fact) for facts in told]
            if fact not in ("rows", "drawn") and any(v != values[0] for v in values):
                self._raise(ValueError(f"ranks must agree on {fact}, got {_by_rank([_shown(v) for v in values])}"))
        self.counts = [facts["rows"] for facts in told]
        self.starts = [sum(self.counts[:r]) for r in range(self.size)]
        self.total = sum(self.counts)
        return told

    def refuse(self, text: str) -> NoReturn:
        """Raises what every rank finds wrong at the same place."""
        self._raise(ValueError(text))

    def witness(self, picks: torch.Tensor) -> None:
        """Takes picks into the digest that the next message carries: ranks whose picks differ are an error."""
        self._hash.update(np.ascontiguousarray(picks.cpu().numpy()).tobytes())

    def exchange(self, what: str, fields: Sequence[Field], work: Callable[[], Sequence[torch.Tensor]]) -> Gathered:
        """One collective: every rank's fields to every rank, after some work of its own.

        Parameters
        ----------
        what : str
        fields : sequence of (dtype, shape)
            The same on all ranks.
        work : function
            What is to be done before; returns a tensor for each field, which may have fewer rows than the field's
            shape has. How many rows the first one has is told.

        Raises
        ------
        ValueError, TypeError, RuntimeError, ...
            On all ranks, where `work` raised on any of them, naming rank and cause.
        """
        sizes = [-(-dtype.itemsize * torch.Size(shape).numel() // 8) for dtype, shape in fields]
        buffer = torch.zeros(_HEADER + sum(sizes), dtype=torch.int64, device=self.device)
        failure: BaseException | None = None
        count = 0
        self._watch.at = f"the work before {what!r}"
        try:
            tensors = list(work())
            count = len(tensors[0]) if tensors else 0
            for tensor, (dtype, shape), size, part in zip(
                tensors, fields, sizes, buffer[_HEADER:].split(sizes), strict=True
            ):
                if tensor.dtype != dtype or tensor.shape[1:] != shape[1:] or len(tensor) > shape[0]:
                    raise AssertionError(f"{what}: {tensor.dtype} {tuple(tensor.shape)} for {dtype} {shape}, {size}")
                flat = tensor.detach().to(self.device).contiguous().flatten().view(torch.uint8)
                part.view(torch.uint8)[: len(flat)] = flat
        except BaseException as error:
            failure = error
            buffer.zero_()
        digest = int.from_bytes(self._hash.digest(), "little", signed=True)
        buffer[:_HEADER] = torch.tensor([failure is not None, self._step, digest, count])
        everyone = self._gather(what, buffer)
        headers = everyone[:, :_HEADER].tolist()
        if any(failed for failed, *_ in headers):
            self._fail(failure)
        if len({step for _, step, *_ in headers}) > 1:
            self._raise(RuntimeError(f"ranks are not in step, at {_by_rank([h[1] for h in headers])}"))
        if len({digest for *_, digest, _ in headers}) > 1:
            self._raise(
                RuntimeError(
                    f"ranks no longer agree on the picks so far, whose digests are "
                    f"{_by_rank([f'{h[2] % 2**64:016x}' for h in headers])}: their arithmetic differs; run all of them "
                    "on the same kind of processor"
                )
            )
        out = []
        for (dtype, shape), part in zip(fields, everyone[:, _HEADER:].split(sizes, dim=1), strict=True):
            flat = part.contiguous().view(torch.uint8).view(self.size, -1)
            flat = flat[:, : dtype.itemsize * torch.Size(shape).numel()].contiguous().flatten().view(dtype)
            out.append(flat.view(self.size, *shape).to(self.home))
        return Gathered([count for *_, count in headers], tuple(out))

    def finish(self, work: Callable[[], Any]) -> Any:
        """The last collective, with what is left to do before: nobody returns where another rank could not."""
        results: list[Any] = []

        def last() -> tuple[()]:
            results.append(work())
            return ()

        self.exchange("end", [], last)
        return results[0]

    def _gather(self, what: str, buffer: torch.Tensor) -> torch.Tensor:
        """All ranks' buffers, in host memory where messages are."""
        out = torch.empty((self.size, *buffer.shape), dtype=buffer.dtype, device=self.device)
        self._watch.at = what
        self._step += 1
        try:
            work = dist.all_gather(list(out.unbind()), buffer, group=self.group, async_op=True)
            self._wait(work)
        except Exception as error:  # backends raise errors of many types
            self._lost(what, error)
        for counted in _counting:
            counted.messages.append(Message(what, buffer.nbytes))
        return out

    def _wait(self, work: Any) -> None:
        """Waits for a collective, or for word that somebody has given up."""
        if self.device.type == "cuda":
            while not work.is_completed():  # wait() would return at once, and leave the waiting to the next copy
                time.sleep(1e-4)
                if self._watch.broken:
                    raise RuntimeError("another rank gave up")
            work.wait()
            return
        while True:
            try:
                work.wait(timedelta(seconds=_LOOK_SECONDS))
                return
            except RuntimeError:
                if work.is_completed():
                    raise
                if self._watch.broken:
                    raise RuntimeError("another rank gave up") from None

    def _fail(self, failure: BaseException | None) -> NoReturn:
        """Tells the others why, and raises; the second collective of a failure."""
        text = _as_bytes(_said(failure) if failure is not None else None)
        buffer = torch.zeros(1 + _BYTES_OF_TEXT // 8, dtype=torch.int64, device=self.device)
        buffer[0] = len(text)
        buffer[1:].view(torch.uint8)[: len(text)] = text.to(self.device)
        told = [
            _of_bytes(row[1:].contiguous().view(torch.uint8)[: int(row[0])])
            for row in self._gather("failure", buffer).cpu()
        ]
        failed = {rank: said for rank, said in enumerate(told) if said is not None}
        reasons = dict.fromkeys(text for _, text in failed.values())
        parts = []
        for reason in reasons:
            ranks = [rank for rank, (_, text) in failed.items() if text == reason]
            where = "every rank" if len(ranks) == self.size > 1 else _named(ranks)
            parts.append(f"{where}: {reason}")
        text_of_all = "; ".join(parts)
        self._told = True
        if failure is not None:
            if not isinstance(failure, Exception):
                raise failure
            try:
                own = type(failure)(text_of_all)
            except Exception:  # an error that takes more than its text
                own = RuntimeError(text_of_all)
            raise own from failure
        kinds = {kind for kind, _ in failed.values()}
        kind = {"ValueError": ValueError, "TypeError": TypeError}.get(kinds.pop() if len(kinds) == 1 else "")
        raise (kind or RuntimeError)(text_of_all)

    def _lost(self, what: str, error: Exception) -> NoReturn:
        """Raises what can be found out about a collective that failed."""
        first = str(error).partition("\n")[0]
        self._raise(RuntimeError(f"{self._watch.find_out(what)} ({self.op} on rank {self.rank}: {first})"), error)

    def _raise(self, error: Exception, cause: BaseException | None = None) -> NoReturn:
        """Raises what all ranks know."""
        self._told = True
        raise error from cause


class _Watch:
    """A thread that looks whether others have given up, and answers when they ask who is still there."""

    def __init__(self, rank: int, size: int, store: Any, prefix: str) -> None:
        self.rank, self.size, self.store, self.prefix = rank, size, store, prefix
        self.at, self.broken = "the start", False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="alkernels.distributed", daemon=True)

    def start(self) -> None:
        if self.store is not None:
            self._thread.start()

    def stop(self) -> None:
        # A thread must not come back from torch to an interpreter that is gone; a store without its server may keep it.
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_ROLL_CALL_SECONDS)

    def tell(self, note: dict[str, Any] | None) -> None:
        """Leaves word that this rank gives up, with the reason if it is the reason."""

        def write() -> None:
            if note is not None:
                self.store.set(f"{self.prefix}/note", json.dumps(note))
            self.store.set(f"{self.prefix}/broken", "1")

        self._within(write, _ROLL_CALL_SECONDS)

    def find_out(self, what: str) -> str:
        """Who is the reason that a collective failed, as far as the store can tell."""
        found: dict[str, Any] = {}

        def ask() -> None:
            self.store.set(f"{self.prefix}/broken", "1")
            self._answer(waiting=True)
            missing, until = set(range(self.size)), time.monotonic() + _ROLL_CALL_SECONDS
            while missing and time.monotonic() < until and "note" not in found:
                if self.store.check([f"{self.prefix}/note"]):
                    found["note"] = json.loads(self.store.get(f"{self.prefix}/note"))
                missing = {r for r in missing if not self.store.check([f"{self.prefix}/here/{r}"])}
                time.sleep(0.02)
            here = set(range(self.size)) - missing
            answers = {r: json.loads(self.store.get(f"{self.prefix}/here/{r}")) for r in sorted(here)}
            found.update(missing=sorted(missing), answers=answers)

        asked = self.store is not None and self._within(ask, 2 * _ROLL_CALL_SECONDS)
        if "note" in found:
            return f"rank {found['note']['rank']}: {found['note']['text'][1]}"
        if not asked:
            lost = f"a rank is gone or stuck: {what!r} failed"
            if self.store is None:
                return lost
            return f"{lost}, and the process group's store does not answer: rank 0, if its process holds that"
        if found["missing"]:
            verb = "is" if len(found["missing"]) == 1 else "are"
            return (
                f"{_named(found['missing'])} {verb} gone or stopped: no answer within {_ROLL_CALL_SECONDS:g} s after "
                f"{what!r} failed"
            )
        answers = found["answers"]
        behind = [r for r, a in answers.items() if not a["waiting"] and r != self.rank]
        if behind:
            verb = "is" if len(behind) == 1 else "are"
            return f"{_named(behind)} {verb} stuck or too slow, in {answers[behind[0]]['at']}, while others waited"
        return f"ranks lost their connections, and all still answer, when {what!r} failed"

    def _look(self) -> None:
        with contextlib.suppress(Exception):  # the store is gone
            while not self._over.wait(_LOOK_SECONDS):
                if self.store.check([f"{self.prefix}/broken"]):
                    self._answer(waiting=not self.at.startswith("the work"))
                    self.broken = True
                    return

    def _answer(self, *, waiting: bool) -> None:
        answer = {"waiting": waiting, "at": self.at}
        self.store.set(f"{self.prefix}/here/{self.rank}", json.dumps(answer))

    def _within(self, ask: Callable[[], None], seconds: float) -> bool:
        """Runs something that a dead store may never come back from, or fail in; whether it came back."""
        done: list[bool] = []

        def run() -> None:
            with contextlib.suppress(Exception):
                ask()
                done.append(True)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        return bool(done)


def _store(group: Any) -> Any:
    """The store that the ranks of a group met at, or None where torch does not hand it out."""
    for find in (lambda: group.get_group_store(), lambda: dist.distributed_c10d._get_default_store()):
        with contextlib.suppress(Exception):
            return find()
    return None


def _said(error: BaseException) -> tuple[str, str]:
    """An error's type and text, short enough for a message."""
    name, text = type(error).__name__, str(error) or type(error).__name__
    if not isinstance(error, (ValueError, TypeError, RuntimeError)) and str(error):
        text = f"{name}: {text}"
    while len(json.dumps([name, text])) > _BYTES_OF_TEXT:
        text = text[: int(len(text) * 0.8)]
    return name, text


def _as_bytes(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _of_bytes(text: torch.Tensor) -> Any:
    return json.loads(bytes(text.cpu().numpy()))


def _named(ranks: Sequence[int]) -> str:
    """ "rank 2", or "ranks 0, 1 and 3"."""
    names = [str(rank) for rank in ranks]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"


def _by_rank(values: Sequence[Any]) -> str:
    """ "5 on rank 0, 7 on ranks 1 and 2"."""
    of = {value: [rank for rank, other in enumerate(values) if other == value] for value in dict.fromkeys(values)}
    return ", ".join(f"{value} on {_named(ranks)}" for value, ranks in of.items())


def _shown(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)
