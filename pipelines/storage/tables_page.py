"""The page docs/tables.md: every table, from its declaration in `pipelines.storage.tables`.

`python -m pipelines.storage.tables_page > docs/tables.md` makes it again; a test holds the file
against this.
"""

import sys

import pyarrow as pa

from pipelines.storage.columns import Column, Table
from pipelines.storage.tables import TABLES

_UNITS = {
    "_s": "seconds",
    "_px": "pixels",
    "_bytes": "bytes",
    "_deg": "degrees",
    "fps": "frames a second",
}

EXAMPLES = {
    "video_id": "walk/daria_walk.avi",
    "segment_id": "walk/daria_walk.avi#00000",
    "uri": "s3://bucket/weizmann/walk/daria_walk.avi",
    "labels": ["walk"],
    "group": "daria",
    "fold": 0,
    "size_bytes": 112458,
    "source": "9ead474cd0b9f0f8",
    "container": "avi",
    "codec": "mpeg4",
    "width_px": 180,
    "height_px": 144,
    "rotation_deg": 0,
    "duration_s": 3.4,
    "fps": 25.0,
    "num_frames_header": 85,
    "listed_by": "packets",
    "is_mirrored": False,
    "num_segments": 1,
    "segment": 0,
    "num_frames": 22,
    "num_missing": 3,
    "frame_indices": [1, 5, 8],
    "timestamps_s": [0.04, 0.2, 0.32],
    "status": "partial",
    "stage": "decode",
    "error_type": "damaged",
    "error": "walk/daria_walk.avi: 3 of 25 frames do not decode",
    "attempts": 1,
    "decode_s": 0.018,
    "decoder": "pyav 18.1.0 (FFmpeg 8.1.2)",
    "encoder": "fv_vae",
    "codebook": "fv_vae",
    "stream": "pool5_appearance",
    "frame": 5,
    "quantity": "reconstruction",
    "step": 100,
    "num_descriptors": 1250,
    "frame_index": 5,
    "timestamp_s": 0.2,
    "label": "walk",
    "is_true": True,
    "score": 0.877,
    "form": "gram",
    "loss": "hinge",
    "c": 100.0,
    "num_positive": 5,
    "num_negative": 49,
    "primal": 12.41,
    "dual": 12.40999,
    "gap": 8e-7,
    "rounds": 11,
    "is_solved": True,
    "seconds": 0.4,
    "split": "all",
    "metric": "AP",
    "class": "walk",
    "part_encoders": ["fv_vae", "fv_vae"],
    "part_streams": ["pool5_appearance", "pool5_difference"],
    "weights": [0.6, 0.4],
    "num_calibration": 54,
    "probability": 0.94,
    "rank": 1,
}
"""By column; what a column holds in one table alone is by (table, column)."""

EXAMPLES_OF = {
    ("videos", "status"): "ok",
    ("videos", "stage"): None,
    ("videos", "error_type"): None,
    ("videos", "error"): None,
    ("curves", "fold"): -1,
    ("curves", "value"): -752.11,
    ("encodings", "fold"): -1,
    ("search", "fold"): -1,
    ("attention", "fold"): -1,
    ("attention", "value"): 11435202.0,
    ("metrics", "value"): 0.976,
    ("metrics", "parts"): ["fv_vae-pool5_appearance", "fv_vae-pool5_difference"],
    ("models", "stream"): "late_weighted",
    ("models", "fusion"): "late_weighted",
    ("models", "fold"): -2,
    ("models", "slope"): 3.1,
    ("models", "intercept"): -1.4,
}

_HEAD = """\
<!-- Made by: python -m pipelines.storage.tables_page > docs/tables.md -->

# Tables

Every table of a run, as `pipelines/storage/tables.py` declares it. Files are Parquet (zstd), of
plain Arrow types: DuckDB, pandas and Polars open them without Ray. [analysts.md](analysts.md) has
questions and their answers in all three.

`*` in a path is a digest of what made the folder. Folders of earlier settings may stay beside
today's; `run.json` names today's under `tables`, such as `"encodings/fv_vae-pool5_appearance":
"encodings/fv_vae-pool5_appearance/1f0c..."`. Names that begin with `_` or `.` are no data. The
footer of a file says what made it: recipe, configuration digest, weights, decoder, sampling and
code revision.

The width of a vector is part of a file's schema: C channels of a descriptor, D values of an
encoding, P of a compressed one, T cells of the spatial pyramid.
"""


def render() -> str:
    """Return the page, as Markdown."""
    links = ", ".join(f"[{table.name.upper()}](#{table.name})" for table in TABLES)
    return "\n".join([_HEAD, f"{links}.", *(_section(table) for table in TABLES)])


def _section(table: Table) -> str:
    rows = [_row(table, column) for column in table.columns]
    rows += [f"| `{v.name}` | {_cell(v.type)} | {_cell(v.meaning)} |  |  |" for v in table.vectors]
    return "\n".join(
        [
            "",
            f"## {table.name}",
            "",
            f"{table.meaning}.",
            "",
            f"Files: `{table.files}`. Key: {', '.join(f'`{name}`' for name in table.key)}.",
            "",
            "| column | type | meaning | unit | example |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _row(table: Table, column: Column) -> str:
    example = EXAMPLES_OF.get((table.name, column.name), EXAMPLES.get(column.name, ""))
    meaning = f"{column.meaning} (may be null)" if column.nullable else column.meaning
    shown = "null" if example is None else f"`{example}`" if example != "" else ""
    parts = (f"`{column.name}`", _type(column.type), meaning, _unit(column.name), shown)
    return f"| {' | '.join(map(_cell, parts))} |"


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    return {"double": "float64", "float": "float32", "large_binary": "binary"}.get(
        str(kind), str(kind)
    )


def _unit(name: str) -> str:
    units = (unit for ending, unit in _UNITS.items() if name.endswith(ending))
    return "count" if name.startswith("num_") else next(units, "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")
