"""Train: CLIPS and networks; and SCORES of tested videos by these networks."""

import functools
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.networks.settings import OF_RGB
from pipelines.cluster import pools, sink
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.datasets import dataset, progress_line, write_tables
from pipelines.errors import RunError
from pipelines.index import current_rows
from pipelines.ledger.accounts import Account, Spent, merged, settle
from pipelines.ledger.marks import holds
from pipelines.networks import score as network_score
from pipelines.networks.clips import clip_plan, publish_clips
from pipelines.networks.maps import StoredMaps
from pipelines.networks.train import Task, train_networks
from pipelines.run.codebook import FittedNetwork
from pipelines.run.job import Job
from pipelines.run.makers import Result
from pipelines.storage.columns import names
from pipelines.storage.store import DONE
from pipelines.storage.tables import CAMS, CLIP_SCORES, FLOWS, SCORES, SCORES_OVER_TIME
from pipelines.storage.uris import absolute_uri

VIDEOS_PER_BLOCK = 8
"""Videos of a fold that an actor scores one after the other: it loads the fold's network once."""


def train(job: Job) -> tuple[Account, Spent]:
    """Publish CLIPS and the trained networks, which are in one Ray Train run.

    Raises:
        RunError: no pictures, or a network that cannot be trained.
    """
    job.weights.keep(job.store)
    parts = [publish_clips(job)] if job.networks_see_pictures else [Spent(0.0, ())]
    job.clips_came()
    tasks = [
        Task(
            network=network,
            sample=job.descriptors if network.reads_maps else job.clips,
            labels=_labels(job, network.fold),
            footer=job.footer("train") | {"video_fisher.network": network.digest},
            start=_start(job, network),
            ignored=job.ignored(network.fold),
        )
        for network in job.networks
        if not holds(job.store, f"{network.folder}/{DONE}")
    ]
    tasks = list({task.network.folder: task for task in tasks}.values())
    # Networks of flow may start from those of pictures.
    waiting = [task for task in tasks if task.network.settings.start == OF_RGB]
    first = [task for task in tasks if task not in waiting]
    parts += [train_networks(job, now) for now in (first, waiting) if now]
    planned = {network.folder for network in job.networks}
    trained = {folder for folder in planned if holds(job.store, f"{folder}/{DONE}")}
    return settle("train", "networks", planned, trained), merged(parts)


def _start(job: Job, network: FittedNetwork) -> str:
    """Return the folder or URI of the network that one starts from; "": none."""
    if network.settings.start != OF_RGB:
        return network.settings.start and absolute_uri(network.settings.start)
    (own,) = [n for n in job.networks_of(network.encoder, "rgb") if n.fold == network.fold]
    return job.store.uri(own.folder)


def _labels(job: Job, fold: int) -> dict[str, list[str]]:
    """Return {video: labels} of the videos that train in a fold."""
    allowed = job.training_videos(fold)
    columns = (job.manifest[name].to_pylist() for name in ("video_id", "labels"))
    return {video: labels for video, labels in zip(*columns, strict=True) if video in allowed}


def score(job: Job) -> Spent:
    """Publish SCORES and CLIP_SCORES of networks' results that are not complete.

    Raises:
        RunError: a network is not there.
    """
    results = [r for r in job.scored_by_networks() if not holds(job.store, _mark(job, r))]
    return merged([Spent(0.0, ()), *(_score(job, result) for result in results)])


def _mark(job: Job, result: Result) -> str:
    return f"{job.scores(*result.pair)}/{DONE}"


def _score(job: Job, result: Result) -> Spent:
    encoder, stream = result.pair
    networks = {network.fold: network for network in job.networks_of(encoder, stream)}
    missing = [n for n in networks.values() if not holds(job.store, f"{n.folder}/{DONE}")]
    if missing:
        raise RunError(
            f"classify: expected the network {missing[0].name} of fold {missing[0].fold} in "
            f"{job.store.uri(missing[0].folder)}, found none; run step train first"
        )
    stored = StoredMaps.of(job) if next(iter(networks.values())).reads_maps else None
    plan = _plan_of_maps(job, stored) if stored else _plan(job)
    outputs = _outputs(job, result)
    every, shown = names(plan), names(plan.filter(plan["is_shown"]))
    # Videos of which a table has no rows.
    without = {CAMS: every - shown}
    if job.config.network.over_time != "all":
        without[SCORES_OVER_TIME] = every - shown
    done = frozenset.intersection(*(o.visible | without.get(o.table, frozenset()) for o in outputs))
    rows = plan.filter(pc.invert(pc.is_in(plan["video_id"], pa.array(sorted(done), pa.string()))))
    pool = pools.pools(job.config.cluster).encode.fitting(rows.num_rows)
    line = progress_line(job, "classify", rows.num_rows, {("read", "score"): pool})
    arguments = (
        job.store,
        job.config,
        networks,
        (job.network_node, SharedFile.of(job.store, job.weights.file)),
        job.classes,
        line.meter,
        stored.without_videos() if stored else None,
    )
    data = dataset(rows, VIDEOS_PER_BLOCK).map_batches(
        network_score.ScoreVideos,
        fn_constructor_args=arguments,
        **pool.options(batch_size=VIDEOS_PER_BLOCK),
    )
    return write_tables(job, line, data, outputs, rows_per_file=1)


