"""Correspondence of local descriptors (VU 2.4.3): pictures that show what a layer takes for alike.

Figure 2.3: each cell of a picture is replaced by the mean of the patches of its nearest rows in
other images. Figure 2.4: sampled rows, and the patches of their nearest rows in order. A row is the
descriptor of one cell, scaled to length 1; its patch is the square of n / n_l px at the cell, of a
picture of n px and n_l x n_l cells.

No cluster. Letters: n rows, C channels.
"""

import contextlib
import dataclasses
import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from encoders.descriptors.streams import Stream
from encoders.stream_specs import FRAME
from pipelines.describe.segments import SegmentReader, stored_frames
from pipelines.describe.stage import described_streams
from pipelines.errors import ConfigError
from pipelines.index import current_rows
from pipelines.run.saved import SavedRun
from pipelines.search.video_ids import near_id
from pipelines.storage.store import Store
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.stages import box_of, stretch_of

log = logging.getLogger(__name__)

NEIGHBOURS = (1, 5)
"""Nearest rows whose patches are averaged (VU Figure 2.3)."""

CLUSTER = 10
"""Nearest patches beside a sampled one (VU Figure 2.4)."""

ROWS_BYTES = 2**30
"""Bytes of the rows that are searched; of a larger collection a part of the images is."""

NUM_IMAGES = 4
"""Images that are repainted where none is named."""

