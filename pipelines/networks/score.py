"""The Ray callable that scores tested videos by trained networks: rows of CLIPS to scores of clips.

Arrow table in, Arrow table out, one object per actor; an ordinary class that works without Ray.
"""

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from encoders.backbones.flow_input import COLOURS
from encoders.descriptors.views import mirrored_flow, mirrored_picture, views_of
from encoders.networks import training
from encoders.networks.base import Network
from encoders.networks.flow.actionflownet import ActionFlowNet
from encoders.networks.over_time.head import OverTime
from encoders.networks.over_time.timeline import scores_over_time
from encoders.networks.registry import network_class
from encoders.networks.scoring import clip_scores, drawn_clips
from pipelines import logs
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.device import device
from pipelines.cluster.meter import SILENT, Meter
from pipelines.errors import RunError
from pipelines.networks.activation import activation_rows
from pipelines.networks.clips import decoding
from pipelines.networks.flows import flow_rows
from pipelines.networks.maps import StoredMaps
from pipelines.networks.streamed import channels, column
from pipelines.networks.train import source_of
from pipelines.run.codebook import FittedNetwork
from pipelines.settings.config import Config
from pipelines.storage.store import Store
from pipelines.storage.tables import CAMS, CLIP_SCORES, FLOWS, SCORES, SCORES_OVER_TIME

_OF_VIDEO = ("video_id", "encoder", "stream", "fold")

_OF_MAP = ("subnetwork", "place", "frame_indices", "picture", "values")

_AT_FRAME = ("frame_index", "timestamp_s", "scores")
_OF_FLOW = tuple(name for name in FLOWS.schema().names if name not in _OF_VIDEO)

_SCORED = pa.schema(
    [
        *(SCORES.schema().field(name) for name in _OF_VIDEO),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float64())),
        pa.field("frame_indices", pa.list_(pa.list_(pa.int64()))),
        pa.field("subnetworks", pa.list_(pa.string())),
        pa.field("clip_scores", pa.list_(pa.list_(pa.list_(pa.float32())))),
        pa.field(
            "over_time",
            pa.list_(pa.struct([SCORES_OVER_TIME.schema().field(name) for name in _AT_FRAME])),
        ),
        pa.field("maps", pa.list_(pa.struct([CAMS.schema().field(name) for name in _OF_MAP]))),
        pa.field("flows", pa.list_(pa.struct([FLOWS.schema().field(name) for name in _OF_FLOW]))),
    ]
)


