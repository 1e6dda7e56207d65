"""New videos to PREDICTIONS: the one function that the command and Python call."""

import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import corpus
from pipelines.cluster import connect, pools, sink
from pipelines.cluster.datasets import dataset, progress_line, write_tables
from pipelines.index.user_tables import using
from pipelines.ledger.accounts import Outcome, settle
from pipelines.predict import networks
from pipelines.predict.model import Model, NetworkPart, choose
from pipelines.predict.new_videos import NewVideos, new_videos
from pipelines.predict.stage import ScoreVideos
from pipelines.ray_job import NO_SUBMISSION, Submission
from pipelines.run.lock import RunLock
from pipelines.run.saved import SavedRun
from pipelines.storage.columns import names, places_of
from pipelines.storage.store import Store
from pipelines.storage.tables import FAILURES, PREDICTIONS
from pipelines.storage.uris import absolute_uri
from pipelines.text_table import aligned

log = logging.getLogger(__name__)

MOST_SHOWN = 20
"""Videos that a terminal shows."""

VIDEOS_AT_A_TIME = 64


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        videos: as for a run. to: a .parquet file, or a folder.
        encoder, stream, fusion: of the result, as in METRICS; of those left open the best one.
        fold: use the classifiers that this fold was left out of; None: the final ones.
        settings: SECTION.FIELD=VALUE that change no number.
    """

    out: str
    videos: str
    to: str
    encoder: str | None = None
    stream: str | None = None
    fusion: str | None = None
    fold: int | None = None
    settings: Sequence[str] = ()
    take_over: bool = False


@dataclass(frozen=True)
class Predicted:
    """Files that were written, and counts.

    Attributes:
        model: the result, in words.
        failures: the file of FAILURES; "" where every segment of every video was decoded.
        exceeds: more segments failed than run.max_failed_fraction.
        first: rows of PREDICTIONS of few videos, by video and rank; else none.
    """

    model: str
    predictions: str
    failures: str
    work: str
    num_videos: int
    num_failed: int
    exceeds: bool
    first: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what a terminal shows."""
        lines = []
        if best := [row for row in self.first if row["rank"] == 1]:
            second = {row["video_id"]: row for row in self.first if row["rank"] == 2}
            rows = [["video", "class", "probability", "then", "probability"]]
            for row in best:
                other = second.get(row["video_id"])
                then = (other["class"], f"{other['probability']:.2f}") if other else ("", "")
                rows.append([row["video_id"], row["class"], f"{row['probability']:.2f}", *then])
            lines += [*aligned(rows, left=(0, 1, 3)), ""]
        lines.append(
            f"{self.num_videos - self.num_failed} of {self.num_videos} videos by {self.model}"
        )
        lines.append(f"predictions: {self.predictions}")
        if self.failures:
            lines.append(f"failed: {self.num_failed} videos; {self.failures} says why")
        return [*lines, f"work folder, which may be deleted: {self.work}"]


def predict(
    request: Request, address: str | None = None, submission: Submission = NO_SUBMISSION
) -> Predicted:
    """Classify new videos by a finished run, and write PREDICTIONS.

    A request that was interrupted goes on where it was, by what is in the work folder beside its
    output.

    Args:
        address: of the Ray cluster; None: this machine.
        submission: of this process, where it is a Ray job.

    Raises:
        ConfigError: there is no such run, result or video, or the output cannot be written.
        RunError: the work cannot go on.
    """
    run = SavedRun.open(request.out)
    asked = {name: getattr(request, name) for name in ("encoder", "stream", "fusion")}
    model = choose(run, asked, request.fold)
    stem = absolute_uri(request.to).removesuffix(".parquet")
    job = new_videos(run, model, request.videos, f"{stem}.work", request.settings)
    log.info("predict: %d videos by %s", job.manifest.num_rows, model.name)
    command, take_over = shlex.join(sys.argv), request.take_over
    with RunLock(job.store, command, take_over=take_over, submission=submission) as lock:
        outcome = corpus.run(job, job.steps, address, lock.check)
        _score(job, run.store, model, address, lock.check)
        return _written(job, model, request.to, outcome)


def _score(
    job: NewVideos, run: Store, model: Model, address: str | None, check: Callable[[], None]
) -> None:
    """Publish PREDICTIONS of the videos that have none."""
    folder = job.predictions(model)
    for part in model.networks:
        connect.connect(address, job.config.cluster)
        check()
        networks.score(job, part)
    rows = sink.pending(_places(job, model), job.store, folder, ("video_id",))
    if not rows.num_rows:
        return
    connect.connect(address, job.config.cluster)
    check()
    pool = pools.pools(job.config.cluster).read.fitting(rows.num_rows)
    line = progress_line(job, "predict", rows.num_rows, {("score",): pool})
    data = dataset(rows, VIDEOS_AT_A_TIME).map_batches(
        ScoreVideos,
        fn_constructor_args=(job.store, run, model, line.meter),
        **pool.options(VIDEOS_AT_A_TIME),
    )
    footer = job.footer("predict") | {"video_fisher.model": model.name}
    write_tables(job, line, data, [sink.Output(PREDICTIONS, folder, footer)], rows_per_file=10_000)