SEED = 0


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of length 1 of one layer, image after image, frame after frame, cell after cell.

    Attributes:
        vectors: float32 [n, C].
        video_ids: of the images.
        firsts: [images + 1] first row of each, and n.
        side: n_l, cells of a row of the layer's map.
    """

    vectors: np.ndarray
    video_ids: list[str]
    firsts: np.ndarray
    side: int

    def place(self, row: int) -> tuple[str, int, int]:
        """Return the image, the frame and the cell of a row."""
        image = int(np.searchsorted(self.firsts, row, side="right")) - 1
        frame, cell = divmod(int(row - self.firsts[image]), self.side**2)
        return self.video_ids[image], frame, cell

    def span(self, video_id: str) -> tuple[int, int]:
        """Return the first row of an image, and that of the next one."""
        image = self.video_ids.index(video_id)
        return int(self.firsts[image]), int(self.firsts[image + 1])

    def nearest(self, rows: np.ndarray, span: tuple[int, int], num: int) -> np.ndarray:
        """Return the `num` rows nearest to each of some rows of an image, [rows, num], nearest
        first, none of them within `span`."""
        # Both sides of the span, without a copy of the rows.
        similar, places = [], []
        for start, part in ((0, self.vectors[: span[0]]), (span[1], self.vectors[span[1] :])):
            if len(part):
                values, found = faiss.knn(
                    self.vectors[rows], part, min(num, len(part)), metric=faiss.METRIC_INNER_PRODUCT
                )
                similar.append(values)
                places.append(found + start)
        order = np.argsort(-np.concatenate(similar, 1), axis=1, kind="stable")[:, :num]
        return np.take_along_axis(np.concatenate(places, 1), order, 1)


@dataclass(frozen=True)
class Picture:
    """An image as it is, and repainted by each number of NEIGHBOURS: uint8 [n, n, 3] each."""

    video_id: str
    pixels: np.ndarray
    repainted: dict[int, np.ndarray]


@dataclass(frozen=True)
class Layer:
    """The pictures of one stream.

    Attributes:
        clusters: for each sampled row its patch and the nearest ones, uint8 [1 + CLUSTER, p, p, 3].
        num_images: that were searched; num_left_out: that did not fit.
    """

    stream: str
    side: int
    patch_px: int
    pictures: tuple[Picture, ...]
    clusters: tuple[np.ndarray, ...]
    num_images: int
    num_left_out: int


def correspond(
    out: str, streams: Sequence[str], images: Sequence[str], num_clusters: int
) -> tuple[SavedRun, list[Layer]]:
    """Return a run, and the pictures of some of its streams.

    Args:
        streams: of positions; none given: all that are.
        images: video_ids to repaint.

    Raises:
        ConfigError: there is no such run, stream or image, or it has fewer than two images.
    """
    run = SavedRun.open(out)
    described = described_streams(run.config)
    local = [
        name
        for name, stream in described.items()
        # Positions of one square map: a row's place in it is that of its patch.
        if stream.kind in ("positions", "dense")
        and not stream.scales
        and math.isqrt(stream.cells) ** 2 == stream.cells
    ]
    for name in streams:
        if name not in local:
            raise ConfigError(
                f"--stream {name}: expected a stream of positions, which are "
                f"{', '.join(local) or 'none here; run the job with describe.streams=dense'}"
            )
    if not local:
        raise ConfigError(
            f"--out {out}: expected a stream of positions, found {', '.join(described)}; run the "
            "job with --set describe.streams=dense"
        )
    return run, [_layer(run, described[name], images, num_clusters) for name in streams or local]


def _layer(run: SavedRun, stream: Stream, images: Sequence[str], num_clusters: int) -> Layer:
    rows, num_left_out = read_rows(run, stream, images)
    shown = images or rows.video_ids[:NUM_IMAGES]
    nearest = {}
    for video in shown:
        first, last = span = rows.span(video)
        # One frame of a video: of an image the only one.
        own = np.arange(first, min(last, first + rows.side**2))
        nearest[video] = own, rows.nearest(own, span, max(NEIGHBOURS))
    sampled = _clusters(rows, num_clusters)
    asked = [row for own, found in nearest.values() for row in (*own, *found.flat)]
    asked += [row for cluster in sampled for row in cluster]
    patches = read_patches(run, rows, asked)
    return Layer(
        stream=stream.name,
        side=rows.side,
        patch_px=len(patches[asked[0]]),
        pictures=tuple(
            Picture(
                video,
                painted(rows.side, [patches[row] for row in own]),
                {
                    num: painted(rows.side, [_mean(patches, row[:num]) for row in found])
                    for num in NEIGHBOURS
                },
            )
            for video, (own, found) in nearest.items()
        ),
        clusters=tuple(np.stack([patches[row] for row in cluster]) for cluster in sampled),
        num_images=len(rows.video_ids),
        num_left_out=num_left_out,
    )


def _mean(patches: dict[int, np.ndarray], rows: np.ndarray) -> np.ndarray:
    return np.mean([patches[row] for row in rows], 0)


def painted(side: int, patches: Sequence[np.ndarray]) -> np.ndarray:
    """Return side^2 patches [p, p, 3], row by row, as one picture uint8 [side p, side p, 3]."""
    px = len(patches[0])
    grid = np.stack(patches).reshape(side, side, px, px, 3)
    whole = grid.transpose(0, 2, 1, 3, 4).reshape(side * px, side * px, 3)
    return np.rint(whole).astype(np.uint8)


def _clusters(rows: Rows, num: int) -> list[list[int]]:
    """Return some rows drawn from all, each with its nearest ones in other images."""
    draw = np.random.default_rng(SEED)
    chosen = draw.choice(len(rows.vectors), min(num, len(rows.vectors)), replace=False)
    clusters = []
    for row in chosen.tolist():
        span = rows.span(rows.place(row)[0])
        found = rows.nearest(np.array([row]), span, CLUSTER)
        clusters.append([row, *found[0].tolist()])
    return clusters


# --- descriptors ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tables:
    store: Store
    segments: str
    descriptors: str


def read_rows(run: SavedRun, stream: Stream, first: Sequence[str]) -> tuple[Rows, int]:
    """Return the rows of the images of a run, and the number of images that did not fit: the named
    ones first, the others in an order that their names fix.

    Raises:
        ConfigError: a named image has no descriptors, or there are fewer than two images.
    """
    tables = _Tables(run.store, run.tables["segments"], run.tables["descriptors"])
    by_video: dict[str, list[dict]] = defaultdict(list)
    for place in current_rows.places(tables).to_pylist():
        by_video[place["video_id"]].append(place)
    for video in first:
        if video not in by_video:
            raise ConfigError(
                f"--image {video}: expected a video_id of the run with descriptors"
                f"{near_id(video, [*by_video]) if by_video else ''}"
            )
    others = sorted(by_video.keys() - set(first), key=lambda v: hashlib.sha256(v.encode()).digest())
    reader = SegmentReader(run.store, [stream.name])
    parts, video_ids, num_bytes = [], [], 0
    ordered = [*dict.fromkeys(first), *others]
    for video in ordered:
        if num_bytes > ROWS_BYTES:
            break
        segments = (reader.read(place["file"], place["row"]) for place in by_video[video])
        # Of several views the first is the centre, which the pictures show.
        views = [stored_frames(segment, stream)[:, : stream.cells] for segment in segments]
        parts.append(np.concatenate(views).reshape(-1, stream.width).astype(np.float32))
        video_ids.append(video)
        num_bytes += parts[-1].nbytes
    if len(parts) < 2:
        raise ConfigError(f"--out {run.store.root}: expected at least two images, got {len(parts)}")
    vectors = np.concatenate(parts)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    firsts = np.cumsum([0, *map(len, parts)])
    return Rows(vectors, video_ids, firsts, math.isqrt(stream.cells)), len(ordered) - len(parts)


# --- pictures ---------------------------------------------------------------------------------


def read_patches(run: SavedRun, rows: Rows, asked: Sequence[int]) -> dict[int, np.ndarray]:
    """Return {row: its patch, float32 [p, p, 3]}, grey where the file cannot be read any more."""
    size = run.config.picture.crop_px
    px = max(1, round(size / rows.side))
    patches = dict.fromkeys(map(int, asked), np.full((px, px, 3), 127.5, np.float32))
    by_video: dict[str, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for row in patches:
        video, frame, cell = rows.place(row)
        by_video[video][frame].append((row, cell))
    facts = run.store.read_rows(run.videos, None, "video_id", [*by_video]).to_pylist()
    num_gone = 0
    with IsolatedDecoder(run.config.decode) as decoder:
        for video in facts:
            wanted = by_video[video["video_id"]]
            frames = _frames(run, decoder, video, max(wanted))
            num_gone += not frames
            for number, cells in wanted.items():
                for row, cell in cells if number < len(frames) else ():
                    top, left = (
                        min(round(at * size / rows.side), size - px)
                        for at in divmod(cell, rows.side)
                    )
                    patches[row] = frames[number][top : top + px, left : left + px]
    if num_gone:
        log.warning("%d of %d images cannot be read any more: grey", num_gone, len(facts))
    return patches


def _frames(run: SavedRun, decoder: IsolatedDecoder, video: dict, last: int) -> list[np.ndarray]:
    """Return the frames of a video up to number `last`, as the network is given them; none where
    the file cannot be decoded."""
    config = run.config
    picture = dataclasses.replace(config.picture, views="centre")
    frames: list[np.ndarray] = []
    with contextlib.suppress(VideoError):
        for segment in range(video["num_segments"]):
            asked = (video["uri"], segment, video["num_segments"], config.sampling, picture)
            decoded = decoder.call(
                decode_segment,
                *asked,
                config.decode,
                (FRAME,),
                stretch_of(video),
                box_of(video),
            )
            images = decoded.images[decoded.places[FRAME][:, 0]]
            frames += list(images.astype(np.float32))
            if len(frames) > last:
                break
    return frames
