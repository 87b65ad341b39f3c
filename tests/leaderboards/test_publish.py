"""From a run to a bundle, a site and a table for a hub: what is published is what was measured; nothing is sent."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import BenchError, MissingDataError, UsageError
from bench.core.errors import ValidationError as InvalidResults
from bench.runs import hub as publishing_hub
from bench.runs import open_results, publishing
from bench.settings.run_spec import make_spec, read_run_file
from leaderboards import make_board, read_bundle, write_bundle
from leaderboards.bundle import ids_of, runs_of
from leaderboards.known import read_known
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


def test_a_bundle_too_large_is_not_left_behind(
    digits_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_FILE", 200_000)
    out = tmp_path / "mine.jsonl"
    with pytest.raises(InvalidResults, match="add --lean"):
        publishing.bundle(digits_run.store.folder, out, None, [])
    assert not out.exists()
    publishing.bundle(digits_run.store.folder, out, None, [], lean=True)
    assert not read_bundle(out).recomputed


@pytest.mark.parametrize("given", [
    {"submitter": "a b"}, {"submitter": "-x"}, {"weights": "http://x.y"}, {"weights": "hf:a/b@main"},
    {"weights": "https://x.y/a b"},
])  # fmt: skip
def test_what_a_submitter_states_has_a_form(digits_run: Any, tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="write it like that"):
        publishing.bundle(digits_run.store.folder, tmp_path / "mine.jsonl", None, [], **given)  # type: ignore[arg-type]


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


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
        """A hub with one data set, in a folder, which nobody here may reach; `sent` are the calls of uploads."""
        home = tmp_path / "of-the-hub"
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

        class Hub:
            sent: ClassVar[list[dict[str, Any]]] = []

            def upload_folder(self, folder_path: Path, allow_patterns: list[str], **arguments: Any) -> None:
                self.sent.append(arguments)
                for name in allow_patterns:
                    (home / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder_path / name, home / name)

            def dataset_info(self, repo: str, **_: Any) -> Any:
                if repo != "someone/results":
                    raise OSError(f"404 for {repo}")
                files = [path for path in home.rglob("*") if path.is_file()]
                return SimpleNamespace(
                    sha="a" * 40,
                    siblings=[
                        SimpleNamespace(rfilename=str(path.relative_to(home)), size=path.stat().st_size)
                        for path in files
                    ],
                )

        Hub.sent.clear()
        monkeypatch.setattr("huggingface_hub.HfApi", Hub)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: str(home / name))
        monkeypatch.setenv("SOUPBENCH_CACHE", str(tmp_path / "cache"))
        return SimpleNamespace(home=home, sent=Hub.sent)

    def test_push_writes_the_records_and_sends_nothing(self, submission: Path, tmp_path: Path, hub: Any) -> None:
        out = tmp_path / "out"
        publishing_hub.push(submission, "someone/results", out, upload=False)
        assert hub.sent == []
        table = pd.read_parquet(out / "data" / "records.parquet").set_index("key")
        records = read_bundle(submission).records
        assert len(table) == len(records)
        for record in records:
            row = table.loc[record.key]
            assert record.metrics is not None
            assert record.cost is not None
            assert row["metrics_accuracy"] == record.metrics.accuracy
            assert row["cost_forwards"] == record.cost.forwards
            assert json.loads(row["options"]) == record.options
        assert (out / "results" / submission.name).read_bytes() == submission.read_bytes()
        assert yaml.safe_load((out / "README.md").read_text().split("---")[1])["configs"]

    def test_what_was_pushed_is_pulled_and_read_as_a_board(
        self, submission: Path, tmp_path: Path, hub: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publishing_hub.push(submission.parent, "someone/results", tmp_path / "out", upload=True)
        assert [(call["repo_id"], call["repo_type"]) for call in hub.sent] == [("someone/results", "dataset")]
        (hub.home / "evil.py").write_text("raise SystemExit(9)")
        assert publishing_hub.pull("someone/results", tmp_path / "pulled") == 0
        assert [path.name for path in (tmp_path / "pulled").iterdir()] == [submission.name]
        assert (tmp_path / "pulled" / submission.name).read_bytes() == submission.read_bytes()
        capsys.readouterr()
        for source in (str(submission), "hf:someone/results", "hf:someone/results@main"):
            open_results.print_leaderboard(open_results.Shown(None, source, "csv", [], None))
        one, two, three = np.array_split(capsys.readouterr().out.splitlines(), 3)
        assert list(one) == list(two) == list(three)

    def test_pull_writes_nothing_of_what_is_bent(
        self, submission: Path, tmp_path: Path, hub: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publishing_hub.push(submission, "someone/results", tmp_path / "out", upload=True)
        path = hub.home / "results" / submission.name
        path.write_bytes(path.read_bytes().replace(b'"accuracy":0.', b'"accuracy":0.1', 1))
        assert publishing_hub.pull("someone/results", tmp_path / "pulled") == 4
        assert "its bits give" in capsys.readouterr().out
        assert not (tmp_path / "pulled").exists()
        with pytest.raises(InvalidResults, match="its bits give"):
            open_results.print_leaderboard(open_results.Shown(None, "hf:someone/results", "csv", [], None))

    def test_what_is_too_large_is_not_fetched(self, submission: Path, tmp_path: Path, hub: Any) -> None:
        publishing_hub.push(submission, "someone/results", tmp_path / "out", upload=True)
        with (hub.home / "results" / "big.jsonl").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(InvalidResults, match=r"big\.jsonl"):
            publishing_hub.pull("someone/results", tmp_path / "pulled")

    @pytest.mark.parametrize("repo", ["results", "a/b/c", "../x", "a/b@", "a/b c", "https://x.y/z"])
    def test_names_that_are_no_repository(self, repo: str, tmp_path: Path, hub: Any) -> None:
        with pytest.raises(UsageError, match="no data set of the hub"):
            publishing_hub.pull(repo, tmp_path)

    def test_nothing_there_says_what_to_do(self, tmp_path: Path, hub: Any) -> None:
        with pytest.raises(MissingDataError, match="holds no results"):
            publishing_hub.pull("someone/results", tmp_path / "x")
        with pytest.raises(MissingDataError, match="is not available"):
            publishing_hub.pull("someone/other", tmp_path / "x")

    def test_never_sends_what_would_not_be_published(self, submission: Path, tmp_path: Path, hub: Any) -> None:
        submission.write_bytes(submission.read_bytes()[:-40])
        with pytest.raises(InvalidResults):
            publishing_hub.push(submission, "someone/results", tmp_path / "out", upload=True)
        assert hub.sent == []
        assert not (tmp_path / "out").exists()

    def test_without_parquet_says_what_to_install(
        self, submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("pyarrow", "fastparquet")]:
            monkeypatch.delitem(sys.modules, name)
        for name in ("pyarrow", "fastparquet"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(BenchError, match="pip install pyarrow"):
            publishing_hub.push(submission, "someone/results", tmp_path / "out", upload=False)

    def test_the_model_card_is_read_by_the_library(self, submission: Path, tmp_path: Path) -> None:
        from huggingface_hub import ModelCard

        bundle = read_bundle(submission)
        own = replace(bundle, card="# Official\n![x](https://x.y/z.png)\nreproduced by the authors")
        for each in (bundle, own):
            data = ModelCard(publishing_hub.model_card(each)).data
            values = {(r.metric_type, r.metric_name.split(",")[0]): r.metric_value for r in data.eval_results}
            board = {row.name: row for row in make_board(bundle.records, lambda record: bundle.bits[record.key]).rows}
            assert values["accuracy", "accuracy of tent"] == pytest.approx(board["tent"].accuracy, abs=1e-6)
            assert values["ece", "ece of source"] == pytest.approx(board["source"].ece, abs=1e-6)
            assert {r.dataset_type for r in data.eval_results} == {"digits-c"}
        shown = publishing_hub.model_card(own)
        assert "\n    ![x]" in shown
        assert "\n![x]" not in shown
        assert "nobody has checked" in shown


@pytest.mark.slow
def test_the_known_data_are_those_of_the_code(tmp_path: Path) -> None:
    committed = publishing.checker().known
    before = {"shifts": {}, "models": {}, "releases": {"9.9.9": "a" * 16}}
    (tmp_path / "known.json").write_text(json.dumps(before))
    publishing.write_known("digits-c", tmp_path / "known.json")
    made = read_known(tmp_path / "known.json")
    assert made.shifts["digits-c"] == committed.shifts["digits-c"]
    assert made.models["digits"] == committed.models["digits"]
    assert made.releases == {"9.9.9": "a" * 16}
