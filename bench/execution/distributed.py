"""One training in several processes of this machine, one for each device; whoever asks for it sees a function call.

The processes begin and end with the training. Checkpoints stay with whoever asks: its keeper is reached through a pipe.
If one of the processes fails, all end, and what failed first is raised.
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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.execution.task_pool import begin
from methods.base import Checkpointer, JobFunction, Unlabelled
from methods.data_parallel import DataParallelGroup
from methods.nets.weights import Weights

_GRACE = 2.0
"""Seconds in which the others may say what happened, after the first of them has failed."""

_RAISED, _DIED, _LOST = range(3)
"""How a process fails, the likelier cause first."""


@dataclass(frozen=True)
class Call:
    """A job function with its arguments. `draws` seeds its random numbers; `device`: cpu, or cuda for several GPUs."""

    function: JobFunction
    inputs: Sequence[Weights]
    data: Unlabelled | None
    config: Any
    draws: int
    device: str

    def here(self, keep: Checkpointer | None, **more: Any) -> Weights:
        """Run it in this process; `keep` is for resumable functions, None for others."""
        generator = torch.Generator(device=self.device).manual_seed(self.draws)
        return self.function(
            self.inputs, self.data, self.config, generator, **({} if keep is None else {"keep": keep}), **more
        )


def spread(call: Call, keep: Checkpointer | None, processes: int) -> Weights:
    """Run a shared job function (methods.base.Job) in so many processes, on a GPU in each on a device of its own.

    Raises what one of them raised, and BenchError where one was killed.
    """
    message = pickle.dumps((call, keep is not None))
    with tempfile.TemporaryDirectory() as folder, _started(processes, call.device, Path(folder, "store")) as members:
        for _, pipe in members:
            pipe.send_bytes(message)
        return _serve(members, keep)


@contextlib.contextmanager
def _started(count: int, device: str, store: Path) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    """The processes and a pipe to each of them. None of them outlives this."""
    context = multiprocessing.get_context("spawn")
    members: list[tuple[BaseProcess, Connection]] = []
    try:
        for rank in range(count):
            ours, theirs = context.Pipe()
            arguments = (rank, count, device, store, torch.get_num_threads(), theirs)
            process = context.Process(target=_member, args=arguments, name=f"process {rank} of {count}")
            with _quiet():
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
    """What is started meanwhile hears no warnings of torch's core: one says that all parameters are in use."""
    before = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ["TORCH_CPP_LOG_LEVEL"] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_CPP_LOG_LEVEL"]


def _serve(members: Sequence[tuple[BaseProcess, Connection]], keep: Checkpointer | None) -> Weights:
    """Answer the processes until all have finished; gives what the first of them made."""
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
        # A process that lost the others says so, but it is not what happened.
        raise min(failures, key=lambda failure: failure[0])[1]
    assert result is not None
    return result


def _death(process: BaseProcess) -> Exception:
    process.join(_GRACE)
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    return BenchError(f"{process.name} of a training {how}; run it again: it goes on from its last checkpoint")


class _SharedCheckpointer:
    """The keeper of a training, as its processes see it through their pipes: all load one state, the first saves."""

    def __init__(self, keep: Checkpointer | None) -> None:
        self._keep = keep
        self._loaded: bytes | None = None

    def answer(self, pipe: Connection, what: str, value: Any) -> None:
        """Do what a process asks for."""
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
    """The keeper as a process has it; of several processes in the same state only the first saves."""

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
    """What one of the processes does."""
    os.dup2(2, 1)  # gloo greets on stdout, which belongs to the results
    begin(threads)
    try:
        call, kept = pickle.loads(pipe.recv_bytes())
        if device == "cuda":
            call = replace(call, device=f"cuda:{rank}")
        parallel = _parallel(rank, count, device, store)
        weights = call.here(_RemoteCheckpointer(pipe, rank) if kept else None, parallel=parallel)
        torch.distributed.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - it is raised where the training was asked for
        pipe.send_bytes(pickle.dumps(("failed", _told(error))))
        return
    pipe.send_bytes(pickle.dumps(("done", weights if rank == 0 else None)))


def _parallel(rank: int, count: int, device: str, store: Path) -> DataParallelGroup:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # Of a surrounding `accelerate launch` nothing holds for these processes.
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in places.items()})
    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    elif sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{store}", rank=rank, world_size=count
    )
    # Some networks have parameters that an objective does not reach, as the last norm of pooled features has for MAE.
    averaging = DistributedDataParallelKwargs(find_unused_parameters=True)
    return DataParallelGroup(Accelerator(cpu=not cuda, mixed_precision="no", kwargs_handlers=[averaging]))


def _told(error: Exception) -> tuple[int, Exception]:
    """An error as it can be sent, and how likely it is what happened: what a lost connection raises comes last."""
    if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
        return _LOST, BenchError(
            f"the processes of a training lost one another ({str(error).splitlines()[0]}); "
            "run it again: it goes on from its last checkpoint"
        )
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - some errors cannot be made again from what they say
        return _RAISED, RuntimeError(f"{type(error).__name__}: {error}")
    return _RAISED, error
