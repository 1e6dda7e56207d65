"""CLIPS: the pictures that networks are trained and tested on, decoded once.

One row per video, because at most as many pictures, or runs of them, are kept as a segment has.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.stream_specs import FRAME, FlowWindow, Window
from pipelines.cluster import pools, sink
from pipelines.cluster.datasets import Chain, dataset, progress_line, write_tables
from pipelines.cluster.meter import SILENT, Meter
from pipelines.errors import RunError
from pipelines.ledger.accounts import Spent
from pipelines.ledger.marks import Contents, holds, publish_mark
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.settings.sections import Picture, Sampling
from pipelines.storage.columns import places_of
from pipelines.storage.tables import CLIPS, ROWS_PER_FILE
from pipelines.video import stages

VIDEOS_AT_A_TIME = 4


def publish_clips(job: Job) -> Spent:
    """Publish CLIPS of all videos that train or are tested.

    Raises:
        RunError: no video gives a picture.
    """
    if holds(job.store, job.clips_mark):
        return Spent(0.0, ())
    rows = _to_decode(job, clip_plan(job))
    spent = Spent(0.0, ())
    if rows.num_rows:
        job.unmark(job.clips)
        spent = _decode(job, rows)
    if not pictured(job):
        raise RunError(
            f"train: expected pictures of labelled videos, got none of {clip_plan(job).num_rows}; "
            f"why is in {job.store.uri(job.clips)}, column error"
        )
    publish_mark(job.store, job.clips_mark, {}, Contents((job.clips,)))
    return spent


def _to_decode(job: Job, plan: pa.Table) -> pa.Table:
    """Return the videos without a row; after `--retry-failed` also the failed ones that were not
    yet tried again, with its decoder.
    """
    passes = job.retries.passes
    plan = plan.append_column("attempts", pa.repeat(pa.scalar(passes + 1, pa.int32()), len(plan)))
    if not job.store.files(job.clips):
        return plan
    rows = job.store.read_table(job.clips, ["clip_id", "source", "status", "attempts"])
    tried = pa.repeat(pa.scalar(1, pa.int32()), len(rows))
    if "attempts" in rows.column_names:
        # Rows of before have none.
        tried = pc.fill_null(rows["attempts"], 1)
    is_done = pc.or_(pc.not_equal(rows["status"], "failed"), pc.greater(tried, passes))
    is_old = pc.is_valid(places_of(plan, rows, ("clip_id", "source")))
    places = places_of(plan, rows.filter(is_done), ("clip_id", "source"))
    plan = plan.append_column("decoder", pc.if_else(is_old, job.retries.decoder, ""))
    return plan.filter(pc.is_null(places))


def pictured(job: Job) -> dict[str, int]:
    """Return {video: pictures in CLIPS} of the videos as they are now that have some."""
    if not job.store.files(job.clips):
        return {}
    rows = job.store.read_table(job.clips, ["video_id", "source", "frame_indices"])
    now = job.manifest.select(["video_id", "source"])
    rows = rows.append_column("count", pc.list_value_length(rows["frame_indices"]))
    rows = rows.drop_columns(["frame_indices"]).filter(pc.greater(rows["count"], 0))
    rows = rows.join(now, ["video_id", "source"], join_type="inner")
    return dict(zip(rows["video_id"].to_pylist(), rows["count"].to_pylist(), strict=True))


def windows(config: Config) -> tuple[Window, ...]:
    """Return the windows of frames that are decoded for each kept picture: itself or the run that
    ends with it, and flow."""
    network, size = config.network, config.run_frames
    shown = (FRAME,) if size == 1 else (FRAME, Window(num_frames=size, gap=1))
    if "flow" in network.streams or config.learns_flow:
        moving = FlowWindow(
            num_frames=network.flow_stack + 1 if size == 1 else size,
            gap=1,
            method=network.flow_method,
            bound_px=network.flow_bound_px,
        )
        return (*shown, moving)
    return shown


def clip_plan(job: Job) -> pa.Table:
    """Return a row for each labelled video, without labels for every one, as a stage that decodes
    wants it.
    """
    columns = ["video_id", "uri", "source", "start_s", "end_s", "width_px", "height_px"]
    columns += stages.BOX
    columns += ["status", "stage", "error_type", "error"]
    videos = job.store.read_table(job.videos, [*columns, "labels", "fold"])
    has_labels = pc.greater(pc.list_value_length(videos["labels"]), 0)
    if job.num_folds:
        videos = videos.filter(pc.or_(has_labels, pc.greater_equal(videos["fold"], 0)))
    ids = pa.array([f"{video}#00000" for video in videos["video_id"].to_pylist()], pa.string())
    one = pa.repeat(pa.scalar(1, pa.int32()), videos.num_rows)
    return (
        # VIDEOS of before lack some.
        videos.select([name for name in columns if name in videos.column_names])
        .append_column("segment_id", ids)
        .append_column("clip_id", ids)
        .append_column("segment", pc.subtract(one, 1))
        .append_column("num_segments", one)
        .sort_by("clip_id")
    )


def _decode(job: Job, rows: pa.Table) -> Spent:
    config = job.config
    pool = pools.pools(config.cluster).decode.fitting(rows.num_rows)
    line = progress_line(job, "train", rows.num_rows, {("read", "decode"): pool})
    stage, arguments = decoding(config, line.meter, keeps=not config.network.stream)
    data = dataset(rows, VIDEOS_AT_A_TIME).map_batches(
        stage, fn_constructor_args=arguments, **pool.options(batch_size=VIDEOS_AT_A_TIME)
    )
    outputs = [sink.Output(CLIPS, job.clips, job.footer("train"))]
    return write_tables(job, line, data, outputs, rows_per_file=ROWS_PER_FILE["clips"])


def decoding(
    config: Config, meter: Meter = SILENT, *, keeps: bool = True
) -> tuple[type[Chain], tuple]:
    """Return the stage from rows of `clip_plan` to rows of CLIPS, and what it is made of.

    Args:
        keeps: the rows have their pictures and flow.
    """
    keep = (KeepClips, (config.network.side_px, windows(config), keeps))
    return Chain, ((decoder, (config, meter)), keep)


def decoder(config: Config, meter: Meter = SILENT) -> stages.DecodeSegments:
    """Return the stage that decodes the pictures of a video, and their flow where it is asked
    for."""
    network = config.network
    return stages.DecodeSegments(
        Sampling(policy="uniform", num_frames=network.frames),
        Picture(resize_px=network.side_px, crop_px=network.side_px),
        config.decode,
        meter,
        windows(config),
        compares=True,
    )


class KeepClips:
    """A mapper of decoded segments to CLIPS rows."""

    def __init__(self, side_px: int, windows: tuple[Window, ...], keeps: bool = True) -> None:
        moving = [isinstance(window, FlowWindow) for window in windows]
        self.side_px, self.has_flow, self.keeps = side_px, any(moving), keeps
        # The last that is shown: runs, where there are some.
        self.shown = moving.index(True) - 1 if self.has_flow else len(windows) - 1
        self.run_frames = windows[self.shown].num_frames

    def __call__(self, segments: pa.Table) -> pa.Table:
        return CLIPS.build([self._row(row) for row in segments.to_pylist()])

    def _row(self, row: dict) -> dict:
        images = np.frombuffer(row["images"], np.uint8).reshape(-1, self.side_px**2 * 3)
        places = row["places"][self.shown] if row["places"] else []
        indices, status = row["frame_indices"], row["status"]
        kind, error = row["error_type"], row["error"]
        if self.run_frames > 1:
            indices = [row["image_indices"][place] for place in places]
            if not places and status != "failed":
                status, kind = "failed", "no_frames"
                error = f"fewer than the {self.run_frames} frames of a run"
        flow = (row["flows"][0] if row["flows"] else b"") if self.has_flow else None
        return {
            "clip_id": row["segment_id"],
            **{name: row[name] for name in ("video_id", "source")},
            "status": status,
            "error": error,
            "frame_indices": indices,
            "pictures": images[places].tobytes() if self.keeps else b"",
            "flow": flow if self.keeps else None,
            "num_flows": len(row["places"][-1]) if flow else 0,
            "error_type": kind,
            # Of runs the frames between the sampled ones have no times here.
            "timestamps_s": row["timestamps_s"] if self.run_frames == 1 else None,
            "attempts": row["attempts"],
        }
