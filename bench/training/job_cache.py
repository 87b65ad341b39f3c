"""Turn a recipe's jobs into tasks, run them, and cache their weights by content key."""

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

from bench.core.cache_dir import cache_dir, lock, remove, weights_path
from bench.core.components import identity_of, name_of
from bench.core.conditions import Draws, digest_of
from bench.core.environment import device_name
from bench.core.errors import BenchError, MissingDataError
from bench.core.import_object import search_for, searched_for
from bench.execution.checkpointing import FileCheckpointer
from bench.execution.distributed import Call, spread
from bench.execution.progress_files import ProgressWriter, training_file
from bench.execution.task_pool import Task
from bench.models.weights_io import facts_of, load_weights, save_weights, whole_facts
from methods.base import Job, JobFunction, Labelled, Work
from methods.nets.weights import Weights
from methods.soups.mixing import Mixed

log = logging.getLogger(__name__)


Seed = int | Draws
"""The seed of a trial, or its seeds where labels and ingredients have their own."""


def _seed_of(job: Job, seed: Seed) -> int | None:
    """Return the seed that a job depends on: what learns without labels has that of ingredients."""
    if job.data is None:
        return None
    if isinstance(seed, int):
        return seed
    return seed.labels if isinstance(job.data, Labelled) else seed.ingredients


def job_key(job: Job | Weights, seed: Seed) -> str:
    """Return a digest of everything that a job's result depends on: code, options, inputs, data and seed.

    For weights it is their own digest.
    """
    if isinstance(job, Weights):
        return job.digest
    return digest_of(
        {
            "function": identity_of(job.function),
            "config": described(job.config, identity_of),
            "inputs": [[job_key(part, seed), *_architecture(part)] for part in job.inputs],
            "data": job.data.digest if job.data is not None else None,
            "seed": _seed_of(job, seed),
        }
    )


def _architecture(part: Job | Weights) -> tuple[str, ...]:
    return identity_of(type(part.architecture)) if isinstance(part, Weights) else ()


def code_key(job: Job) -> str:
    """Return a digest of a job's code, which tells whether a process runs the code that the job was planned with."""
    return _code_key(job.function, job.config)


def _code_key(function: JobFunction, config: Any) -> str:
    return digest_of([identity_of(function), *(identity_of(kind) for kind in types_of(config))])


def types_of(config: Any) -> Iterator[type]:
    """Yield the classes of options and of all nested options."""
    if is_dataclass(config) and not isinstance(config, type):
        yield type(config)
        for field in fields(config):
            yield from types_of(getattr(config, field.name))
    elif isinstance(config, tuple | list):
        for item in config:
            yield from types_of(item)


def draw_key(job: Job | Weights, seed: Seed) -> str:
    """Return the digest that seeds a job's random numbers: options, inputs, data and seed, but not the code.

    It holds declared names (`methods.identity`), so moving code does not change it.
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
            "seed": _seed_of(job, seed),
        }
    )


def described(config: Any, call: Callable[[type], Any]) -> Any:
    """Return options as plain values; each object carries `call(type)`, so that two types never share a key.

    Values of None are omitted, so that a new option with this default changes no key and no random number.
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
    """Return a digest shared by trainings whose steps take equally long; rates, lengths and draws may differ."""
    config = described(job.config, identity_of)
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name not in _FREE}
    size = [len(job.data), *job.data.images.shape[1:]] if job.data is not None else None
    return digest_of([identity_of(job.function), config, size, repr(stock_of(job).architecture)])


def stock_of(job: Job) -> Weights:
    """Return the first weights that a job starts from, directly or through its inputs."""
    return next(part for each in all_jobs([job]) for part in each.inputs if isinstance(part, Weights))


def all_jobs(targets: Iterable[Job | Weights]) -> list[Job]:
    """Return all jobs that the targets need, inputs before the jobs that use them."""
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
class JobOrder:
    """The parts of a job, pickled only when the job is sent to another process, as many jobs share a stock in memory.

    Plain pickling copies tensors into the message; torch's own sharing would need a large /dev/shm.
    """

    parts: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (pickle.dumps(self.parts), searched_for())


def _received(message: bytes, modules: Mapping[str, str]) -> JobOrder:
    search_for(modules)
    return JobOrder(pickle.loads(message))


