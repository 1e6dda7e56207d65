"""A run of three videos whose numbers can be worked out by hand, for docs/analysts.md."""

import json
from pathlib import Path

from pipelines.storage.columns import attention_type, encoding_type
from pipelines.storage.store import Store
from pipelines.storage.tables import ATTENTION, ENCODINGS, FAILURES, METRICS, SEGMENTS, VIDEOS

STREAM = "pool5_appearance"
TABLES = {
    "videos": "videos/1",
    "segments": "segments/1",
    "failures": "failures/1",
    "metrics": "metrics/1",
    f"encodings/ave-{STREAM}": "encodings/ave/1",
    f"attention/fv_vae-{STREAM}": "attention/fv_vae/1",
}

LABELS = {"a": ["shake"], "b": ["shake", "wave"], "c": ["wave"]}
VECTORS = {"a": [3.0, 4.0], "b": [4.0, 3.0], "c": [0.0, 2.0]}

PRECISION = {
    ("fv_vae", STREAM, "none"): {"shake": 0.9, "wave": 0.5},
    ("ave", STREAM, "none"): {"shake": 0.6, "wave": 0.8},
    ("fv_vae", "late_weighted", "late_weighted"): {"shake": 0.9, "wave": 0.85},
    ("ave", "late_weighted", "late_weighted"): {"shake": 0.95, "wave": 0.7},
    # The best one: its encoder and stream have two more fusions.
    ("ave+fv_vae", STREAM, "given"): {"shake": 0.92, "wave": 0.96},
    ("ave+fv_vae", STREAM, "two_stream"): {"shake": 0.1, "wave": 0.2},
    ("ave+fv_vae", STREAM, "kernel_sum"): {"shake": 0.3, "wave": 0.4},
}
"""{(encoder, stream, fusion): AP of each class}; mAP is their mean."""

ANSWERS = {
    "1. Which classes come out worst?": [
        ["shake", "ave+fv_vae", 0.92],
        ["wave", "ave+fv_vae", 0.96],
    ],
    # a has one segment, b two of which one is partial, c one that failed.
    "2. What failed, and why?": [
        ["ok", None, None, 2, 2],
        ["failed", "index", "empty_file", 1, 1],
        ["partial", "decode", "damaged", 1, 1],
    ],
    "3. Which encoder wins where?": [
        ["shake", "fv_vae", STREAM, 0.9],
        ["wave", "ave", STREAM, 0.8],
    ],
    # shake: (3 + 4) / 2, (4 + 3) / 2; wave: (4 + 0) / 2, (3 + 2) / 2.
    "4. What is the average vector of a class?": [
        ["shake", 2, [3.5, 3.5]],
        ["wave", 2, [2.0, 2.5]],
    ],
    # (12 + 12) / 25; 8 / (5 * 2); 6 / (5 * 2).
    "5. Which videos are nearly the same?": [["a", "b", 0.96], ["a", "c", 0.8], ["b", "c", 0.6]],
    # The means are 2 and 5.
    "6. Which frames drew attention?": [
        ["a", 7, 0.7, 1.5],
        ["b", 1, 0.1, 1.0],
        ["a", 3, 0.3, 0.5],
    ],
}


def make(root: Path) -> None:
    """Write the run, with rows of files that have changed since."""
    store = Store(str(root))
    _publish(store, "videos", VIDEOS.build([_video(name) for name in LABELS]))
    named = [("a", 0), ("b", 0), ("b", 1), ("c", 0)]
    segments = [
        {"segment_id": f"{name}#{k:05d}", "video_id": name, "segment": k, "num_segments": 1 + k}
        | {"source": f"source {name}"}
        for name, k in named
    ]
    _publish(store, "segments", SEGMENTS.build(segments))
    failures = [
        _failure("b#00001", "partial", "decode", "damaged"),
        _failure("c#00000", "failed", "index", "empty_file"),
    ]
    _publish(store, "failures", FAILURES.build(failures))
    _publish(store, "metrics", METRICS.build(list(_metrics())))
    rows = [_of(name, "ave", f"source {name}") | {"vector": v} for name, v in VECTORS.items()]
    rows.append(_of("a", "ave", "before") | {"vector": [100.0, -100.0]})
    rows = [row | {"num_descriptors": 1} for row in rows]
    table = ENCODINGS.build(rows, vector=encoding_type(2, "float32"))
    _publish(store, f"encodings/ave-{STREAM}", table)
    frames = [("a", 3, 1.0), ("a", 7, 3.0), ("b", 1, 5.0)]
    rows = [
        _of(name, "fv_vae", f"source {name}")
        | {"frame_index": index, "timestamp_s": index / 10, "value": value, "cells": [value]}
        for name, index, value in frames
    ]
    table = ATTENTION.build(rows, cells=attention_type(1))
    _publish(store, f"attention/fv_vae-{STREAM}", table)
    (root / "run.json").write_text(json.dumps({"steps": {}, "config": {}, "tables": TABLES}))


def _publish(store: Store, name: str, table: object) -> None:
    store.publish_table(f"{TABLES[name]}/x.parquet", table, {})


def _video(name: str) -> dict:
    facts = {"video_id": name, "uri": name, "labels": LABELS[name], "fold": 0, "status": "ok"}
    facts |= {"size_bytes": 1, "source": f"source {name}", "num_segments": 1}
    return dict.fromkeys(VIDEOS.schema().names) | facts


def _failure(segment: str, status: str, stage: str, kind: str) -> dict:
    facts = {"segment_id": segment, "video_id": segment[0], "segment": int(segment[-1])}
    facts |= {"source": f"source {segment[0]}", "num_frames": 0, "num_missing": 1}
    facts |= {"status": status, "stage": stage, "error_type": kind, "error": "why"}
    facts |= {"attempts": 1, "decode_s": 0.1}
    return dict.fromkeys(FAILURES.schema().names) | facts


def _metrics() -> list[dict]:
    rows = []
    for (encoder, stream, fusion), values in PRECISION.items():
        named = dict.fromkeys(METRICS.schema().names)
        named |= {"encoder": encoder, "stream": stream, "fusion": fusion, "protocol": "given"}
        named |= {"split": "all", "num_videos": 3}
        rows.append(named | {"metric": "mAP", "value": sum(values.values()) / 2})
        rows.append(named | {"metric": "mAP", "value": 1.0, "split": "fold:0"})
        rows += [named | {"metric": "AP", "class": k, "value": v} for k, v in values.items()]
        rows.append(named | {"metric": "AP", "class": "unseen", "value": None})
    return rows


def _of(name: str, encoder: str, source: str) -> dict:
    return {"video_id": name, "source": source, "encoder": encoder, "stream": STREAM, "fold": -1}
