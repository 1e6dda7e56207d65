"""A retrieval benchmark of finished runs (VU 2.4): mean average precision of every encoder and
stream, with whole vectors and with the compressed ones of the search index.

No cluster. Letters: Q queries, N videos, D length of an encoding.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from encoders.scores.retrieval import average_precision
from pipelines.errors import ConfigError
from pipelines.evaluate.results import SINGLE, Estimate
from pipelines.run.folders import folder_name
from pipelines.run.saved import Encodings, SavedRun
from pipelines.run.schema import read_record
from pipelines.run.versions import FORMAT_VERSION, code_revision
from pipelines.search import encodings
from pipelines.search.index import Index, open_index
from pipelines.search.published import MAP, MAP_COMPRESSED
from pipelines.search.truth import Query, Truth, read_truth
from pipelines.settings.config import digest
from pipelines.storage.columns import vectors_from_arrow
from pipelines.storage.tables import METRICS, RETRIEVAL

log = logging.getLogger(__name__)

FOLDER = "retrieval_metrics"
"""Folder of the METRICS of each truth."""

BLOCK_BYTES = 2**28
"""Bytes of vectors or similarities of queries that are held at a time."""

DRAWS, SEED = 1000, 0
"""Of the bootstrap over queries."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """mAP of one encoder and stream.

    Attributes:
        node: of the network, as describe.nodes has it.
        kind: the rest of the stream's name.
        sides_px: of the pictures that the network is given, such as 224 or 224+448.
        dim, num_features: lengths of the whole vectors and of the compressed ones.
    """

    encoder: str
    stream: str
    node: str
    kind: str
    sides_px: str
    dim: int
    num_features: int
    whole: Estimate
    compressed: Estimate


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The results of a truth, those of one run after the other."""

    truth: Truth
    preset: str | None
    results: tuple[Result, ...]

    def best(self) -> Result:
        """Return the result with the highest mAP of whole vectors."""
        return max(self.results, key=lambda result: result.whole.value or 0.0)


def retrieve(
    outs: Sequence[str],
    truth: str | None,
    preset: str | None = None,
    *,
    encoder: str | None = None,
    stream: str | None = None,
) -> tuple[list[SavedRun], Retrieved]:
    """Measure runs by a truth, and publish their RETRIEVAL and METRICS.

    Args:
        outs: URIs of runs of the same videos, such as those of two sizes of the pictures.
        truth, preset: see `read_truth`.
        encoder, stream: of the results to measure; None: all.

    Raises:
        ConfigError: there is no such run, truth, encoder or stream.
        RunError: the run's tables do not allow a search.
    """
    runs = [SavedRun.open(out) for out in outs]
    truths = [
        read_truth(truth, preset, run.store.read_table(run.videos, ["video_id", "uri"]))
        for run in runs
    ]
    # All are checked before the first is measured.
    pairs = [_pairs(run, encoder, stream) for run in runs]
    results: list[Result] = []
    for run, known, of_run in zip(runs, truths, pairs, strict=True):
        with encodings.told(run.store):
            made = [_measured(run, pair, known) for pair in of_run]
            rows = [row for result in made for row in metric_rows(result, known)]
            footer = {"video_fisher.step": "retrieve", "video_fisher.code": code_revision()}
            run.store.publish_table(f"{FOLDER}/{known.name}.parquet", METRICS.build(rows), footer)
        results += made
    return runs, Retrieved(truth=truths[0], preset=preset, results=tuple(results))


def _pairs(run: SavedRun, encoder: str | None, stream: str | None) -> list[tuple[str, str]]:
    """Return the encoders and streams to measure, whose encodings must be complete."""
    pairs = [p for p in run.encodings if encoder in (None, p[0]) and stream in (None, p[1])]
    if not pairs:
        known = ", ".join(f"--encoder {name} --stream {of}" for name, of in run.encodings)
        raise ConfigError(
            f"--out {run.store.root}: expected encodings "
            f"{' '.join(filter(None, (encoder, stream)))}, found {known or 'none; run step encode'}"
        )
    if missing := [pair for pair in pairs if not run.is_encoded(run.encodings[pair])]:
        raise ConfigError(
            f"--out {run.store.root}: expected complete encodings of {missing[0][0]} on "
            f"{missing[0][1]}, found some missing; run the job again, at least with "
            "--steps index,describe,fit,encode"
        )
    return pairs


def _measured(run: SavedRun, pair: tuple[str, str], truth: Truth) -> Result:
    """Measure an encoder on a stream, and publish its rows of RETRIEVAL."""
    made = run.encodings[pair]
    index = open_index(run.store, made, run.videos)
    compressed = _compressed(index, truth)
    whole, dim = _whole(run, made, truth)
    _publish(run, pair, truth, {"none": whole, "pca_whitening": compressed})
    node, kind = _place(run, pair[1])
    sides = run.config.variant(pair[0]).settings.sides or run.config.picture.sides
    result = Result(
        encoder=pair[0],
        stream=pair[1],
        node=node,
        kind=kind,
        sides_px="+".join(map(str, sides)),
        dim=dim,
        num_features=index.facts.num_features,
        whole=_estimate(whole),
        compressed=_estimate(compressed),
    )
    log.info("retrieve: %s on %s: mAP %.3f", *pair, result.whole.value)
    return result


Similarities = Iterator[tuple[Query, np.ndarray]]
"""Each query that has a vector, and its similarity [N] to all videos."""