def training_tasks(targets: Iterable[Job], seed: Seed, device: str, devices: int = 1) -> list[Task]:
    """Return a task for each distinct job that is not in the cache; shared jobs run on all `devices`."""
    tasks: dict[str, Task] = {}
    for job in all_jobs(targets):
        key = job_key(job, seed)
        if key in tasks:
            continue
        if cached_facts(key) is not None:
            # A process killed after writing the weights leaves its checkpoint behind.
            remove(_checkpoint(key))
            continue
        inputs = tuple(part if isinstance(part, Weights) else job_key(part, seed) for part in job.inputs)
        after = frozenset(part for part in inputs if isinstance(part, str))
        order = JobOrder((job.function, job.config, inputs, job.data, job.resumable))
        draws = int(draw_key(job, seed)[:15], 16)
        stocks = sorted({part.digest for each in all_jobs([job]) for part in each.inputs if isinstance(part, Weights)})
        spent = devices if job.shared else 1
        arguments = (key, draws, order, device, job.label, stocks, spent, job.work, kind_of(job), code_key(job))
        tasks[key] = Task(key, run_job, arguments, after, job.label, spent)
    return list(tasks.values())


def run_job(
    key: str,
    draws: int,
    order: JobOrder,
    device: str,
    label: str,
    stocks: Sequence[str],
    devices: int = 1,
    work: Work | None = None,
    kind: str = "",
    code: str = "",
) -> None:
    """Run a job with the random seed `draws`, and write its weights and facts to the cache.

    `stocks` are the digests of the given weights that the job starts from. A shared job is spread over `devices`, whose
    seconds add up. If several processes run the same job, one trains and the others wait. `work` is the job's number of
    steps and operations; a job with known steps writes progress. `kind` is its `kind_of`, stored for time estimates.
    `code` is the `code_key` of the planning process. Raises BenchError if this process has other code,
    FloatingPointError if the weights are not finite.
    """
    with lock(cache_dir() / "locks" / f"{key}.lock"):
        if cached_facts(key) is not None:
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
    """Return the hardware and the number of threads of this process, on which the speed of a job depends."""
    return [device_name(device), torch.get_num_threads()]


def speed_kind(job: Job) -> str:
    """Return the name under which `seconds_before` has the speed of a job."""
    return _speed_kind(kind_of(job), job.work is not None)


def _speed_kind(kind: str, counted: bool) -> str:
    return kind if counted else f"{kind}, uncounted"


def seconds_before(device: str) -> dict[str, float]:
    """Return the mean speed of cached trainings on this machine, by `speed_kind`: seconds for each operation.

    For jobs without counted operations it is the seconds for each job.
    """
    sums: dict[str, list[float]] = {}
    for path in sorted(weights_path("*").parent.glob("*.safetensors")):
        facts = facts_of(path)
        if facts.get("kind") and facts.get("machine") == machine(device):
            total = sums.setdefault(_speed_kind(facts["kind"], bool(facts["flops"])), [0.0, 0.0])
            total[0] += facts["seconds"]
            total[1] += facts["flops"] or 1
    return {kind: seconds / work for kind, (seconds, work) in sums.items()}


def _checkpoint(key: str) -> Path:
    return cache_dir() / "training" / f"{key}.pt"


def cached_facts(key: str) -> dict[str, Any] | None:
    """Return the facts of a job's cached weights; None if they are missing or damaged (these are removed)."""
    try:
        return whole_facts(weights_path(key))
    except MissingDataError:
        return None
    except BenchError as error:
        log.warning("%s; training it again", str(error).partition(";")[0])
        remove(weights_path(key))
        return None


def connectivity_of(report: Job, seed: Seed) -> dict[str, Any]:
    """Return the result of a connectivity report as plain values; each line names the two inputs that it connects."""
    tensors = load_weights(weights_path(job_key(report, seed)))[0].tensors
    names = [part.label if isinstance(part, Job) else part.digest for part in report.inputs]
    rows = tensors["accuracy"].tolist()
    lines = [
        {"first": names[a], "second": names[b], "accuracy": tuple(row)}
        for (a, b), row in zip(tensors["pairs"].tolist(), rows, strict=True)
    ]
    return {"n": int(tensors["images"]), "positions": tuple(tensors["positions"].tolist()), "lines": tuple(lines)}


def mixture_of(job: Job, seed: Seed) -> dict[str, Any] | None:
    """Return the shares chosen by the last mixing job behind a result as plain values; None if there are none."""
    for part in reversed(all_jobs([job])):
        if part.resumable or part.data is None:
            continue
        shares = (cached_facts(job_key(part, seed)) or {}).get("shares")
        if shares:
            names = tuple(i.label if isinstance(i, Job) else i.digest for i in part.inputs)
            return {"ingredients": names, "shares": {layer: tuple(row) for layer, row in shares.items()}}
    return None


def fit_seconds(job: Job, seed: Seed) -> float:
    """Return the training seconds behind a result, cached or not; jobs shared by several results count in each."""
    keys = {job_key(part, seed) for part in all_jobs([job])}
    return sum(float((cached_facts(key) or {}).get("seconds", 0.0)) for key in keys)
