"""Hit@1 of clips and of subnetworks, against a loop over the rows of CLIP_SCORES."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from pipelines.evaluate.clips import clip_rows
from pipelines.evaluate.results import ScoreMatrix

CLASSES, NUM, CLIPS = ["a", "b", "c", "d"], 14, 5


def network(names: tuple[str, ...], seed: int = 0) -> tuple[ScoreMatrix, list[dict]]:
    """Scores of videos, some of two classes and one of none, and rows of CLIP_SCORES."""
    draw = np.random.default_rng(seed)
    targets = np.eye(4, dtype=np.float32)[draw.integers(0, 4, NUM)]
    targets[0, :2], targets[1] = 1, 0
    # A class that a video does not count for is none of its own.
    targets[1, 2] = targets[2, targets[2].argmin()] = -1
    labels = ["c", "a", "d", "b"]
    rows = [
        {
            "video_id": f"v{video:02d}",
            "clip": clip,
            "subnetwork": name,
            "labels": labels,
            "scores": draw.normal(size=4).round(3).tolist(),
        }
        for video in range(NUM)
        for clip in range(CLIPS)
        for name in names
    ]
    matrix = ScoreMatrix(
        encoder="net",
        stream="rgb",
        video_ids=[f"v{video:02d}" for video in range(NUM)],
        folds=np.arange(NUM) % 2,
        classes=CLASSES,
        scores=draw.normal(size=(NUM, 4)),
        targets=targets,
    )
    return matrix, rows


def files(rows: list[dict]) -> list[pa.Table]:
    """Two files, and a video that is not tested."""
    other = [row | {"video_id": "other"} for row in rows[:3]]
    half = len(rows) // 2 // CLIPS * CLIPS
    return [pa.Table.from_pylist(part) for part in (rows[:half], rows[half:] + other)]


def share(ranked: dict[tuple, list[float]], matrix: ScoreMatrix, k: int, fold: int | None) -> float:
    """The share of (video, ...) with a class of the video among the first k."""
    hits = []
    for (video, *_), scores in ranked.items():
        row = matrix.video_ids.index(video)
        true = {
            name for name, is_true in zip(CLASSES, matrix.targets[row], strict=True) if is_true > 0
        }
        if true and fold in (None, int(matrix.folds[row])):
            first = sorted(zip(scores, ["c", "a", "d", "b"], strict=True), reverse=True)[:k]
            hits.append(bool(true & {name for _, name in first}))
    return sum(hits) / len(hits)


@pytest.mark.parametrize(
    "names", [("image",), ("difference", "image"), ("last", "max", "sum", "weighted")]
)
def test_they_are_those_of_a_loop(names: tuple[str, ...]) -> None:
    matrix, rows = network(names)
    found = {
        (row["split"], row["metric"]): row["value"]
        for row in clip_rows(matrix, files(rows), "given", top_k=(2, 9))
    }
    values: dict[tuple, list] = defaultdict(list)
    for row in rows:
        for key in (("all", row["clip"]), (row["subnetwork"], row["clip"]), (row["subnetwork"],)):
            if key[0] == "all" and "weighted" in names and row["subnetwork"] != "weighted":
                continue
            values[(key[0], row["video_id"], *key[1:])].append(row["scores"])
    means = {key: np.mean(scores, 0).tolist() for key, scores in values.items()}

    def of(name: str, size: int) -> dict[tuple, list[float]]:
        return {key[1:]: v for key, v in means.items() if key[0] == name and len(key) == size}

    for split, fold in (("all", None), ("fold:0", 0), ("fold:1", 1)):
        expected = {"clip_accuracy": share(of("all", 3), matrix, 1, fold)}
        for name in names if len(names) > 1 else ():
            expected[f"clip_accuracy_{name}"] = share(of(name, 3), matrix, 1, fold)
            expected[f"accuracy_{name}"] = share(of(name, 2), matrix, 1, fold)
            expected[f"top_2_{name}"] = share(of(name, 2), matrix, 2, fold)
            expected[f"top_4_{name}"] = share(of(name, 2), matrix, 4, fold)
        own = {metric: value for (of_split, metric), value in found.items() if of_split == split}
        assert own == pytest.approx(expected)
        for metric, value in expected.items():
            folds = [found[f"fold:{k}", metric] for k in (0, 1)]
            assert found["mean", metric] == pytest.approx(np.mean(folds)), value