class ScoreVideos:
    """A mapper of places of CLIPS (file, row, video_id, fold, is_shown), or of maps in DESCRIPTORS
    (files, rows, video_id, fold), to a row of scores for each video.

    Networks are loaded when a fold comes first, and the last `most_kept` are kept.

    Args:
        networks: of one result, by fold.
        stored: the maps, for networks that read them.
    """

    most_kept = 1

    def __init__(
        self,
        store: Store,
        config: Config,
        networks: dict[int, FittedNetwork],
        start: tuple[str, SharedFile],
        classes: list[str],
        meter: Meter = SILENT,
        stored: StoredMaps | None = None,
    ) -> None:
        logs.configure()
        meter.joined("score")
        self.device = device(meter, config.cluster.allow_missing_gpu)
        self.store, self.config, self.networks, self.meter = store, config, networks, meter
        (self.node, self.weights), self.classes = start, classes
        self.loaded: dict[int, Network] = {}
        self.decoded: pa.Table | None = None
        self.stored, self.reader = stored, stored.reader(store) if stored else None
        self.decoder = None
        if config.network.stream and not stored:
            kind, arguments = decoding(config, meter)
            self.decoder = kind(*arguments)

    def __call__(self, places: pa.Table) -> pa.Table:
        rows = []
        for place in places.to_pylist():
            network = self.of_fold(place["fold"])
            with self.meter("read"):
                frames, indices, times_s = self.frames(place)
            with self.meter("score"):
                row = self.row(network, place, frames, indices)
                if self._is_over_time(place) and isinstance(network, OverTime):
                    row |= self._over_time(network, frames, indices, times_s)
                rows.append(row)
        return pa.Table.from_pylist(rows, schema=_SCORED)

    def _is_over_time(self, place: dict) -> bool:
        wanted = self.config.network.over_time
        return wanted == "all" or (wanted == "shown" and bool(place.get("is_shown")))

    def of_fold(self, fold: int) -> Network:
        """Return the network of a fold."""
        if fold not in self.loaded:
            if len(self.loaded) == self.most_kept:
                # Before the next one is loaded: two may not fit.
                self.loaded.clear()
            fitted = self.networks[fold]
            with self.meter("read"):
                source = source_of(self.config, self.node, self.weights(), fitted)
                kind = network_class(fitted.base)
                network = kind.build(source, fitted.settings, len(self.classes))
                names = self.store.files(fitted.folder, ".safetensors")
                files = {name.rsplit("/", 1)[-1]: self.store.read(name) for name in names}
                self.loaded[fold] = network.load_files(files).to(self.device)
        return self.loaded[fold]

    def frames(self, place: dict) -> tuple[torch.Tensor, list[int], list[float]]:
        """Return the kept frames [n, side, side, c] of a video, or its maps [n, C, h, w], and their
        places and times in it (CLIPS of before have none)."""
        if self.stored and self.reader:
            maps, indices, times_s = self.stored.read(self.reader, place["files"], place["rows"])
            return torch.from_numpy(maps), indices, times_s
        network, stream = self.config.network, self.networks[place["fold"]].stream
        table = self._clip(place, [column(stream), "frame_indices", "timestamps_s"])
        shape = (-1, network.side_px, network.side_px, channels(network, stream))
        data = table[column(stream)][0].as_buffer()
        frames = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(shape).copy())
        indices = table["frame_indices"][0].as_py()
        times_s = [float("nan")] * len(indices)
        if "timestamps_s" in table.column_names and table["timestamps_s"][0].is_valid:
            times_s = table["timestamps_s"][0].as_py()
        # Flow is of the last frames.
        return frames, indices[-len(frames) :], times_s[-len(frames) :]

    def _clip(self, place: dict, names: list[str]) -> pa.Table:
        """Return some columns of a video's row of CLIPS, with its pictures."""
        if self.decoder is None:
            with self.store.open_parquet(place["file"]) as file:
                group, row = _group_of(file.metadata, place["row"])
                there = [name for name in names if name in file.schema_arrow.names]
                return file.read_row_group(group, columns=there).slice(row, 1)
        if self.decoded is None or self.decoded["video_id"][0].as_py() != place["video_id"]:
            (decoded,) = self.decoder(pa.Table.from_pylist([place]))
            self.decoded = decoded
            if not decoded["frame_indices"][0].as_py():
                error = decoded["error"][0].as_py()
                raise RunError(
                    f"network.stream: expected the frames of {place['video_id']}, got none "
                    f"({error}); give the command again"
                )
        return self.decoded

    def row(self, network: Network, place: dict, frames: torch.Tensor, indices: list[int]) -> dict:
        """Return the scores of a video, by the network of the fold that `place` names."""
        settings, fitted = self.config.network, self.networks[place["fold"]]
        draw = training.generator(
            "cpu", self.config.run.seed, zlib.crc32(place["video_id"].encode())
        )
        size = 1 if fitted.reads_maps else self.config.run_frames
        clips = drawn_clips(len(frames), size, network, settings.test_clips, draw)
        outputs = clip_scores(network, frames, clips, settings.test_views, settings.crop_px)
        scores = network.scores(outputs).mean(0)
        maps = []
        # Networks on full-length video join positions before the scores.
        has_maps = fitted.stream == "rgb" and not fitted.settings.reads_maps
        if place.get("is_shown") and has_maps:
            clip, crop_px = clips[0], settings.crop_px
            own = [indices[frame] for frame in clip]
            maps = activation_rows(network, frames[clip], own, crop_px, int(scores.argmax()))
        return {
            "video_id": place["video_id"],
            "encoder": fitted.encoder,
            "stream": fitted.stream,
            "fold": fitted.fold,
            "labels": self.classes,
            "scores": scores.double().tolist(),
            "frame_indices": [[indices[frame] for frame in clip] for clip in clips],
            "subnetworks": list(outputs),
            "clip_scores": [values.tolist() for values in outputs.values()],
            "maps": maps,
            "over_time": [],
            "flows": self._flows(network, place, frames, indices, clips[0]),
        }

    def _over_time(
        self, network: OverTime, frames: torch.Tensor, indices: list[int], times_s: list[float]
    ) -> dict:
        if network.reads != "maps":
            mirrored = mirrored_picture if frames.shape[-1] == COLOURS else mirrored_flow
            (frames,) = views_of(frames, "centre", self.config.network.crop_px, mirrored)
        scores = scores_over_time(network, frames)
        parts = zip(indices, times_s, scores.tolist(), strict=True)
        names = ("frame_index", "timestamp_s", "scores")
        return {"over_time": [dict(zip(names, part, strict=True)) for part in parts]}

    def _flows(
        self,
        network: Network,
        place: dict,
        frames: torch.Tensor,
        indices: list[int],
        clip: list[int],
    ) -> list[dict]:
        """Return rows of FLOWS of a clip, by the places of its frames; none of other networks."""
        if not (isinstance(network, ActionFlowNet) and network.num_flows):
            return []
        settings, size = self.config.network, self.config.run_frames
        data = self._clip(place, ["flow"])["flow"][0].as_buffer()
        levels = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        # Of each run those between its frames: there is none from its last one on.
        levels = levels.view(-1, settings.side_px, settings.side_px, size - 1, 2)
        run, first = divmod(clip[0], size)
        first_px = (settings.side_px - settings.crop_px) // 2
        crop = slice(first_px, first_px + settings.crop_px)
        own = levels[run, crop, crop, first : first + network.num_flows].permute(2, 0, 1, 3)
        return flow_rows(
            network,
            frames[clip][:, crop, crop],
            own,
            settings.flow_bound_px,
            [indices[frame] for frame in clip],
            is_shown=bool(place.get("is_shown")),
        )


