"""The store: complete or absent, never false; and nothing that a file says is believed."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leaderboards import Predictions, Record, Store, StoreError, find_predictions, predictions, read, score
from leaderboards.verify import verify

COLUMNS = ("id", "label", "predicted", "confidence", "p_label", "sum_p2")


def columns_of(made: Predictions) -> dict[str, Any]:
    return {name: getattr(made, name) for name in COLUMNS}


def equal(a: Predictions, b: Predictions) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in COLUMNS
    )


def record_of(content: dict[str, Any], made: Predictions, **fields: Any) -> Record:
    return Record.model_validate(content | {"n": len(made), "metrics": score(made)} | fields)


def failed_of(content: dict[str, Any], **fields: Any) -> Record:
    fields = {"status": "failed", "metrics": None, "predictions": None, "cost": None, "error": "diverged"} | fields
    return Record.model_validate(content | fields)


class TestPredictions:
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        ids=hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 2**63 - 1)), seed=st.integers(0, 2**32 - 1)
    )
    def test_a_file_gives_them_back(self, tmp_path: Path, make_predictions: Any, ids: Any, seed: int) -> None:
        made = make_predictions(len(ids), ids=ids, seed=seed)
        made.save(tmp_path / "p.npz")
        assert equal(Predictions.load(tmp_path / "p.npz"), made)

    def test_the_correct_column_comes_back(self, tmp_path: Path, make_predictions: Any) -> None:
        correct = np.array([True, False, True])
        made = Predictions(**columns_of(make_predictions(3)), correct=correct)
        made.save(tmp_path / "p.npz")
        assert np.array_equal(Predictions.load(tmp_path / "p.npz").hits, correct)
        assert Predictions.load(tmp_path / "p.npz").correct is not None

    def test_equal_predictions_give_equal_bytes(self, tmp_path: Path, make_predictions: Any) -> None:
        make_predictions(30).save(tmp_path / "a.npz")
        make_predictions(30).save(tmp_path / "b.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_numpy_alone_can_read_the_file(self, tmp_path: Path, make_predictions: Any) -> None:
        made = make_predictions(5)
        made.save(tmp_path / "p.npz")
        with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
            assert set(file) == set(COLUMNS)
            assert np.array_equal(file["p_label"], made.p_label)

    @pytest.mark.parametrize(("column", "value"), [
        ("id", np.arange(9)),
        ("id", np.arange(10, dtype=np.int32)),
        ("id", np.arange(10) - 5),
        ("label", np.arange(10).astype(float)),
        ("predicted", np.arange(10).reshape(10, 1)),
        ("confidence", np.full(10, 0.5)),
        ("confidence", [0.5] * 10),
        ("confidence", np.full(10, 0.01, dtype=np.float32)),
        ("p_label", np.full(10, 1, dtype=np.float32)),
        ("p_label", np.full(10, 0, dtype=np.float32)),
        ("sum_p2", np.full(10, 1, dtype=np.float32)),
        ("sum_p2", np.full(10, 0, dtype=np.float32)),
    ])  # fmt: skip
    def test_wrong_or_contradicting_columns(self, make_predictions: Any, column: str, value: Any) -> None:
        columns = columns_of(make_predictions(10))
        with pytest.raises(ValueError, match=column):
            Predictions(**columns | {column: value})

    def test_swapped_columns_are_noticed(self, make_predictions: Any) -> None:
        columns = columns_of(make_predictions(50))
        swapped = {"confidence": columns["p_label"], "p_label": columns["confidence"]}
        with pytest.raises(ValueError, match=r"sum_p2|p_label"):
            Predictions(**columns | swapped)

    def test_a_file_cut_off_anywhere(self, tmp_path: Path, make_predictions: Any) -> None:
        path = tmp_path / "p.npz"
        make_predictions(200).save(path)
        whole = path.read_bytes()
        for length in [0, 1, 40, len(whole) // 2, len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(StoreError, match=r"p\.npz"):
                Predictions.load(path)

    def test_any_flipped_byte_of_the_data_is_noticed(self, tmp_path: Path, make_predictions: Any) -> None:
        path = tmp_path / "p.npz"
        made = make_predictions(50)
        made.save(path)
        whole = path.read_bytes()
        for place in range(0, len(whole), 37):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
            with contextlib.suppress(StoreError):
                assert equal(Predictions.load(path), made)  # a byte of the zip that carries no data

    def test_pickles_are_never_opened(self, tmp_path: Path, make_predictions: Any) -> None:
        columns = columns_of(make_predictions(3)) | {"label": np.array([Trap(tmp_path)] * 3, dtype=object)}
        np.savez(tmp_path / "p.npz", **columns)
        with pytest.raises(StoreError, match="label has type object"):
            Predictions.load(tmp_path / "p.npz")
        assert not (tmp_path / "sprung").exists()

    def test_the_trap_would_spring(self, tmp_path: Path) -> None:
        pickle.loads(pickle.dumps(Trap(tmp_path)))
        assert (tmp_path / "sprung").exists()

    def test_missing_extra_and_doubled_columns(self, tmp_path: Path, make_predictions: Any) -> None:
        columns = columns_of(make_predictions(3))
        for wrong in (
            {name: columns[name] for name in COLUMNS[1:]},
            columns | {"extra": columns["id"]},
            columns | {"confidence": columns["confidence"].astype(np.float64)},
            columns | {"id": columns["id"][:2]},
        ):
            np.savez(tmp_path / "p.npz", **wrong)
            with pytest.raises(StoreError):
                Predictions.load(tmp_path / "p.npz")
        np.savez(tmp_path / "p.npz", **columns)
        with zipfile.ZipFile(tmp_path / "p.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("label.npy", archive.read("id.npy"))
        with pytest.raises(StoreError):
            Predictions.load(tmp_path / "p.npz")

    def test_a_shape_that_lies_costs_no_memory(self, tmp_path: Path, make_predictions: Any) -> None:
        columns = columns_of(make_predictions(3))
        with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
            for name, column in columns.items():
                header = io.BytesIO()
                shape = {"descr": column.dtype.str, "fortran_order": False, "shape": (10**15,)}
                np.lib.format.write_array_header_1_0(header, shape)
                archive.writestr(f"{name}.npy", header.getvalue() + column.tobytes())
        with pytest.raises(StoreError, match="cut off"):
            Predictions.load(tmp_path / "p.npz")

    def test_a_file_that_unpacks_to_too_much(
        self, tmp_path: Path, make_predictions: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_predictions(1000).save(tmp_path / "p.npz")
        monkeypatch.setattr(predictions, "MAX_BYTES", 20_000)
        with pytest.raises(StoreError, match="unpacks to more"):
            Predictions.load(tmp_path / "p.npz")

    @pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 nearly"])
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "p.npz").write_bytes(content)
        with pytest.raises(StoreError, match="--rerun"):
            Predictions.load(tmp_path / "p.npz")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="missing"):
            Predictions.load(tmp_path / "p.npz")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.touch, (self.folder / "sprung",)


class TestStore:
    def test_what_is_written_is_read(self, tmp_path: Path, content: Any, make_predictions: Any) -> None:
        store, made = Store(tmp_path / "new" / "folder"), make_predictions(20)
        record = record_of(content, made)
        assert store.records() == []
        assert store.done() == set()
        assert store.write(record, made)
        assert store.records() == [record]
        assert store.done() == {record.key}
        assert store.failed() == set()
        assert equal(store.predictions(record), made)
        found = {str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()}
        assert found - {".lock"} == {f"records/{record.key}.json", f"predictions/{record.key}.npz"}

    def test_compiled_lines_alone_are_a_results_folder(self, results: Any) -> None:
        for method in "cab":
            results.add(method)
        records = results.records
        lines = results.store.compile().read_text().splitlines()
        assert [json.loads(line)["key"] for line in lines] == sorted(record.key for record in records)
        shutil.rmtree(results.store.folder / "records")
        assert results.store.records() == records
        assert read([results.store.folder]) == records
        assert len(find_predictions([results.store.folder], records[0])) == 50

    def test_writing_beside_compiled_lines_keeps_them(self, results: Any) -> None:
        first = results.add("tent")
        results.store.compile()
        shutil.rmtree(results.store.folder / "records")
        second = results.add("sar")
        assert results.records == sorted([first, second], key=lambda record: record.key)
        results.store.compile()
        assert {record.method for record in read([results.store.folder])} == {"tent", "sar"}
        assert verify(results.store.folder).ok

    def test_a_failed_record_never_replaces_a_done_one(
        self, tmp_path: Path, content: Any, make_predictions: Any
    ) -> None:
        store, made = Store(tmp_path), make_predictions(20)
        done, failed = record_of(content, made), failed_of(content)
        assert store.write(failed)
        assert store.failed() == {failed.key}
        assert store.write(failed_of(content, error="again"))
        assert store.records()[0].error == "again"
        assert store.write(done, made)
        for replace in (False, True):
            assert not store.write(failed, replace=replace)
            assert store.records() == [done]
            assert equal(store.predictions(done), made)

    def test_a_done_record_gives_way_only_where_asked(
        self, tmp_path: Path, content: Any, make_predictions: Any
    ) -> None:
        store, first, second = Store(tmp_path), make_predictions(20), make_predictions(20, seed=1)
        store.write(record_of(content, first), first)
        assert not store.write(record_of(content, first, created="2027-01-01T00:00:00Z"), first)
        with pytest.raises(StoreError, match="other metrics; use --rerun"):
            store.write(record_of(content, second), second)
        assert equal(store.predictions(store.records()[0]), first)
        assert store.write(record_of(content, second), second, replace=True)
        assert store.records() == [record_of(content, second)]
        assert equal(store.predictions(store.records()[0]), second)

    def test_record_and_predictions_belong_together(self, tmp_path: Path, content: Any, make_predictions: Any) -> None:
        made = make_predictions(20)
        for record, given_predictions in (
            (record_of(content, made), None),
            (failed_of(content), made),
            (record_of(content, made, n=21), made),
        ):
            with pytest.raises(ValueError):
                Store(tmp_path).write(record, given_predictions)
        assert Store(tmp_path).records() == []

    @pytest.mark.parametrize("moment", ["predictions", "records"])
    @pytest.mark.parametrize("replace", [False, True])
    def test_a_crash_never_leaves_a_false_result(
        self,
        tmp_path: Path,
        content: Any,
        make_predictions: Any,
        monkeypatch: pytest.MonkeyPatch,
        moment: str,
        replace: bool,
    ) -> None:
        store, first, second = Store(tmp_path), make_predictions(20), make_predictions(20, seed=1)
        if replace:
            store.write(record_of(content, first), first)
        rename = Path.replace

        def crash(self: Path, target: Path) -> Path:
            if Path(target).parent.name == moment:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.write(record_of(content, second), second, replace=replace)
        monkeypatch.undo()
        assert store.done() == set()
        assert not list(tmp_path.rglob("*.tmp"))
        assert store.write(record_of(content, second), second)
        assert equal(store.predictions(store.records()[0]), second)

    def test_left_over_temporary_files_are_not_records(self, results: Any) -> None:
        record = results.add("tent")
        (results.store.folder / "records" / f".{record.key}.json.aa.tmp").write_text("{")
        assert results.records == [record]

    @pytest.mark.parametrize("text", ["", "{", '{"schema": 99}', "[1]"])
    def test_a_broken_record_is_named_and_never_skipped(self, results: Any, text: str) -> None:
        record = results.add("tent")
        path = results.store.folder / "records" / f"{record.key}.json"
        path.write_text(text)
        for look in (results.store.records, results.store.done, results.store.compile):
            with pytest.raises(StoreError, match=record.key):
                look()
        with pytest.raises(StoreError, match=record.key):
            results.store.write(record, Predictions.load(results.store.folder / record.predictions))
        assert results.store.write(record, Predictions.load(results.store.folder / record.predictions), replace=True)
        assert results.records == [record]

    def test_a_record_under_another_name_is_refused(self, results: Any) -> None:
        record = results.add("tent")
        path = results.store.folder / "records" / f"{record.key}.json"
        path.rename(path.with_name("ab" * 16 + ".json"))
        with pytest.raises(StoreError, match=f"rename it to {record.key}"):
            results.store.records()

    def test_broken_and_repeated_lines_are_named(self, tmp_path: Path, content: Any) -> None:
        line = Record.model_validate(content).to_json()
        for text, message in (
            (f"{line}\n{line}\n", "line 2.*twice"),
            (f"{line}\n{line[:50]}", "line 2"),
            ("\n", "line 1"),
        ):
            (tmp_path / "records.jsonl").write_text(text)
            with pytest.raises(StoreError, match=message):
                Store(tmp_path).records()

    def test_a_failed_record_has_no_predictions(self, tmp_path: Path, content: Any) -> None:
        with pytest.raises(StoreError, match="--only-failed"):
            Store(tmp_path).predictions(failed_of(content))
        assert not Store(tmp_path).has_predictions(failed_of(content))

    def test_many_writers_of_one_key(self, tmp_path: Path, content: Any, make_predictions: Any) -> None:
        made = make_predictions(20)
        done, failed = record_of(content, made), failed_of(content)
        writes = [(done, made), (failed, None)] * 8
        threads = [threading.Thread(target=Store(tmp_path).write, args=write) for write in writes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Store(tmp_path).records() == [done]

    def test_writers_wait_for_each_other(self, tmp_path: Path, content: Any) -> None:
        writer = threading.Thread(target=Store(tmp_path).write, args=(failed_of(content),))
        with FileLock(tmp_path / ".lock"):
            writer.start()
            writer.join(0.3)
            assert writer.is_alive()
            assert Store(tmp_path).records() == []
        writer.join()
        assert Store(tmp_path).failed()


class TestRead:
    def test_folders_are_merged_by_key(self, tmp_path: Path, content: Any, make_predictions: Any) -> None:
        made = make_predictions(20)
        keys = ["aa" * 16, "bb" * 16, "cc" * 16]
        for folder, mine in (("one", keys[:2]), ("two", keys[1:])):
            for key in mine:
                record = record_of(content, made, key=key, predictions=f"predictions/{key}.npz")
                Store(tmp_path / folder).write(record, made)
        folders = [tmp_path / "one", tmp_path / "two"]
        merged = read(folders)
        assert [record.key for record in merged] == keys
        assert all(equal(find_predictions(folders, record), made) for record in merged)

    def test_done_wins_over_failed_in_any_order(self, tmp_path: Path, content: Any, make_predictions: Any) -> None:
        made = make_predictions(20)
        done = record_of(content, made)
        Store(tmp_path / "done").write(done, made)
        Store(tmp_path / "failed").write(failed_of(content))
        folders = [tmp_path / "done", tmp_path / "failed"]
        assert read(folders) == read(folders[::-1]) == [done]
        assert equal(find_predictions(folders[::-1], done), made)

    def test_conflicting_numbers_are_refused(self, tmp_path: Path, content: Any, make_predictions: Any) -> None:
        for seed in (0, 1):
            made = make_predictions(20, seed=seed)
            Store(tmp_path / str(seed)).write(record_of(content, made), made)
        with pytest.raises(StoreError, match="different metrics"):
            read([tmp_path / "0", tmp_path / "1"])

    def test_a_folder_without_results_is_named(self, tmp_path: Path, results: Any) -> None:
        results.add("tent")
        with pytest.raises(StoreError, match="typo"):
            read([results.store.folder, tmp_path / "typo"])

    def test_predictions_that_nobody_has(self, results: Any) -> None:
        record = results.add("tent")
        (results.store.folder / record.predictions).unlink()
        with pytest.raises(StoreError, match=record.key):
            find_predictions([results.store.folder], record)