def _places(job: NewVideos, model: Model) -> pa.Table:
    """Return video_id, and for each part N of the model file_N and row_N of its vector, or of its
    scores.
    """
    videos = job.manifest.select(["video_id", "source"])
    for number, part in enumerate(model.parts):

        def read(name: str) -> pa.Table:
            with job.store.open_parquet(name) as file:
                table = file.read(columns=["video_id", "source"]).replace_schema_metadata(None)
            table = table.append_column("file", pa.array([name] * table.num_rows, pa.string()))
            return table.append_column("row", pa.array(range(table.num_rows), pa.int64()))

        is_network = isinstance(part, NetworkPart)
        files = job.store.files(
            networks.scores_folder(job, part) if is_network else job.encodings(part.codebook)
        )
        if not files:
            return videos.slice(0, 0)
        table = job.store.gather(read, files)
        place = places_of(videos, table, ("video_id", "source"))
        found = table.take(place.drop_null())
        videos = videos.filter(pc.is_valid(place))
        videos = videos.append_column(f"file_{number}", found["file"])
        videos = videos.append_column(f"row_{number}", found["row"])
    return videos.sort_by([("file_0", "ascending"), ("row_0", "ascending")])


def _written(job: NewVideos, model: Model, to: str, outcome: Outcome) -> Predicted:
    """Write the files that the user asked for, and account for every video."""
    folder = job.predictions(model)
    done = job.store.distinct(folder, "video_id")
    bad = _failures(job, model)
    failed = names(bad.filter(pc.equal(bad["status"], "failed")))
    account = settle("predict", "videos", names(job.manifest), done, failed)
    is_file = to.endswith(".parquet")
    target, name = os.path.split(absolute_uri(to)) if is_file else (absolute_uri(to), "")
    store, name = Store(target), name or "predictions.parquet"
    failures = (
        f"{name.removesuffix('.parquet')}.failures.parquet" if is_file else "failures.parquet"
    )
    with using("--to", to, "write there"):
        _publish(store, name, PREDICTIONS.schema(), _by_rank(job.store, folder))
        if bad.num_rows:
            columns = [column.name for column in FAILURES.columns]
            store.publish_table(failures, bad.select(columns), job.footer("predict"))
        else:
            store.delete(failures)
    few = account.planned <= MOST_SHOWN and account.done
    shown = job.store.read_table(folder).to_pylist() if few else []
    return Predicted(
        model=model.name,
        predictions=store.uri(name),
        failures=store.uri(failures) if bad.num_rows else "",
        work=job.store.root,
        num_videos=account.planned,
        num_failed=account.failed,
        exceeds=outcome.failed_fraction > job.config.run.max_failed_fraction,
        first=sorted(shown, key=lambda row: (row["video_id"], row["rank"])),
    )


def _failures(job: NewVideos, model: Model) -> pa.Table:
    """Return FAILURES of segments, and of pictures for networks where these are all that is
    read.
    """
    parts = [job.store.read_table(job.failures)] if "describe" in job.steps else []
    if any(not part.networks[0].reads_maps for part in model.networks):
        rows = networks.failures(job)
        known = names(parts[0]) if parts else frozenset()
        is_new = [video not in known for video in rows["video_id"].to_pylist()]
        parts.append(rows.filter(pa.array(is_new, pa.bool_())))
    return pa.concat_tables(parts, promote_options="default")


def _by_rank(store: Store, folder: str) -> Iterator[pa.Table]:
    for name in store.files(folder):
        with store.open_parquet(name) as file:
            table = file.read().replace_schema_metadata(None)
        yield table.sort_by([("video_id", "ascending"), ("rank", "ascending")])


def _publish(store: Store, name: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Write one file out of many tables, of which one is in memory at a time."""
    final = store.path(name)
    if store.is_local:
        os.makedirs(os.path.dirname(final), exist_ok=True)
    where = os.path.dirname(final) if store.is_local else None
    handle, hidden = tempfile.mkstemp(".part", f".{name}.", where)
    os.close(handle)
    try:
        with pq.ParquetWriter(hidden, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
        if store.is_local:
            os.chmod(hidden, 0o644)
            os.replace(hidden, final)
        else:
            store.fs.put_file(hidden, final)
    finally:
        if os.path.exists(hidden):
            os.unlink(hidden)
