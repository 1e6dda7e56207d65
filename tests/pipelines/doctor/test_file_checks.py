"""Files, folders, marks and tensors that are damaged, missing or foreign have their own check."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.doctor import main
from pipelines.doctor import examine
from pipelines.ledger import compaction
from pipelines.run.lock import Holder
from pipelines.storage.columns import file_name
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store
from pipelines.storage.tables import DESCRIPTORS
from tests.pipelines.doctor import run as doctor_run
from tests.pipelines.doctor.edits import (
    AVE,
    AVE_SCORES,
    CODEBOOK_DAMAGE,
    VAE,
    edit,
    file_of,
    footer_with,
    found,
    garble,
    nan_in,
    put,
    truncate,
    write_json,
)
from tests.pipelines.doctor.run import STREAMS, TABLES


@pytest.fixture
def run(sound_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("key", "damage"),
    [
        *((key, truncate) for key in ("videos", "segments", "descriptors", "failures", AVE)),
        *((key, garble) for key in ("descriptors", AVE_SCORES, "metrics")),
    ],
)
def test_an_unreadable_file_is_found_alone(run: Path, key: str, damage: Callable) -> None:
    """Its rows are not called missing: nobody knows."""
    name = file_of(run, key).relative_to(run)
    damage(file_of(run, key))
    report = examine.examine(Store(str(run)))
    assert [finding.check for finding in report.findings] == ["file.damaged"]
    assert str(name) in report.findings[0].examples[0]
    assert report.not_counted == (TABLES[key],)


def test_files_that_the_storage_does_not_give_are_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whoever deletes what was there all along has lost it."""
    lost = [file_of(run, key) for key in ("descriptors", AVE, AVE_SCORES)]
    lost += [next((run / "codebooks").rglob("codebook.safetensors"))]
    names = [str(file.relative_to(run)) for file in lost]
    names += [f"{names[-1].rpartition('/')[0]}/_done.json"]
    silent = {*names, f"marks/{names[-1]}"}
    opened, read = Store.open, Store.read

    def refuse(store: Store, name: str, call: Callable) -> object:
        if name in silent:
            raise StorageError(f"s3://x/{name}: cannot read it: TimeoutError; tried 4 times")
        return call(store, name)

    monkeypatch.setattr(Store, "open", lambda store, name: refuse(store, name, opened))
    monkeypatch.setattr(Store, "read", lambda store, name: refuse(store, name, read))
    report = examine.examine(Store(str(run)))
    assert [finding.check for finding in report.findings] == ["storage.answer"]
    (finding,) = report.findings
    assert finding.count == len(names)
    assert {name for name in names if any(name in text for text in finding.examples)} == {*names}
    assert "delete nothing" in finding.advice
    assert "rm " not in "\n".join(report.lines())
    assert set(report.not_counted) == {TABLES[key] for key in ("descriptors", AVE, AVE_SCORES)}
    silent.add("run.json")
    assert main(["--out", str(run)]) == 2
    assert capsys.readouterr().err.startswith("error: s3://x/run.json: cannot read it")


def test_text_that_is_none_is_unreadable(run: Path) -> None:
    def garbled(table: pa.Table) -> pa.Table:
        binary = pa.array([b"\xff\xfe"] * table.num_rows)
        text = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
        place = table.column_names.index("uri")
        return table.set_column(place, table.schema.field("uri"), text)

    edit(run, "videos", garbled)
    assert found(run) == {"file.damaged"}


def test_an_empty_visible_file_is_an_error(run: Path) -> None:
    (run / TABLES["descriptors"] / "0.parquet").touch()
    assert found(run) == {"file.damaged"}


def test_a_renamed_file_is_a_warning(run: Path) -> None:
    file = file_of(run, "videos")
    file.rename(file.parent / "kept.parquet")
    report = examine.examine(Store(str(run)))
    assert [(f.check, f.severity) for f in report.findings] == [("file.name", "warning")]
    assert file.name in report.findings[0].examples[0]
    assert not report.has_errors


@pytest.mark.parametrize(
    "key", ["videos", "descriptors", AVE, f"attention/{VAE}", AVE_SCORES, "metrics"]
)
def test_a_missing_folder(run: Path, key: str) -> None:
    shutil.rmtree(run / TABLES[key])
    assert found(run) == {"run.folder"}


def test_marks_and_report(run: Path) -> None:
    (run / "marks" / TABLES[AVE_SCORES] / "_done.json").unlink()
    assert found(run) == {"run.mark"}
    (run / "report" / "index.html").unlink()
    report = examine.examine(Store(str(run)))
    assert [(f.check, f.where) for f in report.findings] == [
        ("run.mark", "report"),
        ("run.mark", TABLES[AVE_SCORES]),
    ]


def test_a_step_that_was_done_for_other_settings_only_is_unfinished(run: Path) -> None:
    write_json(run, "run.json", lambda record: record["steps"]["describe"].update(digest="0" * 12))
    for folder in (TABLES["descriptors"], f"marks/{TABLES['descriptors']}"):
        shutil.rmtree(run / folder)
    report = examine.examine(Store(str(run)))
    assert [(f.check, f.severity) for f in report.findings] == [("run.unfinished", "note")]
    assert report.findings[0].found.endswith("settings: describe")


def test_run_json(run: Path) -> None:
    (run / "run.json").write_text('{"steps"')
    report = examine.examine(Store(str(run)))
    assert {f.check for f in report.findings if f.severity == "error"} == {"run.record"}
    (run / "run.json").unlink()
    assert "run.record" in found(run)
    write = (run / "run.json").write_text
    write('{"steps": {}, "tables": {}}')
    assert "lacks config" in examine.examine(Store(str(run))).findings[0].found


