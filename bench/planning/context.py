"""What all rows of a plan share: images, conditions, starting weights, methods and their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from bench.core.conditions import Condition, digest_of
from bench.core.errors import UsageError
from bench.core.import_object import code_of
from bench.evaluation.protocols import Protocol, parse_protocol
from bench.models.weights_io import model_digest
from bench.planning.run_methods import check_options, methods_of
from bench.planning.starting_weights import Base, check_base
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method
from bench.settings.run_spec import RunSpec
from bench.shifts.adaptation_pools import AdaptationPools, groups
from bench.shifts.class_match import fitted
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, limit_ids, pick_conditions, pick_corruptions, split_ids, trained_on
from methods.base import Unlabelled
from methods.nets.weights import Weights
from methods.norms import norm_family


@dataclass(frozen=True)
class PlanContext:
    """What all entries of a plan share: the shift's images and conditions, the base and how options are chosen.

    `made_by` holds the identities of the user's own code; `digests` those of each condition's images.
    """

    spec: RunSpec
    shift: Shift
    device: str
    name: str
    base: Base
    methods: tuple[Method, ...]
    protocol: Protocol
    conditions: tuple[Condition, ...]
    adapt: np.ndarray
    scored: np.ndarray
    digests: dict[Condition, str]
    pool_of: Callable[[str], Unlabelled]
    base_digest: str
    made_by: Mapping[str, str]
    options: MethodOptions

    @property
    def from_stock(self) -> bool:
        return isinstance(self.base, Weights)

    @property
    def labels(self) -> int | None:
        """Labelled clean images per class; None for all."""
        return self.shift.default_labels if self.spec.labels is None else (self.spec.labels or None)


def make_context(spec: RunSpec, shift: Shift, device: str, name: str, base: Base, reading: Reading) -> PlanContext:
    """Pick conditions and images. Raises UsageError where the methods, the base or the shift do not fit each other."""
    methods = tuple(methods_of(spec))
    check_options(spec, methods)
    conditions = pick_conditions(shift, spec.conditions(pick_corruptions(shift, spec.corruption, spec.split)))
    ids = shift.ids("dev" if spec.split == "dev" else "test")
    adapt, scored = (limit_ids(half, spec.limit) for half in split_ids(ids, spec.split))
    if not len(scored):
        raise UsageError(f"{shift.name} has no image to score with split {spec.split}")
    shown = scored if isinstance(base, nn.Module) or not len(adapt) else adapt
    check_base(base, name, shift, shift.images(shown[:1], conditions[0]))
    made_by = {"model": code_of(name)} if ".py:" in name else {}
    if shift.members is not None:
        made_by["classes"] = digest_of(shift.members)
    if isinstance(base, Weights) and (source := trained_on(shift)) is not shift:
        made_by["learnt"] = f"{source.classes} classes"
    network = base if isinstance(base, nn.Module) else base.architecture.build()
    weights = sum(map(torch.numel, network.state_dict().values())) if isinstance(base, Weights) else None
    return PlanContext(
        spec=spec,
        shift=shift,
        device=device,
        name=name,
        base=base,
        methods=methods,
        protocol=parse_protocol(spec.protocol),
        conditions=conditions,
        adapt=adapt,
        scored=scored,
        digests={condition: shift.digest(scored, condition) for condition in conditions},
        pool_of=cache(partial(_pool_of, spec, base, reading)),
        base_digest=model_digest(base) if isinstance(base, nn.Module) else base.digest,
        made_by=made_by,
        options=MethodOptions(spec, shift, norm_family(network), device, weights),
    )


def _pool_of(spec: RunSpec, base: Base, reading: Reading, name: str) -> Unlabelled:
    """The adapt half of another shift under all of its corruptions, read and limited as that of the run."""
    shift, _ = fitted(name, base, replace(reading, added=(), classes=None, label=None, part=None))
    conditions = pick_conditions(shift, spec.conditions(pick_corruptions(shift, None, spec.split)))
    adapt, _ = split_ids(shift.ids("dev" if spec.split == "dev" else "test"), spec.split)
    (group,) = groups(conditions, "mixed")
    return AdaptationPools(shift, limit_ids(adapt, spec.limit), spec.split).shifted(group)
