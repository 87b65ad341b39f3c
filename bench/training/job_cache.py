"""Cooking: a recipe's jobs become tasks, and their weights live in the cache by content key."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.core.cache_dir import cache_dir, lock, weights_path
from bench.core.components import identity_of, name_of
from bench.core.conditions import digest_of
from bench.core.environment import device_name
from bench.core.errors import BenchError, MissingDataError
from bench.core.import_object import search_for, searched_for
from bench.execution.checkpointing import FileCheckpointer
from bench.execution.distributed import Call, spread
from bench.execution.progress_files import ProgressWriter, training_file
from bench.execution.task_pool import Task
from bench.models.weights_io import facts_of, load_weights, save_weights, whole_facts
from methods.base import Job, JobFunction, Work
from methods.nets.weights import Weights
from methods.soups.mixing import Mixed

log = logging.getLogger(__name__)


def job_key(job: Job | Weights, seed: int) -> str:
    """What a job's result depends on: its code, options, inputs, data and seed. Weights are their own digest."""
    if isinstance(job, Weights):
        return job.digest
    return digest_of(
        {
            "function": identity_of(job.function),
            "config": described(job.config, identity_of),
            "inputs": [[job_key(part, seed), *_architecture(part)] for part in job.inputs],
            "data": job.data.digest if job.data is not None else None,
            "seed": seed if job.data is not None else None,
        }
    )


def _architecture(part: Job | Weights) -> tuple[str, ...]:
    return identity_of(type(part.architecture)) if isinstance(part, Weights) else ()


def code_key(job: Job) -> str:
    """What says whether a process has the code that a job was planned with."""
    return _code_key(job.function, job.config)


def _code_key(function: JobFunction, config: Any) -> str:
    return digest_of([identity_of(function), *(identity_of(kind) for kind in types_of(config))])


def types_of(config: Any) -> Iterator[type]:
    """The classes of options and of all that they hold."""
    if is_dataclass(config) and not isinstance(config, type):
        yield type(config)
        for field in fields(config):
            yield from types_of(getattr(config, field.name))
    elif isinstance(config, tuple | list):
        for item in config:
            yield from types_of(item)


def draw_key(job: Job | Weights, seed: int) -> str:
    """What seeds the random numbers of a job: all that its result depends on but code, which may change without them.

    The names in it are declared (`methods.identity`), so that they are the same wherever the code lies.
    """
    if isinstance(job, Weights):
        return job.digest
    return digest_of(
        {
            "function": name_of(job.function),
            "code": None,
            "config": described(job.config, name_of),
            "inputs": [draw_key(part, seed) for part in job.inputs],
            "data": job.data.digest if job.data is not None else None,
            "seed": seed if job.data is not None else None,
        }
    )


def described(config: Any, call: Callable[[type], Any]) -> Any:
    """Options as plain values, each nested object with what `call` gives for its type, so that two kinds never share a
    key.

    What is None is left out, so that an option that is added with this default changes no key and no random number.
    """
    if is_dataclass(config) and not isinstance(config, type):
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        plain = {name: described(value, call) for name, value in values.items() if value is not None}
        return {"type": call(type(config))} | plain
    if isinstance(config, tuple | list):
        return [described(item, call) for item in config]
    return config


_FREE = {"lr", "draw", "steps", "epochs", "weight_decay", "warmup", "head_warmup", "stop"}


def kind_of(job: Job) -> str:
    """What trainings have in common whose steps take equally long, whatever their rates, lengths and draws."""
    config = described(job.config, identity_of)
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name not in _FREE}
    size = [len(job.data), *job.data.images.shape[1:]] if job.data is not None else None
    return digest_of([identity_of(job.function), config, size, repr(stock_of(job).architecture)])


def stock_of(job: Job) -> Weights:
    """What a job starts from, itself or through others."""
    return next(part for each in all_jobs([job]) for part in each.inputs if isinstance(part, Weights))


def all_jobs(targets: Iterable[Job | Weights]) -> list[Job]:
    """Every job the targets need, inputs before those that use them."""
    ordered: dict[int, Job] = {}

    def visit(job: Job | Weights) -> None:
        if isinstance(job, Job) and id(job) not in ordered:
            for part in job.inputs:
                visit(part)
            ordered[id(job)] = job

    for target in targets:
        visit(target)
    return list(ordered.values())


@dataclass(frozen=True)
class Order:
    """What a job is made of, pickled only when it is sent to another process: many jobs share a stock in memory.

    Plain pickling copies tensors into the message; torch's own sharing would need a large /dev/shm.
    """

    parts: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (pickle.dumps(self.parts), searched_for())


def _received(message: bytes, modules: Mapping[str, str]) -> Order:
    search_for(modules)
    return Order(pickle.loads(message))


def training_tasks(targets: Iterable[Job], seed: int, device: str, devices: int = 1) -> list[Task]:
    """A task for each job that is not in the cache yet; equal jobs become one. Those that can share `devices`."""
    tasks: dict[str, Task] = {}
    for job in all_jobs(targets):
        key = job_key(job, seed)
        if key in tasks:
            continue
        if cooked(key) is not None:
            # Left by a process that was killed after the weights were written.
            _checkpoint(key).unlink(missing_ok=True)
            continue
        inputs = tuple(part if isinstance(part, Weights) else job_key(part, seed) for part in job.inputs)
        after = frozenset(part for part in inputs if isinstance(part, str))
        order = Order((job.function, job.config, inputs, job.data, job.resumable))
        draws = int(draw_key(job, seed)[:15], 16)
        stocks = sorted({part.digest for each in all_jobs([job]) for part in each.inputs if isinstance(part, Weights)})
        spent = devices if job.shared else 1
        arguments = (key, draws, order, device, job.label, stocks, spent, job.work, kind_of(job), code_key(job))
        tasks[key] = Task(key, run_job, arguments, after, job.label, spent)
    return list(tasks.values())


