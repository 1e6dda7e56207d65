"""The doctor's checks of rows: keys, counts between tables, orphans and vectors."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from encoders.settings import UNIT_LENGTH
from pipelines.doctor.file_checks import Problem, remake
from pipelines.doctor.gather import STATUSES, fingerprint, mixed
from pipelines.doctor.scan import EXAMPLES, Folder, Run

_FAILED = STATUSES.index("failed")


# --- what is today's --------------------------------------------------------------------------


def today(folder: Folder) -> np.ndarray:
    """[n]: a fingerprint of the id and the source of each row, so of one version of a video file."""
    return mixed(folder["id"], folder["source"])


def last_attempts(run: Run) -> np.ndarray:
    """Places in the columns of DESCRIPTORS: of each planned segment the row of its last attempt."""
    plan, rows = run.folder("segments"), run.folder("descriptors")
    key = today(rows)
    planned = np.flatnonzero(np.isin(key, today(plan)))
    order = planned[np.lexsort((rows["row"][planned], -rows["attempts"][planned], key[planned]))]
    _, first = np.unique(key[order], return_index=True)
    return order[first]


def has_rows(run: Run, *tables: str) -> bool:
    """Whether these tables, of one folder each, were read in full and hold something."""
    found = [run.folder(table) for table in tables]
    return all(folder and folder.is_whole and folder.columns for folder in found)


def _odd_rows(
    run: Run,
    rows: Folder,
    is_odd: np.ndarray,
    text: str,
    *,
    folder: Folder | None = None,
    files: list[str] | None = None,
) -> Iterator[Problem]:
    """One problem with the rows of a folder that are odd, if there are any.

    Args:
        is_odd: [n], for each of `rows`.
        text: what was found, with {num} for the number of odd rows.
        folder: where the problem is, if not where the rows are.
        files: those that the job must make again, beside what is missing; None: the advice of the check holds.
    """
    places = np.flatnonzero(is_odd)
    if len(places):
        folder = folder or rows
        examples = run.examples(rows, rows["row"][places])
        advice = "" if files is None else remake(run, folder, files)
        found = text.replace("{num}", str(len(places)))
        yield Problem(folder.name, found, len(places), examples, advice)


def _remake_examples(run: Run, folder: Folder, problem: Problem) -> Problem:
    """The problem with the advice to have the files of its examples made again."""
    files = dict.fromkeys(example.rpartition(" in ")[2] for example in problem.examples)
    return replace(problem, advice=remake(run, folder, list(files)))


# --- keys and orphans -------------------------------------------------------------------------


def duplicates(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        if folder.columns:
            text = "{num} rows have the key of another one"
            for problem in _odd_rows(run, folder, _is_again(folder), text):
                yield _remake_examples(run, folder, problem)


def _is_again(folder: Folder) -> np.ndarray:
    """[n]: whether an earlier row has the key of a row."""
    columns = folder.columns
    if "key" in columns:
        key = columns["key"]
    else:
        # A file that has changed, or was tried again, has rows of its own.
        parts = [columns[n] for n in ("id", "source", "attempts", "maker") if n in columns]
        key = mixed(*parts)
        if folder.table.name == "videos":
            key = columns["id"]
    _, first = np.unique(key, return_index=True)
    again = np.ones(len(key), bool)
    again[first] = False
    if "num_again" in columns:
        again |= columns["num_again"] > 0
    return again


def old_sources(run: Run) -> Iterator[Problem]:
    if has_rows(run, "segments", "descriptors"):
        yield from _strangers(run, run.folder("descriptors"), today(run.folder("segments")))
    if has_rows(run, "videos"):
        known = today(run.folder("videos"))
        for table in ("encodings", "attention"):
            for folder in run.folders(table):
                if folder.columns:
                    yield from _strangers(run, folder, known)


def orphans(run: Run) -> Iterator[Problem]:
    if has_rows(run, "videos", "segments"):
        videos, segments = run.folder("videos"), run.folder("segments")
        key = mixed(segments["video"], segments["source"])
        yield from _strangers(run, segments, today(videos), key)
    failures = run.folder("failures")
    if has_rows(run, "segments") and failures and failures.columns:
        yield from _strangers(run, failures, today(run.folder("segments")))
    for table in ("encodings", "attention"):
        for folder in run.folders(table):
            if folder.columns:
                maker = mixed(*_maker(folder.key))
                yield from _strangers(run, folder, maker, folder["maker"])


def _maker(key: str) -> tuple[np.uint64, np.uint64, np.ndarray]:
    """Encoder, stream and fold of `encodings/ENCODER-STREAM/fold-K`, as `doctor_gather` has them."""
    name, _, fold = key.partition("/")[2].partition("/fold-")
    encoder, _, stream = name.rpartition("-")
    return fingerprint(encoder), fingerprint(stream), np.int64(fold or -1)


def _strangers(
    run: Run, folder: Folder, known: np.ndarray, key: np.ndarray | None = None
) -> Iterator[Problem]:
    key = today(folder) if key is None else key
    yield from _odd_rows(run, folder, ~np.isin(key, known), "{num} rows")


# --- counts -----------------------------------------------------------------------------------


def segment_counts(run: Run) -> Iterator[Problem]:
    if not (run.is_done("index") and has_rows(run, "videos", "segments")):
        return
    videos, segments = run.folder("videos"), run.folder("segments")
    ids, first, of_row = np.unique(videos["id"], return_index=True, return_inverse=True)
    _, once = np.unique(segments["id"], return_index=True)
    place = np.minimum(np.searchsorted(ids, segments["video"]), len(ids) - 1)
    found = ids[place] == segments["video"]
    counts = np.bincount(place[once][found[once]], minlength=len(ids))[of_row]
    text = "{num} videos have not num_segments rows in SEGMENTS"
    yield from _odd_rows(run, videos, counts != videos["num_segments"], text)
    planned = videos["num_segments"][first][place]
    wrong = found & (segments["num_segments"] != planned)
    wrong |= (segments["segment"] < 0) | (segments["segment"] >= segments["num_segments"])
    text = "{num} rows whose segment or num_segments is not the video's"
    yield from _odd_rows(run, segments, wrong, text)


def planned_segments(run: Run) -> Iterator[Problem]:
    if not (run.is_done("describe") and has_rows(run, "segments", "descriptors")):
        return
    segments, rows = run.folder("segments"), run.folder("descriptors")
    planned = np.ones(len(segments["id"]), bool)
    if has_rows(run, "videos"):
        planned = np.isin(mixed(segments["video"], segments["source"]), today(run.folder("videos")))
    missing = planned & ~np.isin(today(segments), today(rows))
    text = f"{{num}} of {len(segments['id'])} planned segments have no row"
    yield from _odd_rows(run, segments, missing, text, folder=rows)


def consistent_segments(run: Run) -> Iterator[Problem]:
    rows = run.folder("descriptors")
    if not rows or not rows.columns:
        return
    frames, status = rows["num_frames"], rows["status"]
    failed = status == _FAILED
    wrong = {
        "a status that is none": status >= len(STATUSES),
        "another number of frame_indices or timestamps_s than num_frames": (
            (rows["num_indices"] != frames) | (rows["num_times"] != frames)
        ),
        "status failed, and frames": failed & (frames > 0),
        "status failed or partial without error_type, or ok with one": (
            (status > 0) != rows["has_reason"]
        ),
        "status ok and missing frames, or partial and none": (
            ~failed & ((status > 0) != (rows["num_missing"] > 0))
        ),
    }
    for column in sorted(name for name in rows.columns if name.startswith("length/")):
        stream, length = column.removeprefix("length/"), rows[column]
        text = f"null in {stream} though not failed, or not null though failed"
        wrong[text] = (length < 0) != failed
        text = f"another number of descriptors in {stream} than its frames have"
        wrong[text] = (length >= 0) & ~_fits(run, stream, length, frames)
    for text, is_wrong in wrong.items():
        yield from _odd_rows(run, rows, is_wrong, f"{{num}} rows with {text}")


def cells(run: Run, stream: str) -> int | None:
    """T, the descriptors of one view of a frame; None where run.json does not say it."""
    return run.streams.get(stream, {}).get("cells")


def _fits(run: Run, stream: str, length: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Where a number of descriptors can be that of so many frames."""
    facts = run.streams.get(stream)
    if facts is None:
        return length % np.maximum(frames, 1) == 0
    size, window = facts["cells"] * facts["views"], facts["window"]
    if window["gap"] or window["gap_s"]:
        # A video that is too short for the window has none.
        return (length == size * frames) | (length == 0)
    # The first frames of a video are in no window of sampled frames; a segment that follows another has one for each.
    lacking = frames - length // size
    most = np.minimum(window["num_frames"] - 1, frames)
    return (length % size == 0) & (lacking >= 0) & (lacking <= most)


