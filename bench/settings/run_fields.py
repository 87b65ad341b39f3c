"""The settings of a run, each declared once: `RunSpec` inherits them, `bench run` has a flag for each.

Every start of the command line reads this file, so it imports neither pydantic nor torch; annotations are values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, dataclass_transform


@dataclass(frozen=True)
class Flag:
    """How the command line shows a setting, and the limits of its number.

    also: another name of the flag. repeated: the flag may be given several times, as KEY=VALUE.
    """

    help: str
    name: str = ""
    also: str = ""
    metavar: str | None = None
    repeated: bool = False
    least: float | None = None
    most: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        schema = handler(source)
        number = schema["schema"] if schema["type"] == "nullable" else schema
        number.update({name: limit for name, limit in (("ge", self.least), ("le", self.most)) if limit is not None})
        return schema


Device = Annotated[str, Flag("auto, cpu, cuda or cuda:N.")]
DataRoot = Annotated[Path | None, Flag("Folder of the data sets.")]
Offline = Annotated[bool, Flag("Never use the network.")]

LISTS = ("shift", "pool", "model", "stock", "head", "protocol", "split", "batch_size", "labels", "precision")
"""Settings of which a run has one value; the command line and run files also take a list, for a grid of runs."""

REPEATED = (
    *("model", "stock", "seeds", "seed", "limit", "device", "compile", "data_root", "out", "launch", "slurm"),
    *("jobs", "devices", "workers", "rerun", "only_failed", "offline", "tracker"),
)
"""Settings that a reproduction card leaves to the user: where and how often its run is done."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Declared:
    """Tells type checkers that the annotations below are arguments of `RunSpec`."""


class RunFields(_Declared):
    """Names, types, defaults, limits and help of a run's settings, in the order of `bench run --help`."""

    method: Annotated[tuple[str, ...], Flag("A, B+C or file.py:Class; comma-separated.")]
    shift: Annotated[str, Flag("A named shift, or several, comma-separated; see `bench list shifts`.")]
    pool: Annotated[
        str | None,
        Flag("The shift whose images recipes such as selfsoup see, or several.  [default: the scored one]"),
    ] = None
    model: Annotated[str | None, Flag("A ready classifier; see `bench list models`.")] = None
    stock: Annotated[str | None, Flag("A stock to start from; see `bench list models`.")] = None
    head: Annotated[
        Literal["fine-tuned", "probe", "knn"],
        Flag("What recipes put on a stock: fine-tuned, probe (a linear layer) or knn (nearest neighbours)."),
    ] = "fine-tuned"
    init_from: Annotated[
        str | None, Flag("Start from the classifier trained in another run's folder.", metavar="RUN[:METHOD]")
    ] = None
    severity: Annotated[tuple[float, ...], Flag("5, 3,5 or 1-5.  [default: 5]")] = (5.0,)
    corruption: Annotated[
        tuple[str, ...] | None,
        Flag("Some of the shift's corruptions, groups of them (noise, blur, …), or FILE.py:NAME; comma-separated."),
    ] = None
    protocol: Annotated[str, Flag("NAME or NAME:parameter=value; see `bench list protocols`.")] = "reset_each_shift"
    split: Annotated[
        Literal["disjoint", "joint", "transductive", "dev"], Flag("disjoint, joint, transductive or dev.")
    ] = "disjoint"
    seeds: Annotated[int | None, Flag("Number of seeds.", least=1, most=1000, also="--label-draws")] = None
    seed: Annotated[int, Flag("The first (or only) seed.", least=0, most=2**31 - 1001)] = 0
    ingredient_draws: Annotated[
        int | None,
        Flag("Draw only so many sets of ingredients, each for as many of the seeds.", least=1, most=1000),
    ] = None
    ingredient_seed: Annotated[
        int | None, Flag("The first (or only) seed of ingredients.  [default: 0]", least=0, most=2**31 - 1001)
    ] = None
    batch_size: Annotated[int, Flag("Images per batch of the stream.", least=1)] = 64
    budget: Annotated[
        str | None, Flag("How much of the published recipe: paper, short or smoke; see `bench show shift NAME`.")
    ] = None
    limit: Annotated[int | None, Flag("At most this many images; such a run cannot be published.", least=1)] = None
    labels: Annotated[int | None, Flag("Labelled clean images per class; 0 for all.", least=0)] = None
    device: Device = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], Flag("auto, fp32 or bf16.")] = "auto"
    compile: Annotated[bool, Flag("Compile trainings; faster on a GPU.")] = False
    data_root: DataRoot = None
    classes: Annotated[str | None, Flag("Class order of folder: and hf:.", metavar="FILE|natural|imagefolder")] = None
    label: Annotated[str | None, Flag("The column that holds the labels.", metavar="COLUMN")] = None
    part: Annotated[str | None, Flag("Score this split (test, validation, …) of folder: and hf:.", metavar="NAME")] = (
        None
    )
    options: Annotated[Any, Flag("Set an option of a method.", "--set", metavar="NAME.key=value", repeated=True)]
    with_baselines: Annotated[
        bool, Flag("Add source, soups that see other data, controls, and other selection rules.")
    ] = False
    out: Annotated[Path | None, Flag("Folder of the records.  [default: runs/<shift>-<methods>]")] = None
    launch: Annotated[
        Literal["local", "serial", "slurm"],
        Flag("local (processes on this machine, the default), serial or slurm."),
    ] = "local"
    slurm: Annotated[
        Any,
        Flag(
            "For --launch slurm: partition, time (minutes), gpus, cpus, mem (GB), …", metavar="KEY=VALUE", repeated=True
        ),
    ]
    jobs: Annotated[
        int | None,
        Flag("Processes; default: one per core, or one on GPUs, where each process has its own GPU.", least=1),
    ] = None
    devices: Annotated[int | None, Flag("GPUs, or processes on a CPU, that share each training.", least=1)] = None
    workers: Annotated[int | None, Flag("Threads that decode images; default: one per core.", least=0)] = None
    rerun: Annotated[bool, Flag("Measure again even if records exist.")] = False
    only_failed: Annotated[bool, Flag("Repeat only failed records.")] = False
    offline: Offline = False
    tracker: Annotated[
        Literal["tensorboard", "mlflow", "wandb", "trackio"] | None,
        Flag("Also log to tensorboard, mlflow, wandb or trackio; needs soupbench[track].", also="--track"),
    ] = None