def run_job(
    key: str,
    draws: int,
    order: Order,
    device: str,
    label: str,
    stocks: Sequence[str],
    devices: int = 1,
    work: Work | None = None,
    kind: str = "",
    code: str = "",
) -> None:
    """Run one job with the random numbers that `draws` seeds, and put its weights into the cache with its seconds.

    `stocks` are the digests of all weights that were given and not made on the way. A shared job may be spread over so
    many `devices`, whose seconds add up. Of several processes that are to cook the same, one does and the others wait.
    A job whose steps are known tells people where it is. `kind` is that of `kind_of`, for whoever asks how long such
    jobs take. `code` is that of `code_key` where the job was planned: BenchError where it is another one here.
    """
    with lock(cache_dir() / "locks" / f"{key}.lock"):
        if cooked(key) is not None:
            return
        function, config, inputs, data, resumable = order.parts
        if code and code != _code_key(function, config):
            raise BenchError(f"the code of {label} has changed since the run was planned; start the run again")
        weights = [part if isinstance(part, Weights) else load_weights(weights_path(part))[0] for part in inputs]
        call = Call(function, weights, data, config, draws, device)
        writer = ProgressWriter(training_file(key), label)
        steps = work.steps if work is not None else 0
        checkpointer = FileCheckpointer(_checkpoint(key), report=partial(writer.step, steps) if steps else None)
        start = time.perf_counter()
        try:
            result = (
                spread(call, checkpointer, devices) if devices > 1 else call.here(checkpointer if resumable else None)
            )
        finally:
            writer.end()
        seconds = (checkpointer.seconds_before + time.perf_counter() - start) * devices
        bad = [name for name, tensor in result.tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise FloatingPointError(f"{label} gave weights that are not finite ({bad[0]}); lower its learning rate")
        facts: dict[str, Any] = {"label": label, "seconds": seconds, "stocks": list(stocks), "torch": torch.__version__}
        facts |= {"kind": kind, "flops": work.flops if work is not None else None, "machine": machine(device)}
        if devices > 1:
            facts["devices"] = devices
        if isinstance(result, Mixed):
            facts["shares"] = {layer: list(row) for layer, row in result.shares.items()}
        if checkpointer.losses:
            facts["losses"] = checkpointer.losses
        save_weights(weights_path(key), result, facts)
        checkpointer.forget()


def machine(device: str) -> list[str | int]:
    """What the speed of a job depends on beside the job: the hardware and the threads of this process."""
    return [device_name(device), torch.get_num_threads()]


def seconds_before(device: str) -> dict[str, float]:
    """What the trainings in the cache tell of this machine: by kind, seconds of an operation, or where operations are
    not counted of a job.
    """
    sums: dict[str, list[float]] = {}
    for path in sorted(weights_path("*").parent.glob("*.safetensors")):
        facts = facts_of(path)
        if facts.get("kind") and facts.get("machine") == machine(device):
            total = sums.setdefault(facts["kind"], [0.0, 0.0])
            total[0] += facts["seconds"]
            total[1] += facts["flops"] or 1
    return {kind: seconds / work for kind, (seconds, work) in sums.items()}


def _checkpoint(key: str) -> Path:
    return cache_dir() / "training" / f"{key}.pt"


def cooked(key: str) -> dict[str, Any] | None:
    """The facts of a job's weights if they are whole in the cache; None where they must be made (again)."""
    try:
        return whole_facts(weights_path(key))
    except MissingDataError:
        return None
    except BenchError as error:
        log.warning("%s; it is made again", str(error).partition(";")[0])
        weights_path(key).unlink(missing_ok=True)
        return None


def connectivity_of(report: Job, seed: int) -> dict[str, Any]:
    """What a report of methods.soup.connectivity found, in plain values, its lines named by what they connect."""
    tensors = load_weights(weights_path(job_key(report, seed)))[0].tensors
    names = [part.label if isinstance(part, Job) else part.digest for part in report.inputs]
    rows = tensors["accuracy"].tolist()
    lines = [
        {"first": names[a], "second": names[b], "accuracy": tuple(row)}
        for (a, b), row in zip(tensors["pairs"].tolist(), rows, strict=True)
    ]
    return {"n": int(tensors["images"]), "positions": tuple(tensors["positions"].tolist()), "lines": tuple(lines)}


def mixture_of(job: Job, seed: int) -> dict[str, Any] | None:
    """What the last way of mixing behind a result has chosen, in plain values; None where nothing was chosen."""
    for part in reversed(all_jobs([job])):
        if part.resumable or part.data is None:
            continue
        shares = (cooked(job_key(part, seed)) or {}).get("shares")
        if shares:
            names = tuple(i.label if isinstance(i, Job) else i.digest for i in part.inputs)
            return {"ingredients": names, "shares": {layer: tuple(row) for layer, row in shares.items()}}
    return None


def fit_seconds(job: Job, seed: int) -> float:
    """Seconds of training behind a result, cached or not; jobs that several results share count in each."""
    keys = {job_key(part, seed) for part in all_jobs([job])}
    return sum(float((cooked(key) or {}).get("seconds", 0.0)) for key in keys)