def failures(run: Run) -> Iterator[Problem]:
    if not (run.is_done("describe") and has_rows(run, "segments", "descriptors")):
        return
    rows, listed = run.folder("descriptors"), run.folder("failures")
    if listed is None or not listed.is_whole:
        return
    last = last_attempts(run)
    is_bad = np.zeros(len(rows["id"]), bool)
    is_bad[last] = np.isin(rows["status"][last], (STATUSES.index("partial"), _FAILED))
    facts = ("id", "source", "status", "attempts", "num_missing")
    key = mixed(*(rows[name] for name in facts))
    names = listed.columns or {name: np.empty(0, np.uint64) for name in facts}
    got = mixed(*(names[name] for name in facts))
    text = f"{{num}} of {is_bad.sum()} failed or partial rows of DESCRIPTORS are not listed"
    missing = is_bad & ~np.isin(key, got)
    yield from _odd_rows(run, rows, missing, text, folder=listed, files=_all(listed))
    planned = np.isin(mixed(names["id"], names["source"]), today(run.folder("segments")))
    extra = ~np.isin(got, key[is_bad]) & planned
    text = "{num} rows that no row of DESCRIPTORS gives"
    yield from _odd_rows(run, listed, extra, text, files=_all(listed))


def _all(folder: Folder) -> list[str]:
    return [file.name for file in folder.files]


