"""The doctor's checks of rows: keys, counts between tables, orphans and vectors."""

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from encoders.settings import UNIT_LENGTH
from pipelines.doctor_files import EXAMPLES, Problem, remake
from pipelines.doctor_gather import STATUSES, fingerprint, mixed
from pipelines.doctor_scan import Folder, Run

_FAILED = STATUSES.index("failed")


# --- what is today's --------------------------------------------------------------------------


def is_in(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where a value is one of `known`, which need not be sorted."""
    return np.isin(values, known)


def today(folder: Folder) -> np.ndarray:
    """One fingerprint a row: what it is of, and the source it was made from."""
    return mixed(folder["id"], folder["source"])


def last_attempts(run: Run) -> np.ndarray:
    """Places in the columns of DESCRIPTORS: the rows that the plan asks for, each once, by the last attempt."""
    plan, rows = run.folder("segments"), run.folder("descriptors")
    key = today(rows)
    planned = np.flatnonzero(is_in(key, today(plan)))
    order = planned[np.lexsort((rows["row"][planned], -rows["attempts"][planned], key[planned]))]
    _, first = np.unique(key[order], return_index=True)
    return order[first]


def has_rows(run: Run, *tables: str) -> bool:
    """Whether these tables, of one folder each, were read in full and hold something."""
    found = [run.folder(table) for table in tables]
    return all(folder and folder.is_whole and folder.columns for folder in found)


# --- keys and orphans -------------------------------------------------------------------------


def duplicates(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        again = _again(folder)
        if len(again):
            examples = run.examples(folder, folder["row"][again])
            names = [example.rpartition(" in ")[2] for example in examples]
            found = f"{len(again)} rows have the key of another one"
            advice = remake(run, folder, list(dict.fromkeys(names)))
            yield Problem(folder.name, found, len(again), examples, advice)


def _again(folder: Folder) -> np.ndarray:
    """Places in the columns: rows whose key an earlier row has."""
    columns = folder.columns
    if not columns:
        return np.empty(0, np.int64)
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
    return np.flatnonzero(again)


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
    odd = np.flatnonzero(~is_in(today(folder) if key is None else key, known))
    if len(odd):
        examples = run.examples(folder, folder["row"][odd])
        yield Problem(folder.name, f"{len(odd)} rows", len(odd), examples)


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
    odd = np.flatnonzero(counts != videos["num_segments"])
    if len(odd):
        text = f"{len(odd)} videos have not num_segments rows in SEGMENTS"
        examples = run.examples(videos, videos["row"][odd])
        yield Problem(videos.name, text, len(odd), examples)
    planned = videos["num_segments"][first][place]
    wrong = found & (segments["num_segments"] != planned)
    wrong |= (segments["segment"] < 0) | (segments["segment"] >= segments["num_segments"])
    odd = np.flatnonzero(wrong)
    if len(odd):
        examples = run.examples(segments, segments["row"][odd])
        text = f"{len(odd)} rows whose segment or num_segments is not the video's"
        yield Problem(segments.name, text, len(odd), examples)


def planned_segments(run: Run) -> Iterator[Problem]:
    if not (run.is_done("describe") and has_rows(run, "segments", "descriptors")):
        return
    segments, rows = run.folder("segments"), run.folder("descriptors")
    planned = np.ones(len(segments["id"]), bool)
    if has_rows(run, "videos"):
        planned = is_in(mixed(segments["video"], segments["source"]), today(run.folder("videos")))
    missing = np.flatnonzero(planned & ~is_in(today(segments), today(rows)))
    if len(missing):
        text = f"{len(missing)} of {len(segments['id'])} planned segments have no row"
        examples = run.examples(segments, segments["row"][missing])
        yield Problem(rows.name, text, len(missing), examples)


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
    for text, mask in wrong.items():
        odd = np.flatnonzero(mask)
        if len(odd):
            examples = run.examples(rows, rows["row"][odd])
            yield Problem(rows.name, f"{len(odd)} rows with {text}", len(odd), examples)


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
    bad = last[np.isin(rows["status"][last], (STATUSES.index("partial"), _FAILED))]
    facts = ("id", "source", "status", "attempts", "num_missing")
    expected = mixed(*(rows[name][bad] for name in facts))
    names = listed.columns or {name: np.empty(0, np.uint64) for name in facts}
    got = mixed(*(names[name] for name in facts))
    missing = bad[~is_in(expected, got)]
    if len(missing):
        examples = run.examples(rows, rows["row"][missing])
        text = f"{len(missing)} of {len(bad)} failed or partial rows of DESCRIPTORS are not listed"
        yield Problem(listed.name, text, len(missing), examples, remake(run, listed, _all(listed)))
    planned = is_in(mixed(names["id"], names["source"]), today(run.folder("segments")))
    extra = np.flatnonzero(~is_in(got, expected) & planned)
    if len(extra):
        examples = run.examples(listed, names["row"][extra])
        text = f"{len(extra)} rows that no row of DESCRIPTORS gives"
        yield Problem(listed.name, text, len(extra), examples, remake(run, listed, _all(listed)))


def _all(folder: Folder) -> list[str]:
    return [file.name for file in folder.files]


def encoded_videos(run: Run) -> Iterator[Problem]:
    if not (run.is_done("encode") and has_rows(run, "videos", "segments", "descriptors")):
        return
    videos, rows = run.folder("videos"), run.folder("descriptors")
    last = last_attempts(run)
    video = mixed(rows["video"][last], rows["source"][last])
    should = is_in(today(videos), video[rows["status"][last] != _FAILED])
    # A video without any row is a matter of counts.descriptors.
    should_not = is_in(today(videos), video) & ~should
    for folder in run.folders("encodings"):
        if not folder.is_whole:
            continue
        have = today(folder) if folder.columns else np.empty(0, np.uint64)
        missing = np.flatnonzero(should & ~is_in(today(videos), have))
        if len(missing):
            examples = run.examples(videos, videos["row"][missing])
            text = f"{len(missing)} of {int(should.sum())} described videos have no row"
            yield Problem(folder.name, text, len(missing), examples, remake(run, folder, []))
        extra = np.flatnonzero(is_in(have, today(videos)[should_not]))
        if len(extra):
            examples = run.examples(folder, folder["row"][extra])
            text = f"{len(extra)} rows of videos whose segments have all failed"
            yield Problem(folder.name, text, len(extra), examples)


def descriptor_counts(run: Run) -> Iterator[Problem]:
    """In a full run only: the lengths of the vector columns are not known in a quick one."""
    if run.quick or not has_rows(run, "videos", "segments", "descriptors"):
        return
    videos, rows = run.folder("videos"), run.folder("descriptors")
    last = last_attempts(run)
    video = mixed(rows["video"][last], rows["source"][last])
    found = _sums(video, np.ones(len(last)), today(videos))
    described = is_in(today(videos), video[rows["status"][last] != _FAILED])
    whole = today(videos)[described & (found == videos["num_segments"])]
    for folder in run.folders("encodings"):
        stream = _stream_of(folder)
        if folder.columns and f"length/{stream}" in rows.columns:
            length = np.maximum(rows[f"length/{stream}"][last], 0)
            expected = _sums(video, length, today(folder))
            wrong = (expected != folder["num_descriptors"]) & is_in(today(folder), whole)
            odd = np.flatnonzero(wrong)
            if len(odd):
                examples = run.examples(folder, folder["row"][odd])
                text = f"num_descriptors of {len(odd)} rows is not that of DESCRIPTORS"
                advice = remake(run, folder, _all(folder))
                yield Problem(folder.name, text, len(odd), examples, advice)


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
        odd = np.flatnonzero(np.maximum(found, 0) * size != encodings["num_descriptors"])
        if len(odd):
            examples = run.examples(encodings, encodings["row"][odd])
            text = f"{len(odd)} videos have not one row per encoded frame"
            yield Problem(folder.name, text, len(odd), examples, remake(run, folder, []))


def _frames(folder: Folder) -> tuple[np.ndarray, np.ndarray]:
    """Videos and their number of frames; what another check finds, copies and strangers, is left out."""
    if not folder.columns:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    own = np.flatnonzero(folder["maker"] == mixed(*_maker(folder.key)))
    videos, first = np.unique(today(folder)[own], return_index=True)
    return videos, (folder["num_rows"] - folder["num_again"])[own[first]]


# --- vectors ----------------------------------------------------------------------------------


def not_finite(run: Run) -> Iterator[Problem]:
    for folder in run.all_folders():
        for name in sorted(column for column in folder.columns if column.startswith("bad/")):
            odd = np.flatnonzero(folder[name])
            if len(odd):
                examples = run.examples(folder, folder["row"][odd])
                files = list(dict.fromkeys(e.rpartition(" in ")[2] for e in examples))
                text = f"{name.removeprefix('bad/')} of {len(odd)} rows holds NaN or infinity"
                yield Problem(folder.name, text, len(odd), examples, remake(run, folder, files))


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
        odd = np.flatnonzero(wrong)
        if len(odd):
            examples = run.examples(folder, folder["row"][odd])
            text = (
                f"{len(odd)} vectors of norm {norm[odd].min():.6g} to {norm[odd].max():.6g}, "
                f"{int((count[odd] == 0).sum())} of them without descriptors"
            )
            yield Problem(folder.name, text, len(odd), examples, remake(run, folder, _all(folder)))


def zero_vectors(run: Run) -> Iterator[Problem]:
    for folder in run.folders("encodings"):
        if "norm" in folder.columns:
            odd = np.flatnonzero((folder["norm"] == 0) & (folder["num_descriptors"] > 0))
            if len(odd):
                examples = run.examples(folder, folder["row"][odd])
                yield Problem(folder.name, f"{len(odd)} vectors", len(odd), examples)


def attention_sums(run: Run) -> Iterator[Problem]:
    for folder in run.folders("attention"):
        if "wrong_sum" in folder.columns:
            odd = np.flatnonzero(folder["wrong_sum"])
            if len(odd):
                examples = run.examples(folder, folder["row"][odd])
                yield Problem(folder.name, f"{len(odd)} videos", len(odd), examples)


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
