"""The Ray callables that touch videos: headers and frames, both through a child that can be killed.

Arrow table in, Arrow table out, one object per actor; ordinary classes that work without Ray. No
torch here: a node may run many of these. A row that fails is returned with its reason.
"""

import dataclasses
import logging
import socket
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from encoders.stream_specs import FRAME, FlowWindow, Window
from pipelines import logs
from pipelines.cluster.meter import SILENT, Meter, Sums
from pipelines.errors import ConfigError
from pipelines.ledger.source import source_now
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage.ranges import Traffic
from pipelines.storage.tables import DESCRIPTORS, SEGMENTS, VIDEOS
from pipelines.video.decode import SegmentFrames, decode_segment
from pipelines.video.flow import limit_s, require_opencv
from pipelines.video.header import VideoError, VideoFacts, probe
from pipelines.video.images.frame import Box
from pipelines.video.images.names import is_picture
from pipelines.video.images.pillow import probe_picture
from pipelines.video.isolation import IsolatedDecoder, patience
from pipelines.video.listing.length import probe_length
from pipelines.video.sampling import num_segments, reads_length, segment_frames

log = logging.getLogger(__name__)

FACTS = (
    "container",
    "codec",
    "width_px",
    "height_px",
    "rotation_deg",
    "duration_s",
    "fps",
    "num_frames_header",
    "listed_by",
    "is_mirrored",
)
"""The columns of VIDEOS that come out of the header."""

BOX = ("box_x", "box_y", "box_width", "box_height")
"""The columns of VIDEOS with the part of the picture that is the video."""

_FRAMES = pa.schema(
    [f for f in DESCRIPTORS.schema() if f.name not in ("num_frames",)]
    + [
        pa.field("images", pa.large_binary()),
        pa.field("num_images", pa.int32()),
        # Of `images`, in the video.
        pa.field("image_indices", pa.list_(pa.int64())),
        # For each window its `SegmentFrames.places`, flattened.
        pa.field("places", pa.list_(pa.list_(pa.int32()))),
        # For each window of optical flow its `SegmentFrames.flows`.
        pa.field("flows", pa.list_(pa.large_binary())),
    ]
)


class ProbeVideos:
    """A mapper of manifest rows to VIDEOS rows, from headers."""

    def __init__(self, sampling: Sampling, decode: Decode, meter: Meter = SILENT) -> None:
        logs.configure()
        self.sampling, self.max_frame_px, self.meter = sampling, decode.max_frame_px, meter
        self.decoder = IsolatedDecoder(decode)
        meter.joined("probe")

    def __call__(self, manifest: pa.Table) -> pa.Table:
        spent = Sums(self.meter)
        with spent("probe"):
            videos = VIDEOS.build([self._row(row) for row in manifest.to_pylist()])
        traffic = self.decoder.taken()
        spent.moved(traffic.requests, traffic.num_bytes)
        spent.tell()
        return videos

    def _row(self, row: dict) -> dict:
        try:
            read = probe_length if reads_length(self.sampling) else probe
            if is_picture(row["uri"]):
                read = probe_picture
            facts = self.decoder.call(read, row["uri"], self.max_frame_px)
        except VideoError as error:
            failed = {
                "status": "failed",
                "stage": "index",
                "error_type": error.error_type,
                "error": error.message,
            }
            _tell(row | failed)
            return videos_row(row, None, 1) | failed
        return videos_row(row, facts, planned_segments(row, facts, self.sampling))


def planned_segments(row: dict, facts: VideoFacts, sampling: Sampling) -> int:
    """Return the number of segments of a video, which is the stretch of the file that its row
    names.
    """
    if (stretch := stretch_of(row)) is None:
        return num_segments(facts, sampling)
    start_s, end_s = stretch
    if facts.duration_s is not None:
        end_s = min(end_s, facts.duration_s)
    return num_segments(dataclasses.replace(facts, duration_s=max(0.0, end_s - start_s)), sampling)


def stretch_of(row: dict) -> tuple[float, float] | None:
    """Return the seconds of the file that are a video; None of a whole file."""
    start_s, end_s = row.get("start_s"), row.get("end_s")
    return None if start_s is None or end_s is None else (start_s, end_s)


def box_of(row: dict) -> Box | None:
    """Return the part of the picture that is a video; None of the whole picture."""
    x, y, width, height = (row.get(name) for name in BOX)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def videos_row(row: dict, facts: VideoFacts | None, segments: int) -> dict:
    """Return a VIDEOS row with status ok, of a manifest row and its header."""
    return {
        **dict.fromkeys(("start_s", "end_s", *BOX, "ignored")),
        **row,
        **{name: getattr(facts, name, None) for name in FACTS},
        "num_segments": segments,
        "status": "ok",
        "stage": None,
        "error_type": None,
        "error": None,
    }


def plan_segments(videos: pa.Table) -> pa.Table:
    """Return the SEGMENTS rows of VIDEOS rows."""
    counts = videos["num_segments"].to_numpy()
    row = np.repeat(np.arange(len(counts)), counts)
    segment = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    video_id = videos["video_id"].take(row)
    ids = [f"{name}#{k:05d}" for name, k in zip(video_id.to_pylist(), segment, strict=True)]
    columns = {
        "segment_id": pa.array(ids, pa.string()),
        "video_id": video_id,
        "segment": pa.array(segment, pa.int32()),
        "num_segments": pa.array(counts[row], pa.int32()),
        "source": videos["source"].take(row),
    }
    return SEGMENTS.from_columns(columns)


