"""Real processes for the tests of ranks: forked off one that has torch loaded, each with its end of a pipe."""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import time
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

import alkernels as alk
from alkernels import cli

SECONDS = 60  # no test may take longer: its processes are killed then


def context():
    """Processes start in milliseconds: their parent has imported torch, and done nothing else."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["torch", "alkernels", "torch.distributed", __name__])
    return found


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Processes:
    """Some ranks of gloo on this machine.

    Parameters
    ----------
    size : int
    folder : Path
        Where they meet.
    timeout : float
        The process group's, in seconds.
    method : {"file", "tcp"}
        What they meet at: with ``tcp``, rank 0 has the store.
    backend : {"gloo", "nccl"}
    """

    def __init__(self, size, folder, timeout=SECONDS, method="file", backend="gloo"):
        folder.mkdir(parents=True, exist_ok=True)
        self.size = size
        if method == "tcp":
            address = f"tcp://127.0.0.1:{free_port()}"
        else:
            address = f"file://{folder / 'store'}"
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context().Pipe()
            process = context().Process(
                target=_serve, args=(theirs, rank, size, address, timeout, backend), daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def start(self, function, *args, size=None, each=None):
        """Lets the first `size` ranks call ``function(rank, group, *args, *each[rank])``."""
        for rank in range(size or self.size):
            self.pipes[rank].send((function, size or self.size, (*args, *(each[rank] if each is not None else ()))))

    def results(self, ranks=None, size=None):
        """What came back, for each rank: ``("returned", value)``, ``("raised", type, text)`` or ``("died",)``."""
        ranks = range(size or self.size) if ranks is None else ranks
        until, out = time.monotonic() + SECONDS, {}
        for rank in ranks:
            if not self.pipes[rank].poll(max(0.0, until - time.monotonic())):
                self.end()
                raise AssertionError(f"rank {rank} hangs")
            try:
                out[rank] = self.pipes[rank].recv()
            except (EOFError, ConnectionResetError):
                out[rank] = ("died",)
        return out

    def run(self, function, *args, size=None, each=None):
        """The same for a call that returns on every rank: the values, in the order of ranks."""
        self.start(function, *args, size=size, each=each)
        out = self.results(size=size)
        for rank, result in out.items():
            assert result[0] == "returned", f"rank {rank}: {result}"
        return [result[1] for result in out.values()]

    def errors(self, function, *args, size=None, each=None):
        """The same for a call that raises on every rank: types and texts, in the order of ranks."""
        self.start(function, *args, size=size, each=each)
        out = self.results(size=size)
        assert all(result[0] == "raised" for result in out.values()), out
        return [(result[1], result[2]) for result in out.values()]

    def end(self):
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        for pipe in self.pipes:
            pipe.close()


def _serve(pipe, rank, size, address, timeout, backend):
    torch.set_num_threads(1)
    meeting = {"init_method": address, "rank": rank, "world_size": size, "timeout": timedelta(seconds=timeout)}
    dist.init_process_group(backend, **meeting)
    groups = {some: dist.new_group(list(range(some))) for some in range(1, size)}
    while True:
        try:
            function, some, args = pipe.recv()
        except EOFError:
            return
        try:
            # the world's group is the default
            pipe.send(("returned", function(rank, groups.get(some), *args)))
        except BaseException as error:
            pipe.send(("raised", type(error).__name__, str(error)))


def shards(x, cuts):
    """Rows in as many pieces as there are cuts and one more; a pair likewise."""
    if isinstance(x, tuple):
        return list(zip(*(shards(factor, cuts) for factor in x), strict=True))
    bounds = [0, *cuts, len(x)]
    return [x[a:b] for a, b in itertools.pairwise(bounds)]


def call(rank, group, name, shard, *args, **options):
    """One of the functions, by its name; plain tuples of tensors come back."""
    return tuple(getattr(alk.distributed, name)(shard, *args, group=group, **options))


def with_options(rank, group, args, options):
    """The same with options that differ from rank to rank."""
    return call(rank, group, *args, **options)


def on_device(rank, group, device, name, shard, args, options):
    """The same on a device; what comes back is in host memory."""
    moved = tuple(f.to(device) for f in shard) if isinstance(shard, tuple) else shard.to(device)
    out = call(rank, group, name, moved, *(a.to(device) if isinstance(a, torch.Tensor) else a for a in args), **options)
    assert all(value.device.type == device for value in out)
    return tuple(value.cpu() for value in out)


def counted(rank, group, name, options, shard, *args):
    """The same with the messages that it sent."""
    with alk.distributed.traffic() as sent:
        out = tuple(getattr(alk.distributed, name)(shard, *args, group=group, **options))
    return out, [tuple(message) for message in sent.messages]


def disturbed(rank, group, who, what, turn, how, name, shard, args, options):
    """The same where something happens to rank `who` in the work before message number `turn` of a kind."""
    _ranks = alk.distributed._ranks
    exchange, seen = _ranks.Ranks.exchange, [0]

    def happen():
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif how == "sleep":
            time.sleep(15)
        elif how == "interrupt":
            raise KeyboardInterrupt
        raise how

    def watched(self, kind, fields, work):
        seen[0] += kind == what

        def worse():
            if rank == who and kind == what and seen[0] == turn:
                happen()
            return work()

        return exchange(self, kind, fields, worse)

    _ranks.Ranks.exchange = watched
    try:
        return call(rank, group, name, shard, *args, **options)
    finally:
        _ranks.Ranks.exchange = exchange


def torn(rank, group, who, name, shard, args, options):
    """The same where rank `who` raises between two collectives."""
    _ranks = alk.distributed._ranks
    witness = _ranks.Ranks.witness

    def broken(self, picks):
        if rank == who:
            raise MemoryError("no memory between collectives")
        witness(self, picks)

    _ranks.Ranks.witness = broken
    try:
        return call(rank, group, name, shard, *args, **options)
    finally:
        _ranks.Ranks.witness = witness


def straying(rank, group, who, name, shard, args, options):
    """The same where rank `who` has other picks than the others."""
    _ranks = alk.distributed._ranks
    witness = _ranks.Ranks.witness

    def other(self, picks):
        witness(self, picks + (rank == who))

    _ranks.Ranks.witness = other
    try:
        return call(rank, group, name, shard, *args, **options)
    finally:
        _ranks.Ranks.witness = witness


def with_generator(rank, group, seed, name, shard, k):
    """The picks by a generator, and what it draws next."""
    generator = torch.Generator().manual_seed(seed)
    picks = call(rank, group, name, shard, k, generator=generator)
    return picks[0], int(torch.randint(2**40, (), generator=generator))


def unseeded(rank, group, name, shard, k):
    """The picks by torch's global generators, which differ from rank to rank."""
    torch.manual_seed(100 + rank)
    before = torch.get_rng_state()
    picks = call(rank, group, name, shard, k)
    assert not torch.equal(before, torch.get_rng_state())
    return picks[0]


