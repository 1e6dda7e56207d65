"""Scores of new videos by the networks of a run: their pictures or maps, then the mean over the
networks of all folds."""

import numpy as np
import pyarrow as pa

from pipelines.cluster import pools, sink
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.datasets import dataset, progress_line, write_tables
from pipelines.networks.clips import publish_clips
from pipelines.networks.maps import StoredMaps
from pipelines.networks.score import ScoreVideos
from pipelines.networks.step import places_of_clips, places_of_maps
from pipelines.predict.model import NetworkPart
from pipelines.run.job import Job
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
        {network.fold: network for network in part.networks},
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


class ScoreByAll(ScoreVideos):
    """A mapper of places of CLIPS, or of maps in DESCRIPTORS, to NETWORK_SCORES: the mean over the
    networks of several folds, which all are kept in memory, of frames that are read once.
    """

    def __call__(self, places: pa.Table) -> pa.Table:
        self.most_kept = len(self.networks)
        rows = []
        for place in places.to_pylist():
            folds = [place | {"fold": fold} for fold in self.networks]
            networks = [self.of_fold(of["fold"]) for of in folds]
            with self.meter("read"):
                frames, indices, _ = self.frames(folds[0])
            with self.meter("score"):
                scores = [
                    self.row(network, of, frames, indices)["scores"]
                    for network, of in zip(networks, folds, strict=True)
                ]
            known = {name: place[name] for name in ("video_id", "source")}
            rows.append(known | {"scores": np.mean(scores, 0).tolist()})
        return NETWORK_SCORES.build(rows)
