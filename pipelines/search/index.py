"""The index of a search: the encodings of one encoder and stream, compressed (VU 2.3.3), and stored
with the run.

    search/<encoder>-<stream>/<digest>/   *.parquet (SEARCH)   compression.safetensors

It is stored as vectors, in Parquet, and not as a file of faiss: reading one of those takes sizes
and offsets out of the file and trusts them, which a hostile file turns into writes out of bounds.
Building the faiss index of what a query reads takes milliseconds, and analysts can read the vectors
too.

A query is compared with all videos, a file of them at a time: 64 MiB of vectors, of 131,072 videos.

Letters: N videos, D length of an encoding, P of a compressed one.
"""

import hashlib
import logging
import time
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encoders.codebooks.pca import Pca
from encoders.encodings.compress import Compression, fit_whitening
from encoders.scores.retrieval import average_precision, mean_average_precision, ranking
from pipelines.errors import RunError
from pipelines.ledger import marks
from pipelines.run.folders import folder_name
from pipelines.run.saved import Encodings
from pipelines.run.versions import FORMAT_VERSION, code_revision
from pipelines.search import encodings
from pipelines.settings.config import digest
from pipelines.storage.columns import encoding_type, vectors_from_arrow
from pipelines.storage.store import DONE, Store
from pipelines.storage.tables import SEARCH

log = logging.getLogger(__name__)

NUM_FEATURES = 128
"""P where N allows it (VU 2.3.3)."""

SAMPLE_BYTES = 2**30
"""Bytes of the encodings that the PCA is fitted on: 2,048 vectors of D = 131,072."""

ROWS_PER_FILE, ROWS_PER_GROUP = 2**17, 2**10
NUM_QUERIES = 100
"""Videos as sample queries, for the mAP of an index."""

_TOGETHER = 16
"""Vectors that are compressed in one matrix product."""

_COMPRESSION = "compression.safetensors"


@dataclass(frozen=True)
class Facts:
    """Facts of an index.

    Attributes:
        num_left_out: encodings that are not in it: of files that have changed, or without a
            descriptor.
        map: retrieval mAP (METHODS 6) of `num_queries` labelled videos, where an answer is right if
            it shares a label; None without such a query.
    """

    num_videos: int
    num_left_out: int
    num_features: int
    num_queries: int
    map: float | None


