"""A small sound run that is made without Ray or a network, for the tests of the doctor.

Six videos of two classes and two folds: v0 to v2 are whole, v3 has two segments and misses a frame,
v4 has no label, and of v5 nothing could be decoded. Two encoders, one of them fitted per fold and
with attention, on two streams.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.numpy

from encoders.descriptors.streams import streams_of
from pipelines.evaluate.results import ScoreMatrix, gain_rows, metric_rows, results
from pipelines.ledger import marks
from pipelines.run.combination import Combination
from pipelines.settings.config import Config, digest
from pipelines.storage.columns import (
    Table,
    attention_type,
    descriptor_type,
    encoding_type,
    file_name,
)
from pipelines.storage.store import DONE, Store
from pipelines.storage.tables import (
    ATTENTION,
    CURVES,
    DESCRIPTORS,
    ENCODINGS,
    FAILURES,
    FUSIONS,
    METRICS,
    SAMPLES,
    SCORES,
    SEGMENTS,
    SOLUTIONS,
    VIDEOS,
)
from pipelines.video.stages import plan_segments

CONFIG = Config().with_settings(
    [
        "describe.nodes=pool5",
        "describe.spp_levels=2,1",
        "encode.encoders=ave,fv_vae",
        "fv_vae.lambda3=1",
        "evaluate.top_k=1",
        "evaluate.stream_weights=1,3",
    ]
)
CELLS, WIDTH, DIM = 5, 3, 7
STREAMS = ("pool5_appearance", "pool5_difference")
DESCRIBED = streams_of(
    {"pool5": (WIDTH, 7, 7)},
    [(kind, spec, ("pool5",)) for kind, spec in CONFIG.describe.specs],
    "per_position",
    CONFIG.describe.spp_levels,
)
CLASSES = ("bend", "walk")
INDEXED = "11aa11aa11aa"
"""Digest of VIDEOS and SEGMENTS."""

TABLES = {
    "videos": f"videos/{INDEXED}",
    "segments": f"segments/{INDEXED}",
    "descriptors": "descriptors/22bb22bb22bb",
    "failures": "failures/33cc33cc33cc",
    "metrics": "metrics/44dd44dd44dd",
}
BOOKS = [
    (encoder, stream, fold)
    for stream in STREAMS
    for encoder, folds in (("ave", (-1,)), ("fv_vae", (0, 1)))
    for fold in folds
]


def width(stream: str) -> int:
    return WIDTH * (2 if stream.endswith("difference") else 1)


def dim(encoder: str, stream: str) -> int:
    return width(stream) if encoder == "ave" else DIM


def book_digest(encoder: str, stream: str, fold: int) -> str:
    return digest(encoder, stream, fold)


def key(table: str, encoder: str, stream: str, fold: int) -> str:
    return f"{table}/{encoder}-{stream}" + ("" if fold < 0 else f"/fold-{fold}")


for _book in BOOKS:
    _name = f"{_book[0]}-{_book[1]}/{book_digest(*_book)}"
    TABLES[key("encodings", *_book)] = f"encodings/{_name}"
    if _book[0] == "fv_vae":
        TABLES[key("attention", *_book)] = f"attention/{_name}"
PAIRS = [(encoder, stream) for stream in STREAMS for encoder in ("ave", "fv_vae")]
for _encoder, _stream in PAIRS:
    TABLES[f"scores/{_encoder}-{_stream}"] = f"scores/{_encoder}-{_stream}/55ee55ee55ee"
    TABLES[f"solutions/{_encoder}-{_stream}"] = f"classifiers/{_encoder}-{_stream}/55ee55ee55ee"
COMBINATION = Combination("ave", "late_weighted", tuple(pair for pair in PAIRS if pair[0] == "ave"))
"""A fused result with scores of its own."""
SCORED = [*PAIRS, COMBINATION.pair]
for _table in ("scores", "fusions"):
    TABLES[f"{_table}/ave-late_weighted"] = f"{_table}/ave-late_weighted/66ee66ee66ee"


def footer(step: str, **more: str) -> dict[str, str]:
    facts = {
        "format": "1",
        "step": step,
        "recipe": "fcvid",
        "config": digest(CONFIG),
        "weights": "some.pth",
        "backbone": "vgg19 pool5",
        "decoder": "pyav",
        "sampling": repr(CONFIG.sampling),
        "code": "0.1.0 abcdef",
    }
    return {f"video_fisher.{name}": value for name, value in (facts | more).items()}


def make(root: Path) -> None:
    """Writes the run."""
    store, draw = Store(str(root)), np.random.default_rng(0)
    videos = VIDEOS.build([_video(place) for place in range(6)])
    _publish(store, VIDEOS, TABLES["videos"], videos, footer("index"))
    segments = plan_segments(videos)
    _publish(store, SEGMENTS, TABLES["segments"], segments, footer("index"))
    store.publish_json(marks.place(f"{TABLES['videos']}/{DONE}"), {})

    rows = [_described(row, draw) for row in segments.to_pylist()]
    kinds = {stream: descriptor_type(width(stream)) for stream in STREAMS}
    for part in (rows[:3], rows[3:]):
        table = DESCRIPTORS.build(part, **kinds)
        _publish(store, DESCRIPTORS, TABLES["descriptors"], table, footer("describe"))
    columns = FAILURES.schema().names
    bad = [{c: row[c] for c in columns} for row in rows if row["status"] != "ok"]
    name = f"{TABLES['failures']}/failures.parquet"
    store.publish_table(name, FAILURES.build(bad), footer("describe"))
    store.publish_json(marks.place(f"{TABLES['descriptors']}/_done-{INDEXED}.json"), {})

    for stream in STREAMS:
        _sample(store, stream, draw)
    for book in BOOKS:
        _codebook(store, book)
        _encode(store, book, rows, draw)
    matrices = [_classify(store, encoder, stream, draw) for encoder, stream in PAIRS]
    matrices.append(_fuse(store, matrices))
    _evaluate(store, matrices)
    _record(store)


def _publish(store: Store, table: Table, folder: str, rows: pa.Table, made_by: dict) -> None:
    store.publish_table(f"{folder}/{file_name(rows, table.key)}", rows, made_by)


def _video(place: int) -> dict:
    facts = dict.fromkeys(VIDEOS.schema().names)
    failed = place == 5
    return facts | {
        "video_id": f"v{place}",
        "uri": f"/videos/v{place}",
        "labels": [] if place == 4 else [CLASSES[place % 2]],
        "fold": -1 if place == 4 else place // 2 % 2,
        "size_bytes": 100,
        "source": f"source{place}",
        "num_segments": 2 if place == 3 else 1,
        "status": "failed" if failed else "ok",
        "stage": "index" if failed else None,
        "error_type": "empty_file" if failed else None,
        "error": "it is empty" if failed else None,
    }


def _described(segment: dict, draw: np.random.Generator) -> dict:
    failed, partial = segment["video_id"] == "v5", segment["segment_id"] == "v3#00001"
    frames = 0 if failed else 3
    # The second segment of v3 knows the frame before it.
    counts = {STREAMS[0]: frames, STREAMS[1]: frames if partial else max(0, frames - 1)}
    return {
        **{n: segment[n] for n in ("segment_id", "video_id", "segment", "source")},
        "num_frames": frames,
        "num_missing": int(partial),
        "frame_indices": [10 * segment["segment"] + k for k in range(frames)],
        "timestamps_s": [float(k) for k in range(frames)],
        "status": "failed" if failed else "partial" if partial else "ok",
        "stage": "index" if failed else "decode" if partial else None,
        "error_type": "empty_file" if failed else "damaged" if partial else None,
        "error": "why" if failed or partial else None,
        "attempts": 1,
        "decode_s": 0.1,
        "decoder": None if failed else "pyav 17",
        **{
            stream: None
            if failed
            else draw.random((count * CELLS, width(stream))).astype(np.float16).tolist()
            for stream, count in counts.items()
        },
    }


def _sample(store: Store, stream: str, draw: np.random.Generator) -> None:
    frames = [{"video_id": f"v{k}", "frame": 1} for k in range(3)]
    vectors = [draw.random((CELLS, width(stream))).astype(np.float16).tolist() for _ in frames]
    rows = [row | {"descriptors": v} for row, v in zip(frames, vectors, strict=True)]
    table = SAMPLES.build(rows, descriptors=descriptor_type(width(stream)))
    _publish(store, SAMPLES, f"samples/{stream}/66ff66ff66ff", table, footer("fit"))
    store.publish_json(marks.place(f"samples/{stream}/66ff66ff66ff/{DONE}"), {})


def _codebook(store: Store, book: tuple[str, str, int]) -> None:
    name = book_digest(*book)
    folder, made_by = f"codebooks/{book[0]}-{book[1]}/{name}", footer("fit", codebook=name)
    tensors = {"mean": np.ones(4, np.float32), "bins": np.arange(3), "half": np.ones(2, np.float16)}
    store.publish(
        f"{folder}/codebook.safetensors", safetensors.numpy.save(tensors, {"encoder": "{}"})
    )
    if book[0] == "fv_vae":
        named = dict(zip(("codebook", "stream", "fold"), book, strict=True))
        rows = [named | {"quantity": "loss", "step": k, "value": 1.0} for k in range(3)]
        store.publish_table(f"{folder}/curves.parquet", CURVES.build(rows), made_by)
    store.publish_json(marks.place(f"{folder}/{DONE}"), made_by)


def _encode(store: Store, book: tuple, rows: list[dict], draw: np.random.Generator) -> None:
    encoder, stream, fold = book
    made_by = footer("encode", codebook=book_digest(*book))
    encodings, attention = [], []
    for video in sorted({row["video_id"] for row in rows if row["status"] != "failed"}):
        own = [row for row in rows if row["video_id"] == video]
        count = sum(len(row[stream]) for row in own)
        vector = draw.normal(size=dim(encoder, stream))
        named = {"video_id": video, "source": own[0]["source"], "encoder": encoder}
        named |= {"stream": stream, "fold": fold}
        unit = (vector / np.linalg.norm(vector)).astype(np.float32).tolist()
        encodings.append(named | {"num_descriptors": count, "vector": unit})
        frames = [
            (index, time)
            for row in own
            for index, time in list(zip(row["frame_indices"], row["timestamps_s"], strict=True))[
                -len(row[stream]) // CELLS :
            ]
        ]
        for index, time in frames:
            cells = draw.random(CELLS).astype(np.float32)
            value = np.float32(cells.sum(dtype=np.float64))
            facts = {"frame_index": index, "timestamp_s": time, "value": value, "cells": cells}
            attention.append(named | facts)
    kind = encoding_type(dim(encoder, stream), "float32")
    for part in (encodings[:2], encodings[2:]):
        table = ENCODINGS.build(part, vector=kind)
        _publish(store, ENCODINGS, TABLES[key("encodings", *book)], table, made_by)
    store.publish_json(marks.place(f"{TABLES[key('encodings', *book)]}/_done-{INDEXED}.json"), {})
    if encoder == "fv_vae":
        table = ATTENTION.build(attention, cells=attention_type(CELLS))
        _publish(store, ATTENTION, TABLES[key("attention", *book)], table, made_by)


def _classify(store: Store, encoder: str, stream: str, draw: np.random.Generator) -> ScoreMatrix:
    folder = TABLES[f"scores/{encoder}-{stream}"]
    tested = [0, 1, 2, 3]
    folds = np.array([place // 2 % 2 for place in tested])
    scores = draw.normal(size=(len(tested), len(CLASSES)))
    targets = np.array([[place % 2 == k for k in (0, 1)] for place in tested], np.float32)
    for fold in (0, 1):
        rows = [
            {
                "video_id": f"v{place}",
                "encoder": encoder,
                "stream": stream,
                "fold": fold,
                "label": label,
                "is_true": bool(targets[place, k]),
                "score": scores[place, k],
            }
            for place in tested
            if folds[place] == fold
            for k, label in enumerate(CLASSES)
        ]
        name = f"fold-{fold:05d}"
        store.publish_table(f"{folder}/{name}.parquet", SCORES.build(rows), footer("classify"))
        weights = {"weights": np.ones((2, dim(encoder, stream)), np.float32)}
        data = safetensors.numpy.save(weights | {"bias": np.zeros(2, np.float32)})
        classifiers = folder.replace("scores", "classifiers", 1)
        store.publish(f"{classifiers}/{name}.safetensors", data)
        solved = dict.fromkeys(("c", "primal", "dual", "gap", "seconds"), 1.0)
        solved |= {"num_positive": 1, "num_negative": 1, "rounds": 1, "is_solved": True}
        rows = [
            {"encoder": encoder, "stream": stream, "fold": fold, "label": label}
            | {"form": "gram", "loss": "hinge"}
            | solved
            for label in CLASSES
        ]
        solutions = f"{classifiers}/solutions-{fold:05d}.parquet"
        store.publish_table(solutions, SOLUTIONS.build(rows), footer("classify"))
    store.publish_json(marks.place(f"{folder}/{DONE}"), {})
    return ScoreMatrix(
        encoder=encoder,
        stream=stream,
        video_ids=[f"v{place}" for place in tested],
        folds=folds,
        classes=list(CLASSES),
        scores=scores,
        targets=targets,
    )


def _fuse(store: Store, matrices: list[ScoreMatrix]) -> ScoreMatrix:
    """SCORES and FUSIONS of the combination: the mean of its parts."""
    encoder, stream = COMBINATION.pair
    parts = [one for one in matrices if (one.encoder, one.stream) in COMBINATION.parts]
    first, scores = parts[0], np.mean([part.scores for part in parts], 0)
    folder, weights = TABLES[f"scores/{encoder}-{stream}"], TABLES[f"fusions/{encoder}-{stream}"]
    named = {"encoder": encoder, "stream": stream}
    for fold in (0, 1):
        rows = [
            named
            | {"video_id": video, "fold": fold, "label": label}
            | {"is_true": bool(first.targets[place, k]), "score": scores[place, k]}
            for place, video in enumerate(first.video_ids)
            if first.folds[place] == fold
            for k, label in enumerate(CLASSES)
        ]
        name = f"fold-{fold:05d}.parquet"
        store.publish_table(f"{folder}/{name}", SCORES.build(rows), footer("classify"))
        rows = [
            named
            | {"fold": fold, "part_encoder": part.encoder, "part_stream": part.stream}
            | {"weight": 1 / len(parts), "slope": None, "intercept": None}
            for part in parts
        ]
        store.publish_table(f"{weights}/{name}", FUSIONS.build(rows), footer("classify"))
    store.publish_json(marks.place(f"{folder}/{DONE}"), {})
    changes = named | {"scores": scores, "fusion": stream}
    return dataclasses.replace(first, **changes)


def _evaluate(store: Store, matrices: list[ScoreMatrix]) -> None:
    single = {(matrix.encoder, matrix.stream): matrix for matrix in matrices}
    settings = dataclasses.replace(CONFIG.evaluate, bootstrap=20)
    found = results(PAIRS, settings, lambda *pair: single[pair], (COMBINATION,))
    rows = []
    for matrix, best_part in found:
        own = metric_rows(matrix, settings, "group_kfold")
        rows += own + gain_rows(matrix, own, best_part, settings)
    assert {row["fusion"] for row in rows} == {
        "none",
        "given",
        "two_stream",
        "late_weighted",
    }
    assert not any(isinstance(row["value"], float) and math.isnan(row["value"]) for row in rows)
    folder = TABLES["metrics"]
    store.publish_table(f"{folder}/metrics.parquet", METRICS.build(rows), footer("evaluate"))
    store.publish_json(marks.place(f"{folder}/{DONE}"), {})
    store.publish("report/index.html", b"<html></html>")
    store.publish_json(marks.place(f"report/_done-{folder.rpartition('/')[2]}.json"), {})


def marks_of_steps() -> dict[str, list[str]]:
    """As `pipelines.run.job.Job.marks`, without those of codebooks."""
    metrics = TABLES["metrics"]
    return {
        "index": [f"{TABLES['videos']}/{DONE}"],
        "describe": [f"{TABLES['descriptors']}/_done-{INDEXED}.json"],
        "fit": [],
        "encode": [f"{TABLES[key('encodings', *book)]}/_done-{INDEXED}.json" for book in BOOKS],
        "classify": [f"{TABLES[f'scores/{e}-{s}']}/{DONE}" for e, s in SCORED],
        "evaluate": [f"{metrics}/{DONE}", f"report/_done-{metrics.rpartition('/')[2]}.json"],
    }


def _record(store: Store) -> None:
    steps = {
        step: {"digest": digest(step, names), "done": 1} for step, names in marks_of_steps().items()
    }
    record = {"steps": steps, "tables": TABLES, "config": dataclasses.asdict(CONFIG)}
    record["streams"] = [dataclasses.asdict(stream) for stream in DESCRIBED.values()]
    record["combinations"] = [dataclasses.asdict(COMBINATION)]
    store.publish_json("run.json", record | {"split": {"kind": "group_kfold", "num_folds": 2}})
