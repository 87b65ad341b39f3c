"""Write a starter file for a user-defined method, and check a method against the rules of all methods."""

from __future__ import annotations

import importlib.util
import inspect
import keyword
import re
from collections.abc import Container, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.console import print_json, print_text
from bench.core.errors import UsageError
from bench.core.import_object import load_file, load_object
from bench.settings.methods import PLUGINS, build_config, parse_method, parse_setting
from methods import METHODS
from methods.table import Row

if TYPE_CHECKING:
    from methods.conformance import Finding

_METHOD = '''"""{title}: one sentence that describes the method (authors and year)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from methods.base import Adapter, Source, Unsupported
from methods.losses import entropy, gradients, recordable
from methods.norms import norm_parameters
from methods.online import margin
from methods.table import Access
from torch import Tensor


class {title}(Adapter):
    """Minimises the entropy of low-entropy images over the affine parameters of normalisation layers.

    Name the paper and its equations here, and the cost of a batch: one forward and at most one backward pass.
    """

    # The data it may use and the parameters it may change, which decide its ranking; see methods.table.Access.
    access: ClassVar[Access] = Access(test="stream", state="online", backprop="norm")
    checked_with: ClassVar[Mapping[str, Any]] = {{"lr": 0.02}}

    @dataclass(frozen=True)
    class Config:
        """Options; each needs a default and a line here.

        lr: step size.
        margin: images with entropy below this share of the maximum are used; in (0, 1].
        """

        lr: float = 1e-3
        margin: float = 0.4

    def configure(self, source: Source | None) -> None:
        """Choose the parameters to adapt in self.model, a private copy. Attributes of self are saved and reset."""
        parameters = list(norm_parameters(self.model).values())
        if not parameters:
            raise Unsupported("this model has no normalisation layers to adapt; choose one with any, as BatchNorm")
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.SGD(parameters, lr=self.config.lr)

    def predict(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [0, 1] to the logits [n, classes] from before the update."""
        with gradients():
            logits: Tensor = self.model(recordable(images))
            losses = entropy(logits)
            certain = losses[losses < margin(logits, self.config.margin)]
            if len(certain):
                certain.mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
        return logits.detach()
'''

_TEST = '''"""{title} keeps the rules of all methods and lowers the entropy."""

from __future__ import annotations

from methods.conformance import conform
from methods.example_models import example_images, example_model
from methods.losses import entropy

from {name} import {title}


def test_keeps_every_rule() -> None:
    assert [finding for finding in conform({title}) if finding.status == "failed"] == []


def test_entropy_falls_on_a_repeated_batch() -> None:
    adapter = {title}(example_model("layer_norm"), {title}.Config(lr=0.01, margin=1.0))
    adapter.prepare()
    images = example_images(1, 8)[0]
    values = [float(entropy(adapter.predict(images)).mean()) for _ in range(6)]
    assert values[-1] < values[0]
'''

_NEXT = """wrote {file} and {test}
try it:      bench check method {file}
test it:     python -m pytest {test}
run it:      bench run --method source,tent,{file}:{title} --shift digits-c
publish it:  in the pyproject.toml of your package, so that --method {name} finds it wherever that is installed:
             [project.entry-points."{group}"]
             {name} = "your_package.{name}:{title}"
"""


def write_method(name: str, folder: Path) -> None:
    """Write NAME.py and test_NAME.py into a folder. Raises UsageError for a name or file that exists."""
    write_first("method", name, METHODS, folder, (_METHOD, _TEST), _NEXT.replace("{group}", PLUGINS))


def write_first(
    kind: str, name: str, taken: Container[str], folder: Path, texts: tuple[str, str], then: str, example: str = "tent"
) -> None:
    """Write the file of a new method, shift or corruption and its test, and print the next steps.

    The placeholders {name}, {title}, {file} and {test} are filled in, in `texts` and `then`. Raises UsageError for a
    name or file that exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"'{name}' cannot name a {kind}; use small letters, digits and _, as in my_{example}")
    if name in taken or importlib.util.find_spec(name) is not None:
        raise UsageError(f"'{name}' is already a {kind} or module; choose another name")
    file, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (file, test):
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name or --out")
    folder.mkdir(parents=True, exist_ok=True)
    title = "".join(part.capitalize() for part in name.split("_"))
    for path, text in zip((file, test), texts, strict=True):
        path.write_bytes(text.format(name=name, title=title).encode())
    print_text(then.format(file=file, test=test, title=title, name=name))


def check_method(method: str, settings: Sequence[str], *, as_json: bool) -> int:
    """Print the findings of the conformance suite, and return 0 if the method keeps every rule, else 4."""
    row = _row(method)
    if row.kind != "adapter":
        raise UsageError(f"{row.name} is a recipe, which the checks do not cover; give an adapter, as tent")
    from methods.conformance import conform

    cls = load_object(row.path)
    given = {key: value for _, key, value in (parse_setting(f"x.{text}") for text in settings)}
    config = build_config(row, {**cls.checked_with, **given}) if given else None
    findings = list(conform(cls, config))
    return tell_findings("method", row.name, "models", findings, as_json=as_json)


def tell_findings(kind: str, name: str, places: str, findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings, and return 0 if no rule is broken, else 4."""
    failed = [finding for finding in findings if finding.status == "failed"]
    if as_json:
        print_json({kind: name, "failed": len(failed), "findings": [asdict(finding) for finding in findings]})
        return 4 if failed else 0
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    for check, found in by_check.items():
        passed = sum(finding.status == "passed" for finding in found)
        if passed:
            print_text(f"{'ok' if passed == len(found) else 'BROKEN':8}{check}: {passed} of {len(found)} {places}")
        for finding in found:
            if finding.status != "passed":
                print_text(f"{finding.status:8}{check} {finding.model}: {finding.message}")
    print_text(f"{name} breaks {len({finding.check for finding in failed})} rules")
    return 4 if failed else 0


def _row(method: str) -> Row:
    """Return the row of a method by name, FILE:CLASS, or FILE alone if it defines exactly one adapter."""
    if method.endswith(".py"):
        from methods.base import Adapter

        file = Path(method)
        defined = [
            name
            for name, value in vars(load_file(file)).items()
            if inspect.isclass(value)
            and issubclass(value, Adapter)
            and not inspect.isabstract(value)
            and value.__module__ == load_file(file).__name__
        ]
        if len(defined) != 1:
            names = ", ".join(defined) or "none"
            raise UsageError(f"{method} defines {names} as adapters; say which, as in {method}:Name")
        method = f"{method}:{defined[0]}"
    parsed = parse_method(method)
    return parsed.adapter or parsed.recipe