class DecodeSegments:
    """A mapper of SEGMENTS rows (with uri and the video's status) to frames, decoded in a killable
    child.

    A row's column `decoder`, if it is there and not empty, stands before that of the settings; with
    `width_px` and `height_px` of the video, large pictures get more time; `start_s` and `end_s` are
    the stretch of the file that is the video, and `BOX` the part of its pictures.

    Args:
        windows: what the streams read (config.Describe.windows).
        compares: fail a row whose file is not the planned one any more, by its `source`.

    Attributes:
        traffic: what was read of all videos on object storage.
    """

    def __init__(
        self,
        sampling: Sampling,
        picture: Picture,
        decode: Decode,
        meter: Meter = SILENT,
        windows: tuple[Window, ...] = (FRAME,),
        compares: bool = False,
    ) -> None:
        logs.configure()
        self.sampling, self.picture, self.settings = sampling, picture, decode
        self.meter, self.windows, self.compares = meter, windows, compares
        if any(isinstance(window, FlowWindow) for window in windows):
            try:
                require_opencv()
            except ConfigError as error:
                meter.fail(f"{socket.gethostname()}: {error}")
                raise
        self.traffic = Traffic()
        flow_s = limit_s(windows, segment_frames(sampling), picture.resize_px)
        self.decoder = IsolatedDecoder(decode, flow_s)
        meter.joined("decode")

    def __call__(self, segments: pa.Table) -> Iterator[pa.Table]:
        spent = Sums(self.meter)
        for row in segments.to_pylist():
            began, started = time.time(), time.perf_counter()
            decoded, traffic = self._row(row), self.decoder.taken()
            if decoded["status"] != "ok":
                _tell(decoded)
            frames = pa.Table.from_pylist([decoded], schema=_FRAMES)
            seconds = time.perf_counter() - started
            if traffic.requests:
                spent.add("read", began, traffic.seconds)
                spent.moved(traffic.requests, traffic.num_bytes)
                self.traffic += traffic
            spent.add("decode", began, seconds - traffic.seconds)
            yield frames
        spent.tell()

    def _row(self, row: dict) -> dict:
        base = {
            "segment_id": row["segment_id"],
            "video_id": row["video_id"],
            "segment": row["segment"],
            "source": row["source"],
            "attempts": row.get("attempts", 1),
            "decoder": None,
            "stage": "decode",
        }
        if row["status"] == "failed":
            failed = {name: row[name] for name in ("stage", "error_type", "error")}
            return base | _no_frames() | failed | {"decode_s": 0.0}
        started = time.perf_counter()
        decoder = row.get("decoder") or self.settings.decoder
        try:
            frames: SegmentFrames = self.decoder.call(
                decode_segment,
                row["uri"],
                row["segment"],
                row["num_segments"],
                self.sampling,
                self.picture,
                dataclasses.replace(self.settings, decoder=decoder),
                self.windows,
                stretch_of(row),
                box_of(row),
                patience=patience(row.get("width_px"), row.get("height_px")),
            )
            frames.require(self.picture.decoded_shape, self.windows)
            if self.compares:
                _require_source(row)
        except VideoError as error:
            failed = {"error_type": error.error_type, "error": error.message}
            seconds = time.perf_counter() - started
            return base | _no_frames() | failed | {"decode_s": seconds}
        partial = frames.num_missing > 0
        return base | {
            "num_missing": frames.num_missing,
            "frame_indices": frames.frame_indices.tolist(),
            "timestamps_s": frames.timestamps_s.tolist(),
            "status": "partial" if partial else "ok",
            "stage": "decode" if partial else None,
            "error_type": frames.error_type,
            "error": frames.error,
            "decode_s": time.perf_counter() - started,
            "decoder": f"{frames.decoder} {frames.decoder_version}{_joined(frames.num_parts)}",
            "images": frames.images.tobytes(),
            "num_images": len(frames.images),
            "image_indices": frames.image_indices.tolist(),
            "places": [frames.places[window].ravel().tolist() for window in self.windows],
            "flows": [frames.flows[w].tobytes() for w in self.windows if isinstance(w, FlowWindow)],
        }


def _require_source(row: dict) -> None:
    """Check, after the last byte was read, that the file is still the planned one.

    Raises:
        VideoError: it was replaced, or is gone.
    """
    if source_now(row["uri"], box_of(row)) != row["source"]:
        raise VideoError(
            "changed",
            f"{row['uri']}: expected the file that was planned, got one of another size or time of "
            "change; give the same command again, which plans the new one",
        )


def _joined(num_parts: int) -> str:
    return f", a file of {num_parts} joined recordings" if num_parts > 1 else ""


def _tell(row: dict) -> None:
    """Log on this node why a row is not ok."""
    reason = logs.one_line(f"{row['error_type']}: {row['error']}")
    logs.of_video(log, row).warning("%s %s: %s", row["stage"], row["status"], reason)


def _no_frames() -> dict:
    return {
        "status": "failed",
        "num_missing": 0,
        "frame_indices": [],
        "timestamps_s": [],
        "images": b"",
        "num_images": 0,
        "image_indices": [],
        "places": [],
        "flows": [],
    }
