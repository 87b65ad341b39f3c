"""Run one training in several processes of this machine, one for each device, behind a single function call.

The processes start and end with the training. The calling process writes the checkpoints; the others reach its
checkpointer through pipes. If a process fails, all end, and the first failure is raised.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.core.child_processes import without_script
from bench.core.errors import BenchError
from bench.execution.task_pool import begin
from methods.base import Checkpointer, JobFunction, Unlabelled
from methods.data_parallel import DataParallelGroup
from methods.nets.weights import Weights

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Connection
else:
    from multiprocessing.connection import Connection

_GRACE = 2.0
"""Seconds in which other processes may still report their error after the first failure."""

_RAISED, _DIED, _LOST = range(3)
"""How a process fails, ordered from the most to the least likely root cause."""


@dataclass(frozen=True)
class Call:
    """A job function with its arguments. `draws` is the random seed; `device` is cpu, or cuda for several GPUs."""

    function: JobFunction
    inputs: Sequence[Weights]
    data: Unlabelled | None
    config: Any
    draws: int
    device: str

    def here(self, keep: Checkpointer | None, **more: Any) -> Weights:
        """Run the function in this process; `keep` is the checkpointer of resumable functions, None for others."""
        generator = torch.Generator(device=self.device).manual_seed(self.draws)
        return self.function(
            self.inputs, self.data, self.config, generator, **({} if keep is None else {"keep": keep}), **more
        )


def spread(call: Call, keep: Checkpointer | None, processes: int) -> Weights:
    """Run a shared job function (methods.base.Job) in several processes, each on its own GPU if there are GPUs.

    Raises the error that a process raised, or BenchError if one was killed.
    """
    message = pickle.dumps((call, keep is not None))
    with tempfile.TemporaryDirectory() as folder, _started(processes, call.device, Path(folder, "store")) as members:
        for _, pipe in members:
            pipe.send_bytes(message)
        return _serve(members, keep)


@contextlib.contextmanager
def _started(count: int, device: str, store: Path) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """Yield the processes with a pipe to each, and end all of them on exit."""
    context = multiprocessing.get_context("spawn")
    members: list[tuple[BaseProcess, Connection]] = []
    try:
        for rank in range(count):
            ours, theirs = context.Pipe()
            arguments = (rank, count, device, store, torch.get_num_threads(), theirs)
            process = context.Process(target=_member, args=arguments, name=f"process {rank} of {count}")
            with _quiet(), without_script():
                process.start()
            theirs.close()
            members.append((process, ours))
        yield members
        for member, _ in members:
            member.join(_GRACE)
    finally:
        for member, ours in members:
            member.kill()
            member.join()
            ours.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of torch's core in processes started inside, such as the one about parameters in use."""
    before = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ["TORCH_CPP_LOG_LEVEL"] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_CPP_LOG_LEVEL"]


def _serve(members: Sequence[tuple[BaseProcess, Connection]], keep: Checkpointer | None) -> Weights:
    """Answer requests of the processes until all have finished, and return the result of the first process."""
    pipes = {pipe: process for process, pipe in members}
    kept = _SharedCheckpointer(keep)
    failures: list[tuple[int, Exception]] = []
    result: Weights | None = None
    until: float | None = None
    while pipes and (until is None or time.monotonic() < until):
        for ready in wait(list(pipes), None if until is None else max(0.0, until - time.monotonic())):
            pipe = cast(Connection, ready)
            try:
                what, value = pickle.loads(pipe.recv_bytes())
                if what in ("done", "failed"):
                    del pipes[pipe]
                    failures += [value] if what == "failed" else []
                    result = value if what == "done" and value is not None else result
                else:
                    kept.answer(pipe, what, value)
            except (EOFError, ConnectionError):
                failures.append((_DIED, _death(pipes.pop(pipe))))
        if failures and until is None:
            until = time.monotonic() + _GRACE
    if failures:
        # A lost connection to other processes is a consequence of the failure, not its cause.
        raise min(failures, key=lambda failure: failure[0])[1]
    assert result is not None
    return result


