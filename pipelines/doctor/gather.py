"""Row groups to the numbers that the doctor keeps of each row. Letters: n rows, D values of a vector.

Columns named `id`, `source`, `video` and `key` are fingerprints: 64 bits in place of text.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.storage.tables import DESCRIPTORS

STATUSES = ("ok", "partial", "failed")
"""A status as a number is its place here; any other text is 3."""

Columns = dict[str, np.ndarray]


def fingerprint(text: str) -> np.uint64:
    """64 bits that stand for a text within this process."""
    return np.uint64(hash(text) & 0xFFFFFFFFFFFFFFFF)


def fingerprints(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[n] of a column of texts without nulls."""
    encoded = _array(column).dictionary_encode()
    words = np.array([fingerprint(text) for text in encoded.dictionary.to_pylist()], np.uint64)
    return words[encoded.indices.to_numpy()] if len(encoded) else words


def mixed(*parts: np.ndarray | np.uint64) -> np.ndarray:
    """One fingerprint of several columns together (the finaliser of splitmix64 after each)."""
    total = np.zeros(1, np.uint64)
    for part in parts:
        total = (total + np.uint64(0x9E3779B97F4A7C15)) ^ np.asarray(part).astype(np.uint64)
        total = (total ^ (total >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        total = (total ^ (total >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total ^= total >> np.uint64(31)
    return total


def is_not_finite(values: np.ndarray) -> np.ndarray:
    """Where NaN or infinite; float16 by its bits, which is many times faster than its arithmetic."""
    if values.dtype == np.float16:
        return (values.view(np.uint16) & 0x7C00) == 0x7C00
    return ~np.isfinite(values)


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return _array(column).to_numpy(zero_copy_only=False)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Items of each list; -1 for null."""
    return pc.fill_null(pc.list_value_length(_array(column)), -1).to_numpy().astype(np.int64)


def _status(column: pa.ChunkedArray) -> np.ndarray:
    place = pc.index_in(_array(column), pa.array(STATUSES))
    return pc.fill_null(place, len(STATUSES)).to_numpy().astype(np.uint8)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of vectors as [n, D]; a missing vector is all NaN."""
    array = _array(column)
    width = array.type.list_size
    if not array.null_count:
        return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    rows = np.full((len(array), width), np.nan)
    rows[array.is_valid().to_numpy(zero_copy_only=False)] = _matrix(array.drop_null())
    return rows


def _videos(table: pa.Table) -> Columns:
    ids, labels = fingerprints(table["video_id"]), _array(table["labels"])
    lengths, texts = pc.list_value_length(labels).to_numpy(), labels.flatten()
    words = fingerprints(texts)
    return {
        "id": ids,
        "source": fingerprints(table["source"]),
        "num_segments": _numbers(table["num_segments"]),
        "fold": _numbers(table["fold"]),
        "num_labels": lengths,
        # Not one a row, but one a label of a row.
        "video_label": mixed(np.repeat(ids, lengths), words),
        "classes": np.array(texts.unique().to_pylist(), object),
    }


def _segments(table: pa.Table) -> Columns:
    return {
        "id": fingerprints(table["segment_id"]),
        "video": fingerprints(table["video_id"]),
        "source": fingerprints(table["source"]),
        "segment": _numbers(table["segment"]),
        "num_segments": _numbers(table["num_segments"]),
    }


def _attempt(table: pa.Table) -> Columns:
    """What DESCRIPTORS and FAILURES share."""
    return {
        "id": fingerprints(table["segment_id"]),
        "video": fingerprints(table["video_id"]),
        "source": fingerprints(table["source"]),
        "status": _status(table["status"]),
        "attempts": _numbers(table["attempts"]),
        "num_frames": _numbers(table["num_frames"]),
        "num_missing": _numbers(table["num_missing"]),
        "has_reason": _array(table["error_type"]).is_valid().to_numpy(zero_copy_only=False),
    }


def _descriptors(table: pa.Table) -> Columns:
    kept = _attempt(table)
    kept["num_indices"] = _lengths(table["frame_indices"])
    kept["num_times"] = _lengths(table["timestamps_s"])
    for name in table.column_names[len(DESCRIPTORS.columns) :]:
        kept[f"length/{name}"] = _lengths(table[name])
        kept[f"bad/{name}"] = _bad_lists(table[name])
    return kept


def _bad_lists(column: pa.ChunkedArray) -> np.ndarray:
    """[n]: whether a list of vectors holds a value that is not finite."""
    array = _array(column)
    inner = array.flatten()
    bad = is_not_finite(inner.flatten().to_numpy(zero_copy_only=False))
    if not bad.any() and not inner.null_count:
        return np.zeros(len(array), bool)
    row = np.repeat(np.arange(len(array)), np.maximum(_lengths(column), 0))
    bad = is_not_finite(_matrix(inner)).any(1)
    return np.bincount(row[bad], minlength=len(array)) > 0


def _samples(table: pa.Table) -> Columns:
    kept = {"key": mixed(fingerprints(table["video_id"]), _numbers(table["frame"]))}
    if "descriptors" in table.column_names:
        kept["bad/descriptors"] = _bad_lists(table["descriptors"])
    return kept


def _curves(table: pa.Table) -> Columns:
    texts = [fingerprints(table[name]) for name in ("codebook", "stream", "quantity")]
    return {"key": mixed(*texts, _numbers(table["fold"]), _numbers(table["step"]))}


def _solutions(table: pa.Table) -> Columns:
    texts = [fingerprints(table[name]) for name in ("encoder", "stream", "label")]
    return {"key": mixed(*texts, _numbers(table["fold"]))}


def _fusions(table: pa.Table) -> Columns:
    names = ("encoder", "stream", "part_encoder", "part_stream")
    texts = [fingerprints(table[name]) for name in names]
    return {"key": mixed(*texts, _numbers(table["fold"]))}


def _encodings(table: pa.Table) -> Columns:
    kept = {
        "id": fingerprints(table["video_id"]),
        "source": fingerprints(table["source"]),
        "maker": _maker(table),
        "num_descriptors": _numbers(table["num_descriptors"]),
    }
    if "vector" in table.column_names:
        vectors = _matrix(table["vector"])
        kept["bad/vector"] = is_not_finite(vectors).any(1)
        with np.errstate(invalid="ignore", over="ignore"):
            norms = [np.linalg.norm(vector.astype(np.float64)) for vector in vectors]
        kept["norm"] = np.array(norms, np.float64)
    return kept


def _attention(table: pa.Table) -> Columns:
    values, frames = _numbers(table["value"]), _numbers(table["frame_index"])
    kept = {
        "id": fingerprints(table["video_id"]),
        "source": fingerprints(table["source"]),
        "maker": _maker(table),
        "frame": frames,
        "bad/value": is_not_finite(values) | is_not_finite(_numbers(table["timestamp_s"])),
    }
    if "cells" in table.column_names:
        cells = _matrix(table["cells"])
        kept["bad/cells"] = is_not_finite(cells).any(1)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = cells.astype(np.float64).sum(1)
            scale = np.maximum(np.abs(cells).astype(np.float64).sum(1), 1e-30)
            # A float32 that was rounded once: 6e-8 of it.
            kept["wrong_sum"] = np.abs(values - sums) > 1e-6 * scale
    return kept


def _maker(table: pa.Table) -> np.ndarray:
    """[n]: a fingerprint of the codebook that each row names by encoder, stream and fold."""
    return mixed(
        fingerprints(table["encoder"]), fingerprints(table["stream"]), _numbers(table["fold"])
    )


def _attention_by_video(rows: Columns) -> Columns:
    """One row per video of a file in place of one per frame: a video's frames are written together."""
    key = mixed(rows["id"], rows["source"], rows["maker"])
    _, first, video = np.unique(key, return_index=True, return_inverse=True)
    _, kept_frames = np.unique(mixed(key, rows["frame"]), return_index=True)
    again = np.ones(len(key), bool)
    again[kept_frames] = False
    count = len(first)
    named = {name: rows[name][first] for name in ("id", "source", "maker", "row")}
    flags = {name: rows[name] for name in rows if name.startswith("bad/") or name == "wrong_sum"}
    return (
        named
        | {"num_rows": np.bincount(video, minlength=count)}
        | {"num_again": np.bincount(video[again], minlength=count)}
        | {name: np.bincount(video[flag], minlength=count) > 0 for name, flag in flags.items()}
    )


GATHER = {
    "videos": _videos,
    "segments": _segments,
    "descriptors": _descriptors,
    "failures": _attempt,
    "samples": _samples,
    "curves": _curves,
    "encodings": _encodings,
    "attention": _attention,
    "solutions": _solutions,
    "fusions": _fusions,
}
"""What is kept of a row group, by table; SCORES and METRICS are read by `pipelines.doctor.score_checks`."""

REDUCE = {"attention": _attention_by_video}
"""What becomes of a whole file's columns, by table."""