def _group_of(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    """Return the row group of a row of a file, and its place there."""
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if row < size:
            return group, row
        row -= size
    raise IndexError(f"row {row} is behind the last row group")


def clip_rows(rows: pa.Table) -> pa.Table:
    """Return the CLIP_SCORES of `ScoreVideos`' rows."""
    return CLIP_SCORES.build(
        [
            {
                **{name: row[name] for name in (*_OF_VIDEO, "labels")},
                "clip": clip,
                "subnetwork": subnetwork,
                "frame_indices": frames,
                "scores": scores[clip],
            }
            for row in rows.to_pylist()
            for subnetwork, scores in zip(row["subnetworks"], row["clip_scores"], strict=True)
            for clip, frames in enumerate(row["frame_indices"])
        ]
    )


def time_rows(rows: pa.Table) -> pa.Table:
    """Return the SCORES_OVER_TIME of `ScoreVideos`' rows."""
    return SCORES_OVER_TIME.build(
        [
            {
                **{name: row[name] for name in (*_OF_VIDEO, "labels")},
                "label": row["labels"][int(np.argmax(values["scores"]))],
                **values,
            }
            for row in rows.to_pylist()
            for values in row["over_time"]
        ]
    )


def map_rows(rows: pa.Table, labels: dict[str, list[str]]) -> pa.Table:
    """Return the CAMS of `ScoreVideos`' rows, with {video: its true labels}."""
    return CAMS.build(
        [
            {
                **{name: row[name] for name in _OF_VIDEO},
                "label": row["labels"][int(np.argmax(row["scores"]))],
                "labels": labels[row["video_id"]],
                **values,
            }
            for row in rows.to_pylist()
            for values in row["maps"]
        ]
    )


def flow_table(rows: pa.Table) -> pa.Table:
    """Return the FLOWS of `ScoreVideos`' rows."""
    return FLOWS.build(
        [
            {**{name: row[name] for name in _OF_VIDEO}, **values}
            for row in rows.to_pylist()
            for values in row["flows"]
        ]
    )


def score_rows(rows: pa.Table, labels: dict[str, list[str]]) -> pa.Table:
    """Return the SCORES of `ScoreVideos`' rows, with {video: its true labels}."""
    return SCORES.build(
        [
            {
                **{name: row[name] for name in _OF_VIDEO},
                "label": label,
                "is_true": label in labels[row["video_id"]],
                "score": score,
            }
            for row in rows.to_pylist()
            for label, score in zip(row["labels"], row["scores"], strict=True)
        ]
    )
