"""What all rows of a plan share: images, conditions, starting weights, methods and their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import nn

from bench.core.conditions import Condition, digest_of
from bench.core.errors import UsageError
from bench.core.import_object import code_of
from bench.evaluation.protocols import Protocol, parse_protocol
from bench.models.weights_io import model_digest
from bench.planning.other_pool import RecipeData, data_of
from bench.planning.run_methods import check_options, methods_of
from bench.planning.starting_weights import Base, check_base
from bench.settings.method_options import MethodOptions
from bench.settings.methods import Method
from bench.settings.run_spec import RunSpec
from bench.shifts.data_root import Reading
from bench.shifts.shift import Shift, limit_ids, pick_conditions, pick_corruptions, split_ids, trained_on
from methods.nets.weights import Weights
from methods.norms import norm_family


@dataclass(frozen=True)
class PlanContext:
    """What all entries of a plan share: the shift's images and conditions, the base and how options are chosen.

    `made_by` holds the identities of the user's own code; `digests` those of each condition's images. `labels` is the
    number of labelled clean images per class, None for all.
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
    data_of: Callable[[str], RecipeData]
    base_digest: str
    made_by: Mapping[str, str]
    options: MethodOptions
    labels: int | None

    @cached_property
    def pool(self) -> RecipeData | None:
        """What recipes with a pool learn from where the run names a shift for it; None: the scored shift."""
        return self.data_of(self.spec.pool) if self.spec.pool else None

    @property
    def takers(self) -> list[str]:
        """The methods whose recipes learn from a pool."""
        return [method.text for method in self.methods if method.recipe.access.test == "pool"]

    @property
    def from_stock(self) -> bool:
        return isinstance(self.base, Weights)


def make_context(spec: RunSpec, shift: Shift, device: str, name: str, base: Base, reading: Reading) -> PlanContext:
    """Pick conditions and images. Raises UsageError where the methods, the base or the shift do not fit each other."""
    methods = tuple(methods_of(spec))
    check_options(spec)
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
    options = MethodOptions(spec, shift, norm_family(network), device, weights)
    labels = shift.default_labels if spec.labels is None else (spec.labels or None)
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
        data_of=cache(partial(data_of, spec, base, reading, options, labels)),
        base_digest=model_digest(base) if isinstance(base, nn.Module) else base.digest,
        made_by=made_by,
        options=options,
        labels=labels,
    )