def encoded_videos(run: Run) -> Iterator[Problem]:
    if not (run.is_done("encode") and has_rows(run, "videos", "segments", "descriptors")):
        return
    videos, rows = run.folder("videos"), run.folder("descriptors")
    last = last_attempts(run)
    video = mixed(rows["video"][last], rows["source"][last])
    should = np.isin(today(videos), video[rows["status"][last] != _FAILED])
    # A video without any row is a matter of counts.descriptors.
    should_not = np.isin(today(videos), video) & ~should
    for folder in run.folders("encodings"):
        if not folder.is_whole:
            continue
        have = today(folder) if folder.columns else np.empty(0, np.uint64)
        missing = should & ~np.isin(today(videos), have)
        text = f"{{num}} of {should.sum()} described videos have no row"
        yield from _odd_rows(run, videos, missing, text, folder=folder, files=[])
        extra = np.isin(have, today(videos)[should_not])
        text = "{num} rows of videos whose segments have all failed"
        yield from _odd_rows(run, folder, extra, text)


def descriptor_counts(run: Run) -> Iterator[Problem]:
    """In a full run only: the lengths of the vector columns are not known in a quick one."""
    if run.quick or not has_rows(run, "videos", "segments", "descriptors"):
        return
    videos, rows = run.folder("videos"), run.folder("descriptors")
    last = last_attempts(run)
    video = mixed(rows["video"][last], rows["source"][last])
    found = _sums(video, np.ones(len(last)), today(videos))
    described = np.isin(today(videos), video[rows["status"][last] != _FAILED])
    whole = today(videos)[described & (found == videos["num_segments"])]
    for folder in run.folders("encodings"):
        stream = _stream_of(folder)
        if folder.columns and f"length/{stream}" in rows.columns:
            length = np.maximum(rows[f"length/{stream}"][last], 0)
            expected = _sums(video, length, today(folder))
            wrong = (expected != folder["num_descriptors"]) & np.isin(today(folder), whole)
            text = "num_descriptors of {num} rows is not that of DESCRIPTORS"
            yield from _odd_rows(run, folder, wrong, text, files=_all(folder))


def _stream_of(folder: Folder) -> str:
    return folder.key.partition("/fold-")[0].rpartition("-")[2]