def _compressed(index: Index, truth: Truth) -> dict[str, float]:
    """Return {query: its average precision} with the vectors and the ranking of the search."""
    by_id = {query.video_id: query for query in truth.queries}
    found = index.store.read_rows(index.folder, ["video_id", "vector"], "video_id", [*by_id])
    queries = [by_id[video] for video in found["video_id"].to_pylist()]
    vectors = vectors_from_arrow(found["vector"])
    video_ids = index.video_ids()

    def compared() -> Similarities:
        size = max(1, BLOCK_BYTES // (4 * len(video_ids)))
        for first in range(0, len(queries), size):
            part = slice(first, first + size)
            _, similarities = index.similarities(vectors[part])
            yield from zip(queries[part], similarities, strict=True)

    return precisions(video_ids, compared(), truth)


def _whole(run: SavedRun, made: Encodings, truth: Truth) -> tuple[dict[str, float], int]:
    """Return {query: its average precision} by the L2 distance of whole vectors (VU 2.3.4), and
    their length."""
    videos = run.store.read_table(run.videos, ["video_id", "source"])
    rows, _ = encodings.current(run.store, made.folder, videos)
    video_ids = rows["video_id"].to_pylist()
    place = {video: row for row, video in enumerate(video_ids)}
    with run.store.open_parquet(rows["file"][0].as_py()) as file:
        dim = file.schema_arrow.field("vector").type.list_size
    queries = [query for query in truth.queries if query.video_id in place]

    def compared() -> Similarities:
        size = max(1, BLOCK_BYTES // (4 * max(dim, len(video_ids))))
        for first in range(0, len(queries), size):
            part = queries[first : first + size]
            asked = rows.take(pa.array([place[query.video_id] for query in part]))
            vectors = np.empty((len(part), dim), np.float32)
            for indices, values in encodings.vectors(run.store, asked, "read queries"):
                vectors[indices] = values
            # -|q - x|^2 + |q|^2: the nearest come first.
            similarities = np.empty((len(part), len(video_ids)), np.float32)
            for indices, values in encodings.vectors(run.store, rows, "compare"):
                lengths = np.einsum("nd,nd->n", values, values)
                similarities[:, indices] = 2 * vectors @ values.T - lengths
            yield from zip(part, similarities, strict=True)

    return precisions(video_ids, compared(), truth), dim


def precisions(video_ids: list[str], compared: Similarities, truth: Truth) -> dict[str, float]:
    """Return {query: its average precision}; 0 for a query without a vector.

    A right answer without a vector counts as one that is never found.
    """
    place = {video: row for row, video in enumerate(video_ids)}
    found = dict.fromkeys((query.video_id for query in truth.queries), 0.0)
    for query, similarity in compared:
        relevant, ignored = np.zeros((2, len(video_ids)), bool)
        there = [place[video] for video in query.right if video in place]
        relevant[there] = True
        ignored[[place[video] for video in query.junk if video in place]] = True
        ignored[place[query.video_id]] |= truth.ignore_query
        if there:
            share = len(there) / len(query.right)
            found[query.video_id] = share * average_precision(similarity, relevant, ignored)
    return found


# --- what is published ------------------------------------------------------------------------


def _estimate(by_query: dict[str, float]) -> Estimate:
    """Return the mean with the middle 95 % of bootstrap draws over the queries."""
    values = np.array(list(by_query.values()))
    draws = np.random.default_rng(SEED).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def _place(run: SavedRun, stream: str) -> tuple[str, str]:
    """Return the node of a stream, and the rest of the stream's name."""
    streams = (read_record(run.store) or {}).get("streams", [])
    node = next((s["node"] for s in streams if s["name"] == stream and "node" in s), stream)
    prefix = re.sub("[^0-9A-Za-z]+", "_", node) + "_"
    return node, stream.removeprefix(prefix)


def _publish(
    run: SavedRun, pair: tuple[str, str], truth: Truth, found: dict[str, dict[str, float]]
) -> None:
    """Publish the rows of RETRIEVAL in place of earlier ones of this truth."""
    made, parent = run.encodings[pair], f"retrieval/{folder_name(*pair)}"
    shared = {"truth": truth.name, "encoder": pair[0], "stream": pair[1]}
    rows = [
        {**shared, "compression": compression, "query": query, "ap": value}
        for compression, by_query in found.items()
        for query, value in by_query.items()
    ]
    footer = {
        "video_fisher.format": FORMAT_VERSION,
        "video_fisher.step": "retrieve",
        "video_fisher.truth": truth.name,
        "video_fisher.encodings": made.folder,
        "video_fisher.videos": run.videos,
        "video_fisher.code": code_revision(),
    }
    folder = f"{parent}/{digest(FORMAT_VERSION, made, run.videos, repr(truth))}"
    run.store.publish_table(f"{folder}/retrieval.parquet", RETRIEVAL.build(rows), footer)
    for older in run.store.folders(parent):
        names = run.store.files(older)
        if older != folder and all(
            run.store.footer(name).get("video_fisher.truth") == truth.name for name in names
        ):
            run.store.delete_folder(older)


def metric_rows(result: Result, truth: Truth) -> list[dict]:
    """Return the rows of METRICS of a result."""
    row: dict = dict.fromkeys(METRICS.schema().names)
    row |= {
        "encoder": result.encoder,
        "stream": result.stream,
        "fusion": SINGLE,
        "protocol": f"retrieval by {truth.name}, mean over the queries",
        "split": "all",
        "num_videos": len(truth.queries),
    }
    estimates = {MAP: result.whole, MAP_COMPRESSED: result.compressed}
    return [
        row | {"metric": name, "value": e.value, "ci_low": e.low, "ci_high": e.high}
        for name, e in estimates.items()
    ]
