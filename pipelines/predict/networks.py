"""Scores of new videos by the networks of a run: their pictures or maps, then the mean over the
networks of all folds."""

import numpy as np
import pyarrow as pa

from pipelines.cluster import pools, sink
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.datasets import dataset, progress_line, write_tables
from pipelines.cluster.meter import SILENT, Meter
from pipelines.networks import score as network_score
from pipelines.networks.clips import publish_clips
from pipelines.networks.maps import StoredMaps
from pipelines.networks.step import places_of_clips, places_of_maps
from pipelines.predict.model import NetworkPart
from pipelines.run.codebook import FittedNetwork
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.store import Store
from pipelines.storage.tables import FAILURES, NETWORK_SCORES

VIDEOS_AT_A_TIME = 8


def scores_folder(job: Job, part: NetworkPart) -> str:
    """Return the folder of NETWORK_SCORES by a part."""
    return f"network_scores/{job.digest('index')}-{part.digest}"


def score(job: Job, part: NetworkPart) -> None:
    """Publish NETWORK_SCORES of the videos that have none."""
    job.weights.keep(job.store)
    stored = None
    if part.networks[0].reads_maps:
        stored = StoredMaps.of(job)
        plan = places_of_maps(job.manifest, stored)
    else:
        publish_clips(job)
        plan = places_of_clips(job, job.manifest)
    folder = scores_folder(job, part)
    rows = sink.pending(plan, job.store, folder, ("video_id", "source"))
    if not rows.num_rows:
        return
    pool = pools.pools(job.config.cluster).encode.fitting(rows.num_rows)
    line = progress_line(job, "predict", rows.num_rows, {("read", "score"): pool})
    arguments = (
        job.store,
        job.config,
        part.networks,
        (job.network_node, SharedFile.of(job.store, job.weights.file)),
        list(part.classes),
        line.meter,
        stored.without_videos() if stored else None,
    )
    data = dataset(rows, VIDEOS_AT_A_TIME).map_batches(
        ScoreByAll, fn_constructor_args=arguments, **pool.options(VIDEOS_AT_A_TIME)
    )
    footer = job.footer("predict") | {"video_fisher.model": part.name}
    write_tables(job, line, data, [sink.Output(NETWORK_SCORES, folder, footer)], rows_per_file=1)


def failures(job: Job) -> pa.Table:
    """Return FAILURES of the videos of which CLIPS have no pictures."""
    names = ["video_id", "source", "status", "error_type", "error"]
    parts = []
    for folder, stage in ((job.videos, "index"), (job.clips, "decode")):
        if job.store.files(folder):
            rows = job.store.read_table(folder, names).to_pylist()
            parts += [row | {"stage": stage} for row in rows if row["status"] == "failed"]
    first = {row["video_id"]: row for row in reversed(parts)}
    nothing = {"segment": 0, "num_frames": 0, "num_missing": 0, "attempts": 1, "decode_s": 0.0}
    return FAILURES.build(
        [
            {"segment_id": f"{video}#00000", **nothing, "decoder": None, **first[video]}
            for video in sorted(first)
        ]
    )


class ScoreByAll:
    """A mapper of places of CLIPS, or of maps in DESCRIPTORS, to NETWORK_SCORES: the mean over
    several networks, which all are kept in memory.

    Args:
        networks: of one result, one of each fold.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        networks: tuple[FittedNetwork, ...],
        start: tuple[str, SharedFile],
        classes: list[str],
        meter: Meter = SILENT,
        stored: StoredMaps | None = None,
    ) -> None:
        self.scorers = {
            network.fold: network_score.ScoreVideos(
                store, config, {network.fold: network}, start, classes, meter, stored
            )
            for network in networks
        }

    def __call__(self, places: pa.Table) -> pa.Table:
        scores = []
        for fold, scorer in self.scorers.items():
            own = places.append_column("fold", pa.repeat(pa.scalar(fold, pa.int32()), len(places)))
            scores.append(np.array(scorer(own)["scores"].to_pylist()))
        rows = places.select(["video_id", "source"])
        mean = pa.array(np.mean(scores, 0).tolist(), pa.list_(pa.float64()))
        return NETWORK_SCORES.from_columns(
            {name: rows[name] for name in rows.column_names} | {"scores": mean}
        )
