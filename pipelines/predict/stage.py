"""The Ray callable that turns encodings of new videos into PREDICTIONS."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipelines.classify.examples import read_vectors
from pipelines.cluster.meter import SILENT, Meter
from pipelines.predict.model import Model, NetworkPart, Scorer
from pipelines.storage.store import Store
from pipelines.storage.tables import PREDICTIONS


class ScoreVideos:
    """A mapper of videos, with the file and row of their vector or scores of each part, to a row
    for each class.

    Args:
        store: of the encodings.
        run: the store of the run that has the classifiers.
    """

    def __init__(self, store: Store, run: Store, model: Model, meter: Meter = SILENT) -> None:
        meter.joined("score")
        self.store, self.meter, self.scorer = store, meter, Scorer(run, model)

    def __call__(self, videos: pa.Table) -> pa.Table:
        with self.meter("score"):
            values = [
                self._values(
                    read_scores if isinstance(part, NetworkPart) else read_vectors,
                    videos[f"file_{place}"].to_pylist(),
                    videos[f"row_{place}"],
                )
                for place, part in enumerate(self.scorer.model.parts)
            ]
            return self._rows(videos["video_id"].to_pylist(), self.scorer.scores(values))

    def _values(self, read: Callable, files: list[str], rows: pa.ChunkedArray) -> np.ndarray:
        """Return the rows [n, D] at these places; each file is read once."""
        places, of_file = rows.to_numpy(), np.array(files, object)
        parts, order = [], []
        for name in dict.fromkeys(files):
            own = np.flatnonzero(of_file == name)
            parts.append(read(self.store, name, places[own]))
            order.append(own)
        vectors = np.concatenate(parts)
        result = np.empty_like(vectors)
        result[np.concatenate(order)] = vectors
        return result

    def _rows(self, video_ids: list[str], scores: np.ndarray) -> pa.Table:
        classes = self.scorer.classes
        # Of equal scores the first class comes first.
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty(scores.shape, np.int32)
        np.put_along_axis(ranks, order, np.arange(1, len(classes) + 1, dtype=np.int32)[None], 1)
        probabilities = self.scorer.model.sigmoid.probabilities(scores)
        columns = {
            "video_id": pa.array(np.repeat(np.array(video_ids, object), len(classes)), pa.string()),
            "class": pa.array(np.tile(np.array(classes, object), len(video_ids)), pa.string()),
            "score": pa.array(scores.ravel()),
            "probability": pa.array(probabilities.ravel()),
            "rank": pa.array(ranks.ravel()),
        }
        return PREDICTIONS.from_columns(columns)


def read_scores(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Return some rows [n, K] of a file of NETWORK_SCORES."""
    with store.open_parquet(name) as file:
        column = file.read(columns=["scores"])["scores"]
    return np.array(column.take(pa.array(rows)).to_pylist())