def _sums(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The sum of the values of each wanted key; -1 where there is none."""
    known, place = np.unique(keys, return_inverse=True)
    if not len(known):
        return np.full(len(wanted), -1)
    total = np.bincount(place, values, len(known)).astype(np.int64)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, total[at], -1)


def attention_counts(run: Run) -> Iterator[Problem]:
    if not run.is_done("encode"):
        return
    for folder in run.folders("attention"):
        encodings = run.folder(folder.key.replace("attention/", "encodings/", 1))
        facts = run.streams.get(_stream_of(folder))
        size = facts and facts["cells"] * facts["views"]
        if not (
            folder.is_whole and encodings and encodings.is_whole and encodings.columns and size
        ):
            continue
        found = _sums(*_frames(folder), today(encodings))
        wrong = np.maximum(found, 0) * size != encodings["num_descriptors"]
        text = "{num} videos have not one row per encoded frame"
        yield from _odd_rows(run, encodings, wrong, text, folder=folder, files=[])


def _frames(folder: Folder) -> tuple[np.ndarray, np.ndarray]:
    """Videos of ATTENTION and their numbers of frames, without rows of other codebooks and rows with the key of
    another one, which other checks report."""
    if not folder.columns:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    own = np.flatnonzero(folder["maker"] == mixed(*_maker(folder.key)))
    videos, first = np.unique(today(folder)[own], return_index=True)
    return videos, (folder["num_rows"] - folder["num_again"])[own[first]]


# --- vectors ----------------------------------------------------------------------------------


def not_finite(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        for name in sorted(column for column in folder.columns if column.startswith("bad/")):
            text = f"{name.removeprefix('bad/')} of {{num}} rows holds NaN or infinity"
            for problem in _odd_rows(run, folder, folder[name], text):
                yield _remake_examples(run, folder, problem)


def has_unit_length(run: Run, key: str) -> bool:
    """Whether the vectors of a key of ENCODINGS are normalised to length 1: a variant may have its own way."""
    own = re.match(r"encodings/[^@]*@(?:.*:)?normalisation=(\w+)", key)
    way = own[1] if own else run.setting("encode", "normalisation", "none")
    return way in UNIT_LENGTH


def norms(run: Run) -> Iterator[Problem]:
    # Of D rounded values: float16 has 11 bits, and 2e-8 is the smallest half of its steps.
    tolerance = 2e-3 if run.setting("encode", "dtype") == "float16" else 1e-5
    for folder in run.folders("encodings"):
        if "norm" not in folder.columns or not has_unit_length(run, folder.key):
            continue
        norm, count = folder["norm"], folder["num_descriptors"]
        wrong = np.isfinite(norm) & (norm > 0) & ((np.abs(norm - 1) > tolerance) | (count == 0))
        if wrong.any():
            text = (
                f"{{num}} vectors of norm {norm[wrong].min():.6g} to {norm[wrong].max():.6g}, "
                f"{(count[wrong] == 0).sum()} of them without descriptors"
            )
            yield from _odd_rows(run, folder, wrong, text, files=_all(folder))


def zero_vectors(run: Run) -> Iterator[Problem]:
    for folder in run.folders("encodings"):
        if "norm" in folder.columns:
            is_zero = (folder["norm"] == 0) & (folder["num_descriptors"] > 0)
            yield from _odd_rows(run, folder, is_zero, "{num} vectors")


def attention_sums(run: Run) -> Iterator[Problem]:
    for folder in run.folders("attention"):
        if "wrong_sum" in folder.columns:
            yield from _odd_rows(run, folder, folder["wrong_sum"], "{num} videos")


def widths(run: Run) -> Iterator[Problem]:
    rows = run.folder("descriptors")
    if rows:
        kinds = {_vectors(file.schema, len(rows.table.columns)) for file in rows.usable}
        if len(kinds) > 1:
            yield Problem(rows.name, f"files of {len(kinds)} different sets of streams or widths")
        yield from _stream_widths(run, rows)
    for folder in run.folders("encodings"):
        types = {file.schema.field("vector").type for file in folder.usable}
        found = sorted({kind.list_size for kind in types})
        dtype = {"float32": pa.float32(), "float16": pa.float16()}.get(
            run.setting("encode", "dtype")
        )
        if len(found) > 1:
            yield Problem(folder.name, f"vectors of widths {found}", len(found))
        elif dtype and any(kind.value_type != dtype for kind in types):
            yield Problem(folder.name, f"vectors that are not {dtype}, as encode.dtype wants")
        elif found:
            yield from _classifier_widths(run, folder, found[0])
    for folder in run.folders("attention"):
        size = cells(run, _stream_of(folder))
        found = {file.schema.field("cells").type.list_size for file in folder.usable}
        if size and found - {size}:
            yield Problem(folder.name, f"expected {size} cells a frame, got {sorted(found)}")


def _stream_widths(run: Run, rows: Folder) -> Iterator[Problem]:
    if not rows.usable:
        return
    found = dict(_vectors(rows.usable[0].schema, len(rows.table.columns)))
    for name, facts in run.streams.items():
        if found.get(name, facts["width"]) != facts["width"]:
            text = f"{name} is {found[name]} wide, expected {facts['width']}"
            yield Problem(rows.name, text)
    lacking = [name for name in run.streams if name not in found]
    if lacking:
        yield Problem(rows.name, "streams of the configuration are missing", 1, tuple(lacking))


def _vectors(schema: pa.Schema, declared: int) -> tuple[tuple[str, int], ...]:
    return tuple((f.name, f.type.value_type.list_size) for f in list(schema)[declared:])


def _classifier_widths(run: Run, folder: Folder, width: int) -> Iterator[Problem]:
    """Classifiers of the same result want vectors of this width, unless they compress them first."""
    name, _, fold = folder.key.partition("/")[2].partition("/fold-")
    scores = run.tables.get(f"scores/{name}")
    if not scores:
        return
    own = f"classifiers/{scores.removeprefix('scores/')}/"
    files = [item for item in run.tensors if item.name.startswith(own) and not item.error]
    if any("/compression-" in item.name for item in files):
        return
    wanted = [i for i in files if not fold or i.name.endswith(f"/fold-{int(fold):05d}.safetensors")]
    odd = [item for item in wanted if item.shapes.get("weights", (0, width))[1] != width]
    if odd:
        text = f"vectors are {width} wide, {len(odd)} of their classifiers want another width"
        yield Problem(folder.name, text, len(odd), tuple(item.name for item in odd[:EXAMPLES]))