def _death(process: BaseProcess) -> Exception:
    process.join(_GRACE)
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    return BenchError(f"{process.name} of a training {how}; run it again to continue from its last checkpoint")


class _SharedCheckpointer:
    """The checkpointer of a training, shared with its processes through pipes: all load one state, the first saves."""

    def __init__(self, keep: Checkpointer | None) -> None:
        self._keep = keep
        self._loaded: bytes | None = None

    def answer(self, pipe: Connection, what: str, value: Any) -> None:
        """Carry out a process's request."""
        keep = self._keep
        assert keep is not None
        match what:
            case "load":
                if self._loaded is None:
                    self._loaded = _packed(keep.load())
                pipe.send_bytes(self._loaded)
            case "due":
                pipe.send_bytes(pickle.dumps(keep.due()))
            case "save":
                self._loaded = None
                keep.save(_unpacked(value))
            case "finished":
                keep.finished(_unpacked(value))


class _RemoteCheckpointer:
    """The checkpointer inside a process of a training; all processes share one state, and only the first saves it."""

    def __init__(self, pipe: Connection, rank: int) -> None:
        self._pipe, self._first = pipe, rank == 0

    def _send(self, what: str, value: Any = None) -> None:
        self._pipe.send_bytes(pickle.dumps((what, value)))

    def load(self) -> dict[str, Any] | None:
        self._send("load")
        return cast("dict[str, Any] | None", _unpacked(self._pipe.recv_bytes()))

    def due(self) -> bool:
        if not self._first:
            return False
        self._send("due")
        return bool(pickle.loads(self._pipe.recv_bytes()))

    def save(self, state: dict[str, Any]) -> None:
        self._send("save", _packed(state))

    def finished(self, losses: Tensor) -> None:
        if self._first:
            self._send("finished", _packed(losses))


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(message: bytes) -> Any:
    return torch.load(io.BytesIO(message), map_location="cpu", weights_only=True)


def _member(rank: int, count: int, device: str, store: Path, threads: int, pipe: Connection) -> None:
    """Run one process of a training: receive the call, run it and send back the weights or the error."""
    os.dup2(2, 1)  # gloo writes to stdout, which is reserved for results
    begin(threads)
    try:
        call, kept = pickle.loads(pipe.recv_bytes())
        if device == "cuda":
            call = replace(call, device=f"cuda:{rank}")
        parallel = _parallel(rank, count, device, store)
        weights = call.here(_RemoteCheckpointer(pipe, rank) if kept else None, parallel=parallel)
        torch.distributed.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - the calling process raises it
        pipe.send_bytes(pickle.dumps(("failed", _failure(error))))
        return
    pipe.send_bytes(pickle.dumps(("done", weights if rank == 0 else None)))


def _parallel(rank: int, count: int, device: str, store: Path) -> DataParallelGroup:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # Settings of a surrounding `accelerate launch` must not reach these processes.
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in places.items()})
    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    elif sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = torch.distributed.FileStore(str(store), count)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("nccl" if cuda else "gloo", store=meeting, rank=rank, world_size=count)
    # An objective may leave parameters unused, as MAE does with the last norm of pooled features.
    averaging = DistributedDataParallelKwargs(find_unused_parameters=True)
    return DataParallelGroup(Accelerator(cpu=not cuda, mixed_precision="no", kwargs_handlers=[averaging]))


def _failure(error: Exception) -> tuple[int, Exception]:
    """Return how a process failed, and the error in a form that can be pickled."""
    if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
        return _LOST, BenchError(
            f"the processes of a training lost one another ({str(error).splitlines()[0]}); "
            "run it again to continue from its last checkpoint"
        )
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - some errors cannot be unpickled
        return _RAISED, RuntimeError(f"{type(error).__name__}: {error}")
    return _RAISED, error