def _outputs(job: Job, result: Result) -> list[sink.Output]:
    """Return the tables of a result, SCORES last, with the videos that they have already."""
    columns = (job.manifest[name].to_pylist() for name in ("video_id", "labels"))
    labels = dict(zip(*columns, strict=True))
    selects = {
        CLIP_SCORES: (job.clip_scores(*result.pair), network_score.clip_rows),
        CAMS: (
            job.cams(*result.pair),
            functools.partial(network_score.map_rows, labels=labels),
        ),
        SCORES_OVER_TIME: (job.scores_over_time(*result.pair), network_score.time_rows),
        FLOWS: (job.flows(*result.pair), network_score.flow_table),
        SCORES: (
            job.scores(*result.pair),
            functools.partial(network_score.score_rows, labels=labels),
        ),
    }
    return [
        sink.Output(
            table,
            folder,
            job.footer("classify"),
            select,
            job.store.distinct(folder, "video_id") if job.store.files(folder) else frozenset(),
        )
        for table, (folder, select) in selects.items()
        if table is SCORES or table.name in result.tables
    ]


def _plan_of_maps(job: Job, stored: StoredMaps) -> pa.Table:
    """Return where the maps of each tested video are: video_id, fold, files, rows, by fold."""
    tested = job.manifest.filter(pc.greater_equal(job.manifest["fold"], 0))
    rows = places_of_maps(tested, stored)
    folds = dict(zip(*(tested[name].to_pylist() for name in ("video_id", "fold")), strict=True))
    own = [folds[video] for video in rows["video_id"].to_pylist()]
    rows = rows.append_column("fold", pa.array(own, pa.int32()))
    return _with_shown(job, rows.sort_by([("fold", "ascending"), ("video_id", "ascending")]))


def places_of_maps(videos: pa.Table, stored: StoredMaps) -> pa.Table:
    """Return where the maps of videos are: video_id, source, files, rows."""
    # Arrow joins no lists.
    numbers = pa.array(np.arange(stored.videos.num_rows))
    keys = stored.videos.select(["video_id", "source"]).append_column("number", numbers)
    keys = keys.join(
        videos.select(["video_id", "source"]), ["video_id", "source"], join_type="inner"
    )
    keys = keys.sort_by("video_id")
    return stored.videos.take(keys["number"]).select(["video_id", "source", "files", "rows"])


def _plan(job: Job) -> pa.Table:
    """Return where the pictures of each tested video are: video_id, fold, file, row, by fold; and
    whether its activation maps are shown.

    Where there are encoders, videos without descriptors are left out: results are of the same ones.
    """
    tested = job.manifest.filter(pc.greater_equal(job.manifest["fold"], 0))
    rows = places_of_clips(job, tested)
    rows = rows.join(tested.select(["video_id", "fold"]), "video_id", join_type="inner")
    described = names(current_rows.places(job)) if job.variants else names(rows)
    rows = rows.filter(pc.is_in(rows["video_id"], pa.array(sorted(described), pa.string())))
    rows = rows.sort_by([("fold", "ascending"), ("video_id", "ascending")])
    return _with_shown(job, rows)


def _with_shown(job: Job, rows: pa.Table) -> pa.Table:
    """Return the rows with a column that is true for those of network.pictures, evenly spread."""
    count = min(job.config.network.pictures, rows.num_rows)
    shown = {rows.num_rows * place // count for place in range(count)}
    is_shown = [place in shown for place in range(rows.num_rows)]
    return rows.append_column("is_shown", pa.array(is_shown, pa.bool_()))


def places_of_clips(job: Job, videos: pa.Table) -> pa.Table:
    """Return where the pictures of videos are: video_id, source, file, row."""

    def read(name: str) -> pa.Table:
        with job.store.open_parquet(name) as file:
            table = file.read(columns=["clip_id", "video_id", "source", "frame_indices"])
        table = table.replace_schema_metadata(None)
        table = table.append_column("file", pa.array([name] * table.num_rows, pa.string()))
        return table.append_column("row", pa.array(np.arange(table.num_rows)))

    rows = cast(pa.Table, job.store.gather(read, job.store.files(job.clips)))
    rows = rows.filter(pc.greater(pc.list_value_length(rows["frame_indices"]), 0))
    rows = rows.drop_columns(["frame_indices"])
    if job.config.network.stream:
        # They are decoded where they are scored.
        plan = clip_plan(job)
        own = [n for n in plan.column_names if n not in rows.column_names or n == "clip_id"]
        rows = rows.join(plan.select(own), "clip_id", join_type="inner")
    now = videos.select(["video_id", "source"])
    return rows.join(now, ["video_id", "source"], join_type="inner").sort_by("video_id")