def test_a_configuration_of_another_version(run: Path) -> None:
    write_json(run, "run.json", lambda record: record["config"].update(later={"x": 1}))
    report = examine.examine(Store(str(run)))
    assert [(f.check, f.severity) for f in report.findings] == [("run.version", "warning")]
    assert "later" in report.findings[0].found


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("descriptors", "weights", "other.pth"),
        ("descriptors", "decoder", "decord"),
        (AVE, "backbone", "vgg16 pool5"),
        (AVE, "codebook", "0" * 12),
        (AVE_SCORES, "sampling", "Sampling()"),
        ("segments", "sampling", "Sampling()"),
        ("videos", "format", "0"),
        ("metrics", "step", "classify"),
    ],
)
def test_provenance_that_contradicts(run: Path, key: str, name: str, value: str) -> None:
    edit(run, key, lambda table: table, footer=footer_with(**{name: value}))
    assert found(run) >= {"file.footer"}
    assert found(run) <= {"file.footer", "codebook.missing"}


def test_provenance_that_is_missing(run: Path) -> None:
    file = file_of(run, "failures")
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert found(run) == {"file.footer"}


@pytest.mark.parametrize("name", ["code", "config"])
def test_what_may_differ_in_a_folder_is_a_note(run: Path, name: str) -> None:
    edit(run, "descriptors", lambda table: table, footer=footer_with(**{name: "another"}))
    report = examine.examine(Store(str(run)))
    assert [(f.check, f.severity) for f in report.findings] == [("file.revisions", "note")]
    assert report.findings[0].examples[-1 if name == "code" else 0].endswith("files")


def test_leftovers_and_older_folders_are_notes_with_their_size(run: Path) -> None:
    (run / TABLES["descriptors"] / ".half.parquet.0a.part").write_bytes(b"12345")
    (run / "descriptors" / "old").mkdir()
    (run / "descriptors" / "old" / "a.parquet").write_bytes(b"123")
    (run / "codebooks" / "ave-x" / "old").mkdir(parents=True)
    (run / "codebooks" / "ave-x" / "old" / "_done.json").write_text(
        '{"video_fisher.codebook": "old"}'
    )
    report = examine.examine(Store(str(run)))
    assert {f.check: f.severity for f in report.findings} == {
        "file.leftover": "note",
        "folder.older": "note",
    }
    texts = {f.check: f.found for f in report.findings}
    assert "5 bytes" in texts["file.leftover"]
    assert texts["folder.older"].startswith("2 folders")
    leftover = next(f for f in report.findings if f.check == "file.leftover")
    subprocess.run(leftover.advice, shell=True, check=True)
    assert found(run) == {"folder.older"}


def test_a_lock_is_mentioned(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 500)
    holder = Holder("t", socket.gethostname(), "", 12, "1", "job --out x", now, now, 20.0)
    (run / "run.lock").write_bytes(holder.to_json())
    report = examine.examine(Store(str(run)))
    assert [f.check for f in report.findings] == ["run.lock"]
    assert f"process 12 on {socket.gethostname()} (job --out x)" in report.findings[0].found
    assert "heartbeat 500 s ago" in report.findings[0].found
    (run / "run.lock").write_text("{")
    assert "damaged" in examine.examine(Store(str(run))).findings[0].found


@pytest.mark.parametrize(
    ("check", "damage"),
    [(check, damage) for check, cases in CODEBOOK_DAMAGE.items() for damage in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_codebooks_and_classifiers(run: Path, check: str, damage: Callable) -> None:
    damage(run)
    assert found(run) == {check}


def test_the_advice_makes_the_job_see_what_is_missing(run: Path) -> None:
    """Pasted, it removes the file and the mark that says that the folder is complete."""
    file = edit(run, "descriptors", put(STREAMS[1], nan_in))
    advice = examine.examine(Store(str(run))).findings[0].advice
    subprocess.run(advice, shell=True, check=True)
    assert not file.exists()
    assert not (run / "marks" / doctor_run.marks_of_steps()["describe"][0]).exists()
    assert file_of(run, "descriptors").exists()


def test_a_compaction_that_was_not_finished_is_no_error(run: Path) -> None:
    """Rows are in small files and in large ones: with the plan alone, with all copies, with some
    originals gone."""
    store = Store(str(run))
    folder = store.read_json("run.json")["tables"]["descriptors"]
    footer, table = store.footer(store.files(folder)[0]), store.read_table(folder)
    for name in store.files(folder):
        store.delete(name)
    for place in range(table.num_rows):
        row = table.slice(place, 1)
        store.publish_table(f"{folder}/{file_name(row, DESCRIPTORS.key)}", row, footer)
    small = store.files(folder)
    assert len(small) == table.num_rows > 2
    planned = compaction.plan(store, folder, DESCRIPTORS.key, ("num_frames", 2.0), 1)
    assert planned is not None
    store.publish_table(f"{folder}/{compaction.PLAN}", planned, {})
    assert not examine.examine(store).has_errors
    compaction.write(store, planned)
    assert len(store.files(folder)) == len(small) + 1
    assert not examine.examine(store).has_errors
    store.delete(small[0])
    assert not examine.examine(store).has_errors
    store.delete(f"{folder}/{compaction.PLAN}")
    assert "keys.duplicate" in found(run)
