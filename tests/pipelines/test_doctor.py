"""Each way in which a run can be wrong is found by its own check, and by no other."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import doctor, doctor_scan, doctor_tables
from pipelines.config import ConfigError
from pipelines.layout import STEPS
from pipelines.lock import Holder
from pipelines.sink import file_name
from pipelines.storage import Store
from pipelines.tables import TABLES as DECLARED
from tests.pipelines import doctor_run as made
from tests.pipelines.doctor_run import STREAMS, TABLES

ROOT = Path(__file__).parents[2]
BY_NAME = {table.name: table for table in DECLARED}
AVE, AVE_SCORES = f"encodings/ave-{STREAMS[0]}", f"scores/ave-{STREAMS[0]}"
VAE = f"fv_vae-{STREAMS[0]}/fold-0"
CODEBOOK = f"codebooks/ave-{STREAMS[0]}/{made.book_digest('ave', STREAMS[0], -1)}"
CLASSIFIERS = TABLES[AVE_SCORES].replace("scores", "classifiers", 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    made.make(root)
    return root


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def found(run: Path, **settings: bool) -> set[str]:
    return {finding.check for finding in doctor.examine(Store(str(run)), **settings).findings}


def file_of(run: Path, key: str, place: int = 0) -> Path:
    folder = run / TABLES.get(key, key)
    return sorted(file for file in folder.glob("*.parquet") if file.name[0] != ".")[place]


def edit(
    run: Path,
    key: str,
    change: Callable[[pa.Table], pa.Table],
    place: int = 0,
    footer: dict | None = None,
) -> Path:
    """Writes a file again with other rows, under the name that they give it."""
    file = file_of(run, key, place)
    table = change(pq.read_table(file))
    declared = BY_NAME[key.partition("/")[0]]
    name = file.name
    if declared.name in doctor_scan.NAMED_BY_KEYS and set(declared.key) <= set(table.column_names):
        name = file_name(table, declared.key)
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    file.unlink()
    store = Store(str(file.parent))
    store.publish_table(name, table.replace_schema_metadata(None), metadata | (footer or {}))
    return file.parent / name


def put(name: str, change: Callable[[list], None]) -> Callable[[pa.Table], pa.Table]:
    """Changes the values of a column, given as a list."""

    def apply(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        change(values)
        field = table.schema.field(name)
        return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))

    return apply


def first(value: object) -> Callable[[list], None]:
    return lambda values: values.__setitem__(0, value)


def drop(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.filter(pa.array(np.arange(table.num_rows) != row))


def nan_in(values: list) -> None:
    """Into the first value of a list of vectors, of a vector, or of numbers."""
    while isinstance(values[0], list):
        values = values[0]
    values[0] = float("nan")


def rescale(values: list) -> None:
    values[0] = [1.01 * value for value in values[0]]


def add_row(**changes: object) -> Callable[[pa.Table], pa.Table]:
    """A copy of the first row with some other values."""

    def apply(table: pa.Table) -> pa.Table:
        row = table.slice(0, 1).to_pylist()[0] | changes
        return pa.concat_tables([table, pa.Table.from_pylist([row], table.schema)])

    return apply


def footer_with(**changes: str) -> dict[str, str]:
    return {f"video_fisher.{name}": value for name, value in changes.items()}


def write_json(run: Path, name: str, change: Callable[[dict], None]) -> None:
    value = json.loads((run / name).read_text())
    change(value)
    (run / name).write_text(json.dumps(value))


def publish_tensors(run: Path, name: str, **tensors: np.ndarray) -> None:
    import safetensors.numpy

    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(safetensors.numpy.save(tensors))


def copy_file(run: Path, key: str) -> None:
    shutil.copy(file_of(run, key), file_of(run, key).parent / "0copy.parquet")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def garble(file: Path) -> None:
    """Bytes in the middle of the data: the footer stays readable."""
    data = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(0).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    file.write_bytes(bytes(data))


def test_a_sound_run_has_no_findings(sound: Path) -> None:
    report = doctor.examine(Store(str(sound)))
    assert report.findings == ()
    assert report.segments == {"planned": 7, "ok": 5, "partial": 1, "failed": 1}
    files = [file for file in sound.rglob("*") if file.suffix in (".parquet", ".safetensors")]
    assert report.num_files == len(files)
    expected = sum(pq.read_metadata(f).num_rows for f in files if f.suffix == ".parquet")
    assert report.num_rows == expected
    assert report.lines()[-1].startswith(f"no problem found: {len(files)} files, {expected} rows")
    assert found(sound, quick=True) == set()


ROW_EDITS = {
    "keys.duplicate": [
        *((key, add_row()) for key in ("segments", "failures", AVE, f"attention/{VAE}")),
        ("metrics", add_row()),
        (AVE_SCORES, add_row()),
        ("descriptors", add_row()),
        (f"samples/{STREAMS[0]}/66ff66ff66ff", add_row()),
    ],
    "counts.descriptors": [("descriptors", drop(0))],
    "counts.failures": [
        ("failures", drop(0)),
        ("failures", put("status", first("failed"))),
        ("failures", put("attempts", first(2))),
    ],
    "counts.encodings": [
        (AVE, drop(0)),
        (AVE, add_row(video_id="v5", source="source5", num_descriptors=15)),
    ],
    "counts.num_descriptors": [(AVE, put("num_descriptors", first(10)))],
    "counts.attention": [(f"attention/{VAE}", drop(0))],
    "counts.scores": [(AVE_SCORES, drop(0))],
    "counts.frames": [
        ("descriptors", put("num_missing", first(1))),
        ("descriptors", put("status", first("done"))),
        ("descriptors", put("frame_indices", first([1, 2]))),
        ("descriptors", put("timestamps_s", first([]))),
        ("descriptors", put("error_type", first("damaged"))),
    ],
    "orphans.rows": [
        (AVE_SCORES, add_row(video_id="v9")),
        (AVE_SCORES, add_row(label="run")),
        (AVE_SCORES, add_row(stream=STREAMS[1])),
        ("failures", add_row(segment_id="v9#00000", video_id="v9")),
        ("segments", add_row(segment_id="v9#00000", video_id="v9")),
        ("metrics", add_row(encoder="vlad")),
        ("metrics", add_row(split="fold:7")),
        (AVE, add_row(encoder="vlad")),
        (f"attention/{VAE}", add_row(fold=1)),
    ],
    "orphans.old_source": [
        ("descriptors", add_row(source="before")),
        (AVE, add_row(source="before")),
        (f"attention/{VAE}", add_row(source="before")),
    ],
    "vectors.not_finite": [
        ("descriptors", put(STREAMS[1], nan_in)),
        (AVE, put("vector", nan_in)),
        (f"attention/{VAE}", put("cells", nan_in)),
        (f"attention/{VAE}", put("value", nan_in)),
        (f"samples/{STREAMS[0]}/66ff66ff66ff", put("descriptors", nan_in)),
        (AVE_SCORES, put("score", first(float("inf")))),
    ],
    "vectors.norm": [(AVE, put("vector", rescale))],
    "vectors.zero": [(AVE, put("vector", first([0.0] * made.WIDTH)))],
    "attention.sum": [(f"attention/{VAE}", put("value", first(0.1)))],
    "scores.truth": [
        (AVE_SCORES, put("is_true", first(False))),
        (AVE_SCORES, put("fold", first(1))),
    ],
    "metrics.values": [
        ("metrics", put("value", lambda values: values.__setitem__(1, values[1] + 2e-9))),
        ("metrics", put("value", lambda values: values.__setitem__(-1, None))),
    ],
    "metrics.missing": [("metrics", drop(0)), ("metrics", drop(5))],
    "file.schema": [
        (key, lambda table: table.drop_columns(table.column_names[2:3]))
        for key in ("videos", "descriptors", AVE, AVE_SCORES, "metrics")
    ]
    + [
        ("segments", lambda table: table.append_column("extra", table["segment"])),
        ("segments", lambda table: table.select([*reversed(table.column_names)])),
        ("failures", lambda table: table.set_column(4, "num_frames", table["num_frames"])),
        ("descriptors", lambda table: table.append_column("vector", table["attempts"])),
        (AVE, lambda table: table.drop_columns("vector")),
    ],
}


@pytest.mark.parametrize(
    ("check", "key", "change"),
    [(check, *case) for check, cases in ROW_EDITS.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_row_is_found(run: Path, check: str, key: str, change: Callable) -> None:
    edit(run, key, change)
    assert found(run) == {check}


def test_a_dropped_video_or_segment_names_the_tables_that_disagree(run: Path) -> None:
    edit(run, "segments", drop(3))
    assert found(run) == {"counts.segments", "orphans.old_source"}


def test_a_video_with_another_number_of_segments(run: Path) -> None:
    edit(run, "videos", put("num_segments", first(2)))
    assert found(run) == {"counts.segments"}


def test_a_video_that_is_gone_leaves_orphans(run: Path) -> None:
    edit(run, "videos", drop(4))
    assert found(run) == {"orphans.rows", "orphans.old_source"}


def test_other_scores_give_other_metrics_also_of_the_fusions(run: Path) -> None:
    edit(
        run, AVE_SCORES, put("score", lambda values: values.__setitem__(slice(0, 2), values[1::-1]))
    )
    findings = doctor.examine(Store(str(run))).findings
    assert [finding.check for finding in findings] == ["metrics.values"]
    edit(
        run, "metrics", lambda table: table.filter(pa.compute.match_substring(table["stream"], "+"))
    )
    report = doctor.examine(Store(str(run)))
    assert {f.check for f in report.findings} == {"metrics.values", "metrics.missing"}
    examples = next(f for f in report.findings if f.check == "metrics.values").examples
    assert all(f"{STREAMS[0]}+{STREAMS[1]}" in example for example in examples)


def test_a_segment_that_was_tried_again_counts_by_its_last_attempt(run: Path) -> None:
    whole = {"attempts": 2, "status": "ok", "num_missing": 0, "stage": None}
    whole |= {"error_type": None, "error": None}
    place = 1 if "v3" in str(pq.read_table(file_of(run, "descriptors", 1))["video_id"]) else 0

    def again(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        bad = next(row for row in rows if row["status"] == "partial")
        return pa.Table.from_pylist([*rows, bad | whole], table.schema)

    edit(run, "descriptors", again, place)
    report = doctor.examine(Store(str(run)))
    assert {finding.check for finding in report.findings} == {"counts.failures"}
    assert report.segments == {"planned": 7, "ok": 6, "partial": 0, "failed": 1}
    edit(run, "failures", lambda t: t.filter(pa.compute.equal(t["status"], "failed")))
    assert found(run) == set()


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
    report = doctor.examine(Store(str(run)))
    assert [finding.check for finding in report.findings] == ["file.unreadable"]
    assert str(name) in report.findings[0].examples[0]
    assert report.not_counted == (TABLES[key],)


def test_a_quick_look_sees_keys_but_no_vectors(run: Path) -> None:
    edit(run, AVE, put("vector", nan_in))
    publish_tensors(run, f"{CODEBOOK}/codebook.safetensors", x=np.array([np.nan]))
    assert found(run, quick=True) == set()
    assert found(run) == {"vectors.not_finite", "tensors.not_finite"}
    edit(run, "descriptors", add_row())
    truncate(file_of(run, "segments"))
    assert found(run, quick=True) == {"keys.duplicate", "file.unreadable"}


@pytest.mark.parametrize("key", ["videos", "segments", "descriptors", AVE, f"attention/{VAE}"])
def test_a_copied_file(run: Path, key: str) -> None:
    copy_file(run, key)
    assert found(run) == {"keys.duplicate", "file.name"}


def test_a_copied_file_of_scores(run: Path) -> None:
    copy_file(run, AVE_SCORES)
    assert "keys.duplicate" in found(run)
    assert found(run) <= {"keys.duplicate", "tensors.missing"}


def test_text_that_is_none_is_unreadable(run: Path) -> None:
    def garbled(table: pa.Table) -> pa.Table:
        binary = pa.array([b"\xff\xfe"] * table.num_rows)
        text = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
        place = table.column_names.index("uri")
        return table.set_column(place, table.schema.field("uri"), text)

    edit(run, "videos", garbled)
    assert found(run) == {"file.unreadable"}


def test_a_renamed_file_is_a_warning(run: Path) -> None:
    file = file_of(run, "videos")
    file.rename(file.parent / "kept.parquet")
    report = doctor.examine(Store(str(run)))
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
    (run / TABLES[AVE_SCORES] / "_done.json").unlink()
    assert found(run) == {"run.mark"}
    (run / "report" / "index.html").unlink()
    report = doctor.examine(Store(str(run)))
    assert [(f.check, f.where) for f in report.findings] == [
        ("run.mark", TABLES[AVE_SCORES]),
        ("run.mark", "report"),
    ]


def test_a_step_that_was_done_for_other_settings_only_is_unfinished(run: Path) -> None:
    write_json(run, "run.json", lambda record: record["steps"]["describe"].update(digest="0" * 12))
    shutil.rmtree(run / TABLES["descriptors"])
    report = doctor.examine(Store(str(run)))
    assert [(f.check, f.severity) for f in report.findings] == [("run.unfinished", "note")]
    assert report.findings[0].found.endswith("settings: describe")


def test_a_run_under_way_may_lack_rows(run: Path) -> None:
    def forget(record: dict) -> None:
        for step in ("encode", "classify", "evaluate"):
            del record["steps"][step]

    write_json(run, "run.json", forget)
    for name in made.marks()["encode"]:
        (run / name).unlink()
    for folder in ("scores", "classifiers", "metrics", "report"):
        shutil.rmtree(run / folder)
    file_of(run, AVE).unlink()
    assert found(run) == {"run.unfinished"}


def test_run_json(run: Path) -> None:
    (run / "run.json").write_text('{"steps"')
    report = doctor.examine(Store(str(run)))
    assert {f.check for f in report.findings if f.severity == "error"} == {"run.record"}
    (run / "run.json").unlink()
    assert "run.record" in found(run)
    write = (run / "run.json").write_text
    write('{"steps": {}, "tables": {}}')
    assert "lacks config" in doctor.examine(Store(str(run))).findings[0].found


@pytest.mark.parametrize("name", ["nowhere", "empty", "file", "other"])
def test_where_no_run_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"expected a run with its run.json, found none"):
        doctor.examine(Store(str(tmp_path / name)))


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
    assert found(run) <= {"file.footer", "tensors.missing"}


def test_provenance_that_is_missing(run: Path) -> None:
    file = file_of(run, "failures")
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert found(run) == {"file.footer"}


@pytest.mark.parametrize("name", ["code", "config"])
def test_what_may_differ_in_a_folder_is_a_note(run: Path, name: str) -> None:
    edit(run, "descriptors", lambda table: table, footer=footer_with(**{name: "another"}))
    report = doctor.examine(Store(str(run)))
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
    report = doctor.examine(Store(str(run)))
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


def test_an_empty_visible_file_is_an_error(run: Path) -> None:
    (run / TABLES["descriptors"] / "0.parquet").touch()
    assert found(run) == {"file.unreadable"}


def test_a_lock_is_mentioned(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 500)
    holder = Holder("t", socket.gethostname(), "", 12, "1", "job --out x", now, now, 20.0)
    (run / "run.lock").write_bytes(holder.to_json())
    report = doctor.examine(Store(str(run)))
    assert [f.check for f in report.findings] == ["run.lock"]
    assert f"process 12 on {socket.gethostname()} (job --out x)" in report.findings[0].found
    assert "heartbeat 500 s ago" in report.findings[0].found
    (run / "run.lock").write_text("{")
    assert "damaged" in doctor.examine(Store(str(run))).findings[0].found


def break_header(run: Path) -> None:
    (run / CODEBOOK / "codebook.safetensors").write_bytes(b"\xff" * 50)


def cut_tensors(run: Path) -> None:
    file = run / CODEBOOK / "codebook.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


CODEBOOK_DAMAGE = {
    "tensors.unreadable": [break_header, cut_tensors],
    "tensors.not_finite": [
        lambda run: publish_tensors(
            run,
            f"{CODEBOOK}/codebook.safetensors",
            a=np.ones(3),
            b=np.array([1, np.inf], np.float16),
        ),
        lambda run: publish_tensors(run, "weights/w.safetensors", a=np.array([np.nan], np.float32)),
    ],
    "codebook.digest": [
        lambda run: write_json(
            run, f"{CODEBOOK}/_done.json", lambda mark: mark.update({"video_fisher.codebook": "x"})
        )
    ],
    "folder.unfinished": [lambda run: (run / CODEBOOK / "_done.json").unlink()],
    "tensors.missing": [
        lambda run: shutil.rmtree(run / CODEBOOK),
        lambda run: (run / CLASSIFIERS / "fold-00001.safetensors").unlink(),
        lambda run: (run / CLASSIFIERS / "solutions-00001.parquet").unlink(),
        lambda run: (run / TABLES["fusions/ave-late_weighted"] / "fold-00001.parquet").unlink(),
    ],
    "vectors.width": [
        lambda run: publish_tensors(
            run, f"{CLASSIFIERS}/fold-00001.safetensors", weights=np.ones((2, 9))
        ),
        lambda run: write_json(
            run, "run.json", lambda record: record["config"]["encode"].update(dtype="float16")
        ),
    ],
}


@pytest.mark.parametrize(
    ("check", "damage"),
    [(check, damage) for check, cases in CODEBOOK_DAMAGE.items() for damage in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_codebooks_and_classifiers(run: Path, check: str, damage: Callable) -> None:
    damage(run)
    assert found(run) == {check}


def test_files_of_one_folder_have_vectors_of_one_width(run: Path) -> None:
    def wider(table: pa.Table) -> pa.Table:
        kind = made.encoding_type(4, "float32")
        vectors = pa.array([[1.0, 0, 0, 0]] * table.num_rows, kind)
        place = table.column_names.index("vector")
        return table.set_column(place, pa.field("vector", kind), vectors)

    edit(run, AVE, wider)
    assert found(run) == {"vectors.width"}


def test_a_stream_of_gaps_has_all_frames_or_none(run: Path) -> None:
    """The first row lacks the difference of its first frame, which only one of sampled frames does."""
    assert found(run) == set()
    gap = {"num_frames": 2, "gap": 3, "gap_s": 0.0}
    write_json(run, "run.json", lambda r: r["streams"][1].update(window=gap))
    assert "counts.frames" in found(run)


def test_a_stream_is_as_wide_as_the_run_says(run: Path) -> None:
    write_json(run, "run.json", lambda r: r["streams"][1].update(width=7))
    (finding,) = doctor.examine(Store(str(run))).findings
    assert f"{STREAMS[1]} is 6 wide, expected 7" in finding.found


def test_the_advice_makes_the_job_see_what_is_missing(run: Path) -> None:
    """Pasted, it removes the file and the mark that says that the folder is complete."""
    file = file_of(run, "descriptors")
    truncate(file)
    advice = doctor.examine(Store(str(run))).findings[0].advice
    subprocess.run(advice, shell=True, check=True)
    assert not file.exists()
    assert not (run / made.marks()["describe"][0]).exists()
    assert file_of(run, "descriptors").exists()


def test_the_names_of_files_and_steps_are_those_of_the_job(sound: Path) -> None:
    """Two things are written a second time here, because their modules need Ray or torch."""
    for key in ("videos", "segments", "descriptors", AVE, f"attention/{VAE}"):
        table = pq.read_table(file_of(sound, key))
        names = BY_NAME[key.partition("/")[0]].key
        assert doctor_scan.keys_name(table, names) == file_name(table, names)
    assert doctor_scan.STEPS == STEPS


def test_ids_and_severities_are_known() -> None:
    ids = [check.id for check in doctor.CHECKS]
    assert len(ids) == len(set(ids))
    assert {check.severity for check in doctor.CHECKS} == set(doctor.SEVERITIES)
    tested = {*ROW_EDITS, *CODEBOOK_DAMAGE, "counts.segments", "file.unreadable", "file.name"}
    tested |= {"run.folder", "run.mark", "run.unfinished", "run.record", "file.footer"}
    tested |= {"file.revisions", "file.leftover", "folder.older", "run.lock"}
    assert set(ids) == tested


def test_object_storage(sound: Path, s3_bucket: str) -> None:
    store = Store(f"{s3_bucket}/doctor")
    store.fs.put(str(sound), store.path(""), recursive=True)
    assert doctor.examine(store).findings == ()
    name = store.files(TABLES["videos"])[0]
    store.publish(name, store.read(name)[:-50])
    (finding,) = doctor.examine(store).findings
    assert finding.check == "file.unreadable"
    assert finding.advice.startswith(f"aws s3 rm {s3_bucket}/doctor/videos/")
    with pytest.raises(ConfigError, match="found none"):
        doctor.examine(Store(f"{s3_bucket}/nowhere"))


def test_neither_torch_nor_ray_is_loaded(sound: Path) -> None:
    script = (
        "import sys\nfrom jobs import doctor\n"
        f"code = doctor.main(['--out', {str(sound)!r}])\n"
        "print(code, [m for m in ('torch', 'ray', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("0 []\n"), done.stdout + done.stderr


def test_row_groups_are_read_one_at_a_time(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files are read for examples only, and then their keys alone."""
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("a whole file"))
    assert found(sound) == set()


@pytest.mark.parametrize(
    ("key", "run_wide", "expected"),
    [
        ("encodings/ave-s", "signed_sqrt_l2", True),
        ("encodings/ave-s", "signed_sqrt", False),
        ("encodings/ave-s", "none", False),
        ("encodings/ave@normalisation=signed_sqrt-s/fold-1", "signed_sqrt_l2", False),
        ("encodings/ave@temporal_pyramid=1/2:normalisation=none-s", "l2", False),
        ("encodings/fv_vae@lambda3=0:normalisation=l2-s", "none", True),
    ],
)
def test_lengths_are_checked_where_vectors_are_normalised_to_1(
    key: str, run_wide: str, expected: bool
) -> None:
    run = SimpleNamespace(setting=lambda *_: run_wide)
    assert doctor_tables.has_unit_length(run, key) == expected
