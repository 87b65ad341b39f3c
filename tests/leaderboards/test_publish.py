"""From a run to a bundle, a site and a table for a hub: what is published is what was measured; nothing is sent."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.core.errors import ValidationError as InvalidResults
from bench.runs import publishing
from bench.settings.run_spec import make_spec, read_run_file
from leaderboards import make_board, read_bundle, write_bundle
from leaderboards.bundle import ids_of, runs_of
from leaderboards.store import find_scored
from leaderboards.submit import check_bundle


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60))
def test_runs_of_ids_give_the_ids_back(ids: list[int]) -> None:
    ascending = np.sort(np.array(ids, dtype=np.int64))
    assert np.array_equal(ids_of(runs_of(ascending)), ascending)


def test_regular_ids_take_one_run() -> None:
    assert runs_of(np.arange(1, 50_000, 2)) == [[1, 2, 25_000]]


def test_a_bundle_holds_what_the_folder_holds(digits_run: Any, submission: Path) -> None:
    bundle = read_bundle(submission)
    assert list(bundle.records) == digits_run.records
    for record in bundle.records:
        made = digits_run.store.predictions(record)
        order = np.argsort(made.id, kind="stable")
        assert np.array_equal(bundle.bits[record.key].id, made.id[order])
        assert np.array_equal(bundle.bits[record.key].hits, made.hits[order])
        assert bundle.digests[record.key] == made.digest()


@pytest.mark.parametrize(
    ("env", "taken"),
    [
        ({"project": "9.9.9", "git": None, "package": "a" * 16}, True),
        ({"project": "9.9.9", "git": None, "package": "b" * 16}, False),  # a file of the installed package was changed
        ({"project": "9.9.9", "git": None}, False),
        ({"project": "9.9.8", "git": None, "package": "a" * 16}, False),
        ({"project": "9.9.9.dev0", "git": None, "package": "a" * 16}, False),
        ({"project": None, "git": None, "package": None}, False),
        ({"project": "9.9.9", "git": "0123456789ab", "dirty": False, "package": "b" * 16}, True),
    ],
)
def test_a_release_is_known_by_its_content(submission: Path, env: dict[str, Any], taken: bool) -> None:
    bundle = read_bundle(submission)
    made = replace(bundle, records=tuple(record.model_copy(update={"env": env}) for record in bundle.records))
    ours = publishing.checker()
    known = ours.known.model_copy(update={"releases": {"9.9.9": "a" * 16}})
    said = [message for _, message in check_bundle(made, replace(ours, known=known))]
    assert taken == (said == [])
    assert all(message.endswith("run it from a clean commit or a release") for message in said)


def test_equal_bundles_are_equal_files(submission: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    write_bundle(again, read_bundle(submission))
    assert again.read_bytes() == submission.read_bytes()


def test_the_board_of_a_bundle_is_that_of_the_run(digits_run: Any, submission: Path) -> None:
    board = make_board(digits_run.records, digits_run.store.predictions)
    records = list(read_bundle(submission).records)
    assert make_board(records, lambda record: find_scored([submission], record)) == board


def test_full_predictions_are_those_of_the_bundle(
    digits_run: Any, submission: Path, new_results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publishing.check(submission, digits_run.store.folder, as_json=False) == 0
    other = tmp_path / "other"
    (other / "predictions").mkdir(parents=True)
    paths = sorted((digits_run.store.folder / "predictions").iterdir())
    for path, another in zip(paths, [*paths[1:], paths[0]], strict=True):
        shutil.copy(another, other / "predictions" / path.name)
    assert publishing.check(submission, other, as_json=True) == 4
    problems = json.loads(capsys.readouterr().out.partition("\n")[2])["problems"]
    assert len(problems) == len(digits_run.records)
    assert "is not what the bundle was made from" in problems[0]["message"]


def test_the_settings_of_a_bundle_are_a_run_file(submission: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.toml"
    publishing.write_settings(submission, out)
    spec = make_spec(read_run_file(out))
    assert (spec.shift, tuple(spec.severity), spec.seed_list, spec.labels) == ("digits-c", (3.0,), (0, 1), 10)
    assert sorted(spec.method) == ["source", "tent"]
    assert spec.options["tent"] == {"lr": 0.01}


def test_a_bundle_needs_a_name_that_can_be_published(digits_run: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a valid name"):
        publishing.bundle(digits_run.store.folder, tmp_path / "Mine.txt", None, [])
    assert list(tmp_path.iterdir()) == []


class TestSite:
    def test_of_nothing_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "README.md").touch()
        publishing.build_site(tmp_path / "results", tmp_path / "site")
        assert "No results are published yet." in (tmp_path / "site" / "index.html").read_text()

    def test_links_to_the_project_are_addresses(self, submission: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="an address that begins with https://"):
            publishing.build_site(submission.parent, tmp_path / "site", "javascript:alert(1)")
        publishing.build_site(submission.parent, tmp_path / "site", "https://example.org/project")
        assert 'href="https://example.org/project"' in (tmp_path / "site" / "index.html").read_text()

    def test_of_anything_doubtful_is_not_built(self, submission: Path, tmp_path: Path) -> None:
        submission.write_bytes(submission.read_bytes().replace(b'"accuracy":0.', b'"accuracy":0.1', 1))
        with pytest.raises(InvalidResults, match="its bits give"):
            publishing.build_site(submission.parent, tmp_path / "site")
        assert not (tmp_path / "site").exists()

    def test_of_no_folder_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError, match="run this in a checkout"):
            publishing.build_site(tmp_path / "none", tmp_path / "site")


class TestPush:
    @pytest.fixture
    def sent(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What was sent to the hub, which nobody here may reach."""
        calls: list[dict[str, Any]] = []

        class Api:
            def upload_file(self, **arguments: Any) -> None:
                calls.append(arguments)

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        return calls

    def test_writes_the_records_and_sends_nothing(self, submission: Path, tmp_path: Path, sent: list[Any]) -> None:
        out = tmp_path / "results.parquet"
        publishing.push(submission, "someone/results", out, upload=False)
        assert sent == []
        table = pd.read_parquet(out).set_index("key")
        records = read_bundle(submission).records
        assert len(table) == len(records)
        for record in records:
            row = table.loc[record.key]
            assert record.metrics is not None
            assert record.cost is not None
            assert row["metrics_accuracy"] == record.metrics.accuracy
            assert row["cost_forwards"] == record.cost.forwards
            assert json.loads(row["options"]) == record.options

    def test_sends_where_it_is_asked_to(self, submission: Path, tmp_path: Path, sent: list[Any]) -> None:
        out = tmp_path / "results.parquet"
        publishing.push(submission.parent, "someone/results", out, upload=True)
        assert [(call["repo_id"], call["repo_type"], call["path_in_repo"]) for call in sent] == [
            ("someone/results", "dataset", "data/results.parquet")
        ]

    def test_never_sends_what_would_not_be_published(self, submission: Path, tmp_path: Path, sent: list[Any]) -> None:
        submission.write_bytes(submission.read_bytes()[:-40])
        with pytest.raises(InvalidResults):
            publishing.push(submission, "someone/results", tmp_path / "results.parquet", upload=True)
        assert sent == []
        assert not (tmp_path / "results.parquet").exists()

    def test_without_parquet_says_what_to_install(
        self, submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("pyarrow", "fastparquet")]:
            monkeypatch.delitem(sys.modules, name)
        for name in ("pyarrow", "fastparquet"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(BenchError, match="pip install pyarrow"):
            publishing.push(submission, "someone/results", tmp_path / "results.parquet", upload=False)


@pytest.mark.slow
def test_the_known_data_are_those_of_the_code(tmp_path: Path) -> None:
    committed = publishing.checker().known
    before = {"shifts": {}, "models": {}, "releases": {"9.9.9": "a" * 16}}
    (tmp_path / "known.json").write_text(json.dumps(before))
    publishing.write_known("digits-c", tmp_path / "known.json")
    made = publishing.read_known(tmp_path / "known.json")
    assert made.shifts["digits-c"] == committed.shifts["digits-c"]
    assert made.models["digits"] == committed.models["digits"]
    assert made.releases == {"9.9.9": "a" * 16}