def from_file(rank, group, name, path, k, options):
    """A shard that is a part of a memory-mapped file."""
    pool = np.load(path, mmap_mode="r")
    shard = np.array_split(pool, dist.get_world_size(group))[rank]
    return call(rank, group, name, shard, k, **options)


def in_small_tiles(rank, group, options, *args):
    """Neighbours whose points travel a hundred at a time."""
    knn = sys.modules["alkernels.distributed.knn"]
    whole = knn._BYTES_A_TILE
    knn._BYTES_A_TILE = 300 * (16 * 40 + 24)
    try:
        return counted(rank, group, "knn", options, *args)
    finally:
        knn._BYTES_A_TILE = whole


def totals(rank, group, name, shard, k):
    """What :func:`alkernels.distributed.traffic` sums up."""
    with alk.distributed.traffic() as sent:
        call(rank, group, name, shard, k, start=0)
    return sent.bytes, sent.largest, sent.count("block"), sent.collectives


class Commands(Processes):
    """Processes as torchrun starts them, which run the command line: no process group is theirs before."""

    def __init__(self, size):
        self.size = size
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context().Pipe()
            process = context().Process(target=_command, args=(theirs, rank, size), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, folder, *argv):
        """What the command line of each rank ends with: status, output, errors."""
        port = free_port()  # the store of the call before may still be at its own
        for pipe in self.pipes:
            pipe.send((port, str(folder), [str(a) for a in argv]))
        return [out for _, out in sorted(self.results().items())]


def _command(pipe, rank, size):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    while True:
        try:
            port, folder, argv = pipe.recv()
        except EOFError:
            return
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.chdir(folder)
        said, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            status = cli.main(argv)
        pipe.send((status, said.getvalue(), wrong.getvalue()))
