"""Python programs in processes of their own that start at once: forks of a server that has imported the libraries.

A fork has its own folder, environment, arguments, output and signals, as a new process has; the import of torch, scipy
and others, which takes eight seconds of a core, is shared, and no module of this project. A test of what is imported,
of memory, or of what libraries read from the environment when they are imported starts an interpreter with
`subprocess`; variables of Hugging Face (`HF_…`) alone may differ here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_PRELOADED = (
    *("torch", "torchvision", "PIL.Image", "pydantic", "rich.console", "typer", "jinja2"),
    *("scipy.stats", "scipy.optimize", "scipy.ndimage", "pandas", "numba", "sklearn.datasets", "timm"),
)
_READ_HF_VARIABLES = ("huggingface_hub", "timm")  # those of _PRELOADED that do when they are imported


def run(
    command: Sequence[str | Path],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run what follows `python` on a command line ("-m bench …", "-c CODE …", "FILE …") to its end."""
    process = Process(command, cwd=cwd, env=env)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    if check and process.returncode:
        raise AssertionError(f"{[*map(str, command)]} ended with {process.returncode}: {err[-3000:]}")
    return subprocess.CompletedProcess([*map(str, command)], process.returncode, out, err)


class Process:
    """A running program, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self, command: Sequence[str | Path], *, cwd: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.returncode: int | None = None
        self._out, self._err, self._status = ends = [os.pipe() for _ in range(3)]
        words, environment = [*map(str, command)], dict(os.environ if env is None else env)
        asked = {"words": words, "folder": str(cwd or Path.cwd()), "environment": environment}
        content = json.dumps(asked).encode()
        with _asking:
            server = _server()
            socket.send_fds(server, [struct.pack("!Q", len(content))], [write for _, write in ends])
            server.sendall(content)
        for _, write in ends:
            os.close(write)
        self.pid = struct.unpack("!i", os.read(self._status[0], 4))[0]

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._status[0]], [], [], 0)[0]:
            self.returncode = struct.unpack("!i", os.read(self._status[0], 4))[0]
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code. Raises TimeoutExpired."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise subprocess.TimeoutExpired("python", timeout)
            select.select([self._status[0]], [], [], 1)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Return all that it prints, and wait for its end. Raises TimeoutExpired."""
        texts: dict[int, str] = {}

        def read(number: int, end: int) -> None:
            with os.fdopen(end, encoding="utf-8", errors="replace") as file:
                texts[number] = file.read()

        readers = [threading.Thread(target=read, args=(n, e[0])) for n, e in enumerate((self._out, self._err))]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_HELD = (signal.SIGINT, signal.SIGTERM)
_asking = threading.Lock()


@cache
def _server() -> socket.socket:
    """Start the server; it ends with the last end of the socket, so with this process."""
    here, there = socket.socketpair()
    subprocess.Popen(
        [sys.executable, __file__, str(there.fileno())],
        pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    there.close()
    return here


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for each request; return it in the fork, and never in the server."""
    # Signals for a fork wait until it can take them; an interrupt of all tests is none for the server.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        header, ends, *_ = socket.recv_fds(channel, 8, 3)
        if len(header) < 8:
            os._exit(0)
        content = _received(channel, struct.unpack("!Q", header)[0])
        if os.fork() == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked: dict[str, Any] = json.loads(content)
            _fork_and_report(ends.pop())
            _become(asked, ends)
            return asked
        for end in ends:
            os.close(end)


def _received(channel: socket.socket, count: int) -> bytes:
    """Return the next bytes; a signal may cut each reception short. Ends this process with the one that asks."""
    content = b""
    while len(content) < count:
        part = channel.recv(count - len(content))
        if not part:
            os._exit(0)
        content += part
    return content


def _reap(*_: object) -> None:
    """Wait for those that watched and have ended, so that their processor time counts in that of the tests."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_and_report(status: int) -> None:
    """Return in a fork. This process sends its number and, at its end, its exit code, and ends too."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(status)
        os.close(write)
        os.read(read, 1)
        os.close(read)
        return
    os.write(status, struct.pack("!i", pid))
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    os.closerange(3, status)
    os.closerange(status + 1, 256)
    _, code = os.waitpid(pid, 0)
    os.write(status, struct.pack("!i", os.waitstatus_to_exitcode(code)))
    os._exit(0)


def _become(asked: dict[str, Any], ends: Sequence[int]) -> None:
    """Take the folder, environment, arguments and output of the program."""
    import multiprocessing.process

    for number, end in enumerate(ends, 1):
        os.dup2(end, number)
        os.close(end)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(asked["folder"])
    if _of_hugging_face(os.environ) != _of_hugging_face(asked["environment"]):
        for name in [name for name in sys.modules if name.split(".")[0] in _READ_HF_VARIABLES]:
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(asked["environment"])
    program = asked["words"][0]
    first = Path.cwd() if program in ("-m", "-c") else Path(program).resolve().parent
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [str(first), *own, *(path for path in sys.path[1:] if path not in before)]
    multiprocessing.process.ORIGINAL_DIR = str(Path.cwd())  # type: ignore[attr-defined]
    # Tests that a shell started in the background inherit that interrupts are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def _of_hugging_face(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("HF_")}


def _program(words: Sequence[str]) -> Callable[[], object]:
    import runpy
    from types import ModuleType

    kind, *rest = words
    if kind == "-m":
        sys.argv = rest
        return lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        return lambda: exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    sys.argv = [*words]
    return lambda: runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    import gc
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    os.fsync = lambda file: None  # as in tests/conftest.py
    _program(_serve(socket.socket(fileno=int(sys.argv[1])))["words"])()
