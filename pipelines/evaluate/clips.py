"""Numbers of a network that its clips give: Hit@1 of single clips, and of each subnetwork alone."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from encoders.scores import metrics
from pipelines.evaluate.results import ScoreMatrix, mean_rows

SCORED_BY = "weighted"
"""The reading of an LSTM that SCORES have (VU 3.4.2). Of other networks they have the mean over
subnetworks."""

COLUMNS = ("video_id", "clip", "subnetwork", "labels", "scores")
"""The columns of CLIP_SCORES that are read."""

_Found = dict[str, list[tuple[np.ndarray, np.ndarray]]]
"""{metric: rows of the score matrix, and the rank at which a class of their video comes first, file
by file}."""


def clip_rows(
    matrix: ScoreMatrix, files: Iterable[pa.Table], protocol: str, top_k: Sequence[int] = ()
) -> list[dict]:
    """Return METRICS rows of a network's CLIP_SCORES, over all tested videos and by fold.

    clip_accuracy is the share of clips whose first class is one of their video's (VU Table 3.1:
    clip Hit@1). Where there are several subnetworks, or ways to read an LSTM, clip_accuracy_NAME,
    accuracy_NAME and top_K_NAME are of clips and of videos by the one called NAME alone.

    Of a file ranks are kept, and no scores.

    Args:
        matrix: the network's scores of videos, which tell what is true.
        files: `COLUMNS` of each file; a video is whole in one of them.
    """
    # A video without a class has nothing to hit.
    with_class = np.flatnonzero((matrix.targets > 0).any(axis=1)).tolist()
    row_of = {matrix.video_ids[row]: row for row in with_class}
    found: _Found = {}
    for table in files:
        _add(found, matrix, row_of, table)
    splits = {"all": np.ones(len(matrix.folds), bool)}
    folds = np.unique(matrix.folds).tolist()
    if len(folds) > 1:
        splits |= {f"fold:{fold}": matrix.folds == fold for fold in folds}
    rows = []
    most = sorted({min(k, len(matrix.classes)) for k in top_k})
    for name, parts in found.items():
        places, first = (np.concatenate(each) for each in zip(*parts, strict=True))
        ranks = {name: 1}
        if name.startswith("accuracy"):
            ranks |= {name.replace("accuracy", f"top_{k}"): k for k in most}
        for split, is_inside in splits.items():
            inside = is_inside[places]
            num_videos = len(np.unique(places[inside]))
            for metric, k in ranks.items():
                value = float((first[inside] < k).mean()) if num_videos else None
                rows.append(_row(matrix, protocol, split, metric, value, num_videos))
    return rows + (mean_rows(rows) if len(folds) > 1 else [])


def _add(found: _Found, matrix: ScoreMatrix, row_of: dict[str, int], table: pa.Table) -> None:
    table = table.filter(pa.array([video in row_of for video in table["video_id"].to_pylist()]))
    if not table.num_rows:
        return
    places = np.array([row_of[video] for video in table["video_id"].to_pylist()], np.int64)
    clips = table["clip"].to_numpy().astype(np.int64)
    names = np.array(table["subnetwork"].to_pylist(), object)
    scores = _by_class(table, matrix.classes)

    def add(metric: str, rows: np.ndarray, values: np.ndarray) -> None:
        ranks = metrics.hit_ranks(values, matrix.targets[rows])
        found.setdefault(metric, []).append((rows, ranks))

    several = sorted(set(names.tolist()))
    read = names == SCORED_BY if SCORED_BY in several else np.ones(len(names), bool)
    most = int(clips.max()) + 1
    of_clip, means = _means(places[read] * most + clips[read], scores[read])
    add("clip_accuracy", of_clip // most, means)
    for name in several if len(several) > 1 else ():
        own = names == name
        add(f"clip_accuracy_{name}", places[own], scores[own])
        add(f"accuracy_{name}", *_means(places[own], scores[own]))


def _by_class(table: pa.Table, classes: list[str]) -> np.ndarray:
    """Return the scores [n, K] with the columns in the order of `classes`."""
    labels = table["labels"][0].as_py()
    flat = table["scores"].combine_chunks().flatten().to_numpy().astype(np.float64)
    order = [labels.index(label) for label in classes]
    return flat.reshape(-1, len(labels))[:, order]


def _means(keys: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each key once, ascending, and the mean of its scores."""
    unique, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.zeros((len(unique), scores.shape[1]))
    np.add.at(sums, place, scores)
    return unique, sums / counts[:, None]


def _row(
    matrix: ScoreMatrix,
    protocol: str,
    split: str,
    metric: str,
    value: float | None,
    num_videos: int,
) -> dict:
    unknown = dict.fromkeys(
        ("weights", "class", "ci_low", "ci_high", "sd", "num_positives", "parts")
    )
    return unknown | {
        **dict(zip(("encoder", "stream", "fusion"), matrix.key, strict=True)),
        "protocol": protocol,
        "split": split,
        "metric": metric,
        "value": value,
        "num_videos": num_videos,
    }