@dataclass(frozen=True, eq=False)
class Index:
    """A complete index in `folder`."""

    store: Store
    folder: str
    facts: Facts

    def compress(self, vector: np.ndarray) -> np.ndarray:
        """Return an encoding [D] as the vector [P] that the index compares."""
        compression = Compression.from_bytes(self.store.read(f"{self.folder}/{_COMPRESSION}"))
        return compression.transform(torch.from_numpy(vector).float()).numpy()

    def video_ids(self) -> list[str]:
        """Return all videos of the index, in no particular order."""
        return self.store.read_table(self.folder, ["video_id"])["video_id"].to_pylist()

    def vector(self, video_id: str) -> np.ndarray | None:
        """Return the compressed vector [P] of a video; None where it has none."""
        for name in self.store.files(self.folder):
            with self.store.open_parquet(name) as file:
                ids = file.read(columns=["video_id"])["video_id"]
                row = pc.index(ids, video_id).as_py()
                for group in range(file.num_row_groups if row >= 0 else 0):
                    num_rows = file.metadata.row_group(group).num_rows
                    if row < num_rows:
                        column = file.read_row_group(group, columns=["vector"])["vector"]
                        return vectors_from_arrow(column.slice(row, 1))[0]
                    row -= num_rows
        return None

    def similarities(self, queries: np.ndarray) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Return the N videos of the index by video_id, and their similarity [Q, N] to compressed
        vectors [Q, P].

        Each is computed alone: what stands beside it must not change its last bits, and so the
        order.
        """
        names, parts = [], []
        for name in self.store.files(self.folder):
            with self.store.open_parquet(name) as file:
                rows = file.read(columns=["video_id", "vector"])
            vectors = vectors_from_arrow(rows["vector"])
            parts.append(np.stack([np.einsum("np,p->n", vectors, query) for query in queries]))
            names += rows["video_id"].chunks
        return pa.chunked_array(names), np.concatenate(parts, 1)

    def nearest(
        self, vector: np.ndarray, num: int, leave_out: frozenset[str]
    ) -> list[tuple[str, float]]:
        """Return the `num` videos most like the compressed vector [P]: (video_id, similarity), best
        first."""
        names, (similarity,) = self.similarities(vector[None])
        order = ranking(similarity)[: num + len(leave_out)]
        best = zip(names.take(pa.array(order)).to_pylist(), similarity[order].tolist(), strict=True)
        return [item for item in best if item[0] not in leave_out][:num]


def open_index(store: Store, made: Encodings, videos: str) -> Index:
    """Return the index of some encodings and the VIDEOS of a folder; build it if it does not exist.

    Raises:
        RunError: too few encodings, or some that are not finite.
    """
    kind = (NUM_FEATURES, SAMPLE_BYTES, [field.name for field in fields(Facts)])
    name = digest(FORMAT_VERSION, made, videos, kind)
    siblings = f"search/{folder_name(made.encoder, made.stream)}"
    folder = f"{siblings}/{name}"
    mark = f"{folder}/{DONE}"
    done = store.read_json(marks.find(store, mark)) if marks.holds(store, mark) else None
    if done is None:
        done = _build(store, made, videos, folder)
        for older in store.folders(siblings):
            if older != folder:
                marks.remove_folder(store, older)
    return Index(store, folder, Facts(**done))


def _build(store: Store, made: Encodings, videos: str, folder: str) -> dict:
    """Build and publish the index; return the facts of its mark."""
    started = time.monotonic()
    labels = store.read_table(videos, ["video_id", "source", "labels"])
    rows, num_all = encodings.current(store, made.folder, labels)
    if rows.num_rows < 3:
        raise RunError(
            f"{store.uri(made.folder)}: expected encodings of at least 3 of today's "
            f"videos, found {rows.num_rows}; too few to search in"
        )
    shuffled = _permutation(rows["video_id"].to_pylist())
    try:
        compression = fit_whitening(_sample(store, rows, shuffled), NUM_FEATURES)
    except ValueError as error:
        raise RunError(f"{store.uri(made.folder)}: {error}") from error
    vectors = _compressed(store, rows, compression)
    names = labels["labels"].take(pc.index_in(rows["video_id"], labels["video_id"]))

    precisions = _precisions(vectors, names, shuffled)
    known = precisions[~np.isnan(precisions)]
    facts = {
        "num_videos": rows.num_rows,
        "num_left_out": num_all - rows.num_rows,
        "num_features": vectors.shape[1],
        "num_queries": len(known),
        "map": mean_average_precision(known) if len(known) else None,
    }
    table = _table(rows, made, vectors)
    footer = {
        "video_fisher.format": FORMAT_VERSION,
        "video_fisher.step": "search",
        "video_fisher.encodings": made.folder,
        "video_fisher.videos": videos,
        "video_fisher.code": code_revision(),
    }
    for part, first in enumerate(range(0, table.num_rows, ROWS_PER_FILE)):
        content = table.slice(first, ROWS_PER_FILE)
        store.publish_table(f"{folder}/part-{part:05d}.parquet", content, footer, ROWS_PER_GROUP)
    store.publish(f"{folder}/{_COMPRESSION}", compression.to_bytes())
    store.publish_json(marks.place(f"{folder}/{DONE}"), facts)
    log.info(
        "search: index of %d videos in %.0f s, %d values each",
        rows.num_rows,
        time.monotonic() - started,
        vectors.shape[1],
    )
    return facts


# --- compression --------------------------------------------------------------------------------


def _permutation(video_ids: list[str]) -> np.ndarray:
    """Return a pseudo-random permutation [N] of the videos, fixed by their ids."""
    return np.argsort([hashlib.sha256(name.encode()).digest() for name in video_ids])


def _sample(store: Store, rows: pa.Table, shuffled: np.ndarray) -> torch.Tensor:
    """Return encodings [n, D] of the first videos of a permutation, as many as `SAMPLE_BYTES`
    hold."""
    with store.open_parquet(rows["file"][0].as_py()) as file:
        width = file.schema_arrow.field("vector").type.list_size
    # A PCA has a direction from three vectors on.
    size = min(rows.num_rows, max(3, SAMPLE_BYTES // (4 * width)))
    chosen = rows.take(pa.array(np.sort(shuffled[:size])))
    sample = np.empty((size, width), np.float32)
    for indices, part in encodings.vectors(store, chosen, "sample"):
        sample[indices] = part
    return torch.from_numpy(sample)


def _compressed(store: Store, rows: pa.Table, compression: Compression) -> np.ndarray:
    """Return compressed vectors [N, P] float32, in the order of `rows`.

    Always `_TOGETHER` at a time: with another number the last bits could differ, and how many
    vectors a row group holds is not the same on every cluster.
    """
    whitening = cast(Pca, compression.map)  # by `fit_whitening`
    vectors = np.empty((rows.num_rows, len(whitening.scale)), np.float32)
    batch = torch.zeros(_TOGETHER, compression.input_dim)
    for indices, part in encodings.vectors(store, rows, "compress"):
        for first in range(0, len(part), _TOGETHER):
            rows_of_batch = torch.from_numpy(part[first : first + _TOGETHER])
            batch[: len(rows_of_batch)] = rows_of_batch
            compressed = compression.transform(batch)[: len(rows_of_batch)]
            vectors[indices[first : first + len(rows_of_batch)]] = compressed.numpy()
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        name = rows["video_id"][int(bad[0])].as_py()
        raise RunError(
            f"search: expected finite encodings, got NaN or infinity in {len(bad)} of "
            f"{len(vectors)}, such as that of {name!r}; python -m jobs.doctor says what to do"
        )
    return vectors


# --- quality, and the table ------------------------------------------------------------------


def _precisions(vectors: np.ndarray, labels: pa.ChunkedArray, shuffled: np.ndarray) -> np.ndarray:
    """Return average precisions of some labelled videos as queries; NaN where no other video shares
    a label."""
    labels = labels.combine_chunks()
    names, parents = pc.list_flatten(labels), pc.list_parent_indices(labels).to_numpy()
    codes = names.dictionary_encode().indices.to_numpy()
    precisions = []
    for query in shuffled[np.isin(shuffled, parents)][:NUM_QUERIES]:
        relevant, ignored = np.zeros((2, len(vectors)), bool)
        relevant[parents[np.isin(codes, codes[parents == query])]] = True
        ignored[query] = True
        precisions.append(average_precision(vectors @ vectors[query], relevant, ignored))
    return np.array(precisions)


def _table(rows: pa.Table, made: Encodings, vectors: np.ndarray) -> pa.Table:
    count, kind = len(vectors), encoding_type(vectors.shape[1], "float32")
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    columns = {
        "video_id": rows["video_id"],
        "source": rows["source"],
        "encoder": pa.repeat(made.encoder, count),
        "stream": pa.repeat(made.stream, count),
        "fold": pa.repeat(pa.scalar(made.fold, pa.int32()), count),
        "vector": pa.FixedSizeListArray.from_arrays(flat, type=kind),
    }
    return SEARCH.from_columns(columns, vector=kind)
