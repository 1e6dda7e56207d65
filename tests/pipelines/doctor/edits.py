"""Ways in which a run can be wrong, for the tests of the doctor: changed rows, files, marks and
tensors of `doctor_run`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.doctor import examine
from pipelines.doctor.scan import BY_NAME
from pipelines.storage.columns import file_name
from pipelines.storage.store import Store
from pipelines.storage.tables import NAMED_BY_KEYS
from tests.pipelines.doctor import run as doctor_run
from tests.pipelines.doctor.run import STREAMS, TABLES

AVE, AVE_SCORES = f"encodings/ave-{STREAMS[0]}", f"scores/ave-{STREAMS[0]}"
VAE = f"fv_vae-{STREAMS[0]}/fold-0"
CODEBOOK = f"codebooks/ave-{STREAMS[0]}/{doctor_run.book_digest('ave', STREAMS[0], -1)}"
CLASSIFIERS = TABLES[AVE_SCORES].replace("scores", "classifiers", 1)


def found(run: Path, **settings: bool) -> set[str]:
    return {finding.check for finding in examine.examine(Store(str(run)), **settings).findings}


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
    if declared in NAMED_BY_KEYS and set(declared.key) <= set(table.column_names):
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
    "vectors.zero": [(AVE, put("vector", first([0.0] * doctor_run.WIDTH)))],
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
"""{check: edits of a table, by its key, that it and no other check finds}."""


def break_header(run: Path) -> None:
    (run / CODEBOOK / "codebook.safetensors").write_bytes(b"\xff" * 50)


def cut_tensors(run: Path) -> None:
    file = run / CODEBOOK / "codebook.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


CODEBOOK_DAMAGE = {
    "file.damaged": [break_header, cut_tensors],
    "tensors.not_finite": [
        lambda run: publish_tensors(
            run,
            f"{CODEBOOK}/codebook.safetensors",
            a=np.ones(3),
            b=np.array([1, np.inf], np.float16),
        ),
        lambda run: publish_tensors(run, "weights/w.safetensors", a=np.array([np.nan], np.float32)),
    ],
    "folder.unfinished": [lambda run: (run / "marks" / CODEBOOK / "_done.json").unlink()],
    "codebook.missing": [
        lambda run: shutil.rmtree(run / CODEBOOK),
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
"""{check: what it and no other check finds of codebooks and classifiers}."""
