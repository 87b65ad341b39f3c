"""Write a starter file for a user-defined method, and check a method against the rules of all methods."""

from __future__ import annotations

import importlib.util
import inspect
import keyword
import re
from collections.abc import Container, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.console import print_json, print_text
from bench.core.errors import UsageError
from bench.core.import_object import load_file, load_object
from bench.settings.methods import PLUGINS, build_config, parse_method, parse_setting
from methods import METHODS
from methods.table import MethodRow

if TYPE_CHECKING:
    from methods.conformance import Finding

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
    write_first("method", name, METHODS, folder, _NEXT.replace("{group}", PLUGINS))


def write_first(kind: str, name: str, taken: Container[str], folder: Path, then: str, example: str = "tent") -> None:
    """Write the file of a new method, shift or corruption and its test, and print the next steps.

    The texts are bench/assets/starters/KIND.py.txt and test_KIND.py.txt, with my_name and MyName for the name and the
    class. The placeholders {name}, {title}, {file} and {test} of `then` are filled in. Raises UsageError for a name or
    file that exists.
    """
    check_new_name(kind, name, taken, example)
    file, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (file, test):
        if path.exists():
            raise UsageError(f"{path} exists already; choose another name or --out")
    folder.mkdir(parents=True, exist_ok=True)
    title = "".join(part.capitalize() for part in name.split("_"))
    starters = resources.files("bench") / "assets" / "starters"
    for path, starter in ((file, f"{kind}.py.txt"), (test, f"test_{kind}.py.txt")):
        text = (starters / starter).read_text(encoding="utf-8")
        path.write_bytes(text.replace("my_name", name).replace("MyName", title).encode())
    print_text(then.format(file=file, test=test, title=title, name=name))


def check_new_name(kind: str, name: str, taken: Container[str], example: str = "tent") -> None:
    """Raise UsageError for a name that no file can have, or that is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"'{name}' cannot name a {kind}; use small letters, digits and _, as in my_{example}")
    if name in taken or importlib.util.find_spec(name) is not None:
        raise UsageError(f"'{name}' is already a {kind} or module; choose another name")


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


def _row(method: str) -> MethodRow:
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
