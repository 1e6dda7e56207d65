"""The doctor's checks of vectors: their values, lengths and widths."""

from collections.abc import Iterator

import pyarrow as pa

from pipelines.doctor.check import Check, Problem, check
from pipelines.doctor.queries import odd_results, odd_rows
from pipelines.doctor.scan import Folder, Run

CHECKS: list[Check] = []


@check(CHECKS, "vectors.not_finite", "error", "no NaN and no infinity")
def not_finite(run: Run) -> Iterator[Problem]:
    for table in ("descriptors", "samples", "encodings", "attention"):
        query = f"""
            SELECT *, 'rows with NaN or infinity in ' || column_name AS found
            FROM (SELECT *, unnest(bad) AS column_name FROM {table})"""
        yield from odd_rows(run, query, again="files")
    yield from odd_results(run, "vectors.not_finite")


@check(CHECKS, "vectors.norm", "error", "encodings have norm 1, or 0 without descriptors")
def norms(run: Run) -> Iterator[Problem]:
    # Of D rounded values: float16 has 11 bits, and 2e-8 is the smallest half of its steps.
    tolerance = 2e-3 if run.setting("encode", "dtype") == "float16" else 1e-5
    example = "format('{}: norm {:.6g}, {} descriptors', example, norm, num_descriptors)"
    query = f"""
        SELECT * REPLACE ({example} AS example), 'vectors of another norm' AS found
        FROM encodings SEMI JOIN (FROM folders WHERE has_unit_length) USING (folder)
        WHERE isfinite(norm) AND norm > 0
            AND (abs(norm - 1) > {tolerance} OR num_descriptors = 0)"""
    yield from odd_rows(run, query, again="folder")


@check(
    CHECKS,
    "vectors.zero",
    "warning",
    "encodings of described videos are not zero",
    "expected of differences where nothing moves; else look at the video: are its frames black?",
)
def zero_vectors(run: Run) -> Iterator[Problem]:
    query = "SELECT *, 'vectors' AS found FROM encodings WHERE norm = 0 AND num_descriptors > 0"
    yield from odd_rows(run, query)


@check(CHECKS, "attention.sum", "error", "a frame's attention is the sum of its cells")
def attention_sums(run: Run) -> Iterator[Problem]:
    yield from odd_rows(run, "SELECT *, 'videos' AS found FROM attention WHERE is_wrong")


@check(
    CHECKS,
    "vectors.width",
    "error",
    "vectors have the width and type that the configuration and their classifiers want",
)
def widths(run: Run) -> Iterator[Problem]:
    if (rows := run.folder("descriptors")) and rows.usable:
        yield from _descriptor_widths(run, rows)
    for folder in run.folders("encodings"):
        if folder.usable:
            yield from _encoding_widths(run, folder)
    for folder in run.folders("attention"):
        cells = run.streams.get(folder.result[1], {}).get("cells")
        found = {file.schema.field("cells").type.list_size for file in folder.usable}
        if cells and found - {cells}:
            yield Problem(folder.name, f"expected {cells} cells a frame, got {sorted(found)}")


def _descriptor_widths(run: Run, rows: Folder) -> Iterator[Problem]:
    start = len(rows.table.columns)
    kinds = {
        tuple(
            (column.name, column.type.value_type.list_size) for column in list(file.schema)[start:]
        )
        for file in rows.usable
    }
    if len(kinds) > 1:
        yield Problem(rows.name, f"files of {len(kinds)} different sets of streams or widths")
    found = dict(min(kinds))
    for name, facts in run.streams.items():
        if found.get(name, facts["width"]) != facts["width"]:
            text = f"{name} is {found[name]} wide, expected {facts['width']}"
            yield Problem(rows.name, text)
    if lacking := [name for name in run.streams if name not in found]:
        yield Problem(rows.name, "streams of the configuration are missing", 1, tuple(lacking))


def _encoding_widths(run: Run, folder: Folder) -> Iterator[Problem]:
    types = {file.schema.field("vector").type for file in folder.usable}
    found = sorted({kind.list_size for kind in types})
    wanted = str(run.setting("encode", "dtype"))
    dtype = {"float32": pa.float32(), "float16": pa.float16()}.get(wanted)
    if len(found) > 1:
        yield Problem(folder.name, f"vectors of widths {found}", len(found))
    elif dtype and any(kind.value_type != dtype for kind in types):
        yield Problem(folder.name, f"vectors that are not {dtype}, as encode.dtype wants")
    else:
        yield from _classifier_widths(run, folder, found[0])


def _classifier_widths(run: Run, folder: Folder, width: int) -> Iterator[Problem]:
    """Classifiers of the same result want this width, unless they compress vectors first."""
    solutions = run.tables.get(f"solutions/{'-'.join(folder.result)}")
    every = [i for i in run.tensors if i.name.startswith(f"{solutions}/") and not i.error]
    if any("/compression-" in item.name for item in every):
        return
    own = f"/fold-{folder.fold:05d}.safetensors"
    used = [item for item in every if folder.fold < 0 or item.name.endswith(own)]
    odd = [item.name for item in used if item.shapes.get("weights", (0, width))[1] != width]
    if odd:
        text = f"vectors are {width} wide, {len(odd)} of their classifiers want another width"
        yield Problem.of(folder.name, text, odd)
