"""Confidence of a class over a picture: what each single position says of it (FK 4.5)."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import torch

from encoders.descriptors.streams import Stream
from encoders.descriptors.windows import mean_of_windows, windows
from encoders.encodings.base import Encoder
from encoders.encodings.per_scale import PerScale
from pipelines.describe.segments import stored_frames
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.encode.stage import load_encoder
from pipelines.errors import ConfigError
from pipelines.index.user_tables import using
from pipelines.predict.model import Model, Scorer, choose
from pipelines.run.saved import SavedRun
from pipelines.settings.config import Config
from pipelines.settings.sections import Picture, Sampling
from pipelines.storage.pictures import image_file
from pipelines.storage.store import Store
from pipelines.storage.tables import CONFIDENCE
from pipelines.storage.uris import absolute_uri
from pipelines.video.stages import DecodeSegments

CELLS = 64
"""Cells along a side of the grid over the picture."""

ROWS_AT_A_TIME = 256
"""Positions whose vectors are held at once: each is as long as that of a video."""

NO_BOX: Mapping[str, float | None] = MappingProxyType({})
"""Of a picture that is described whole."""

SHOWN_PX = 512
_COLORS = mpl.colormaps["inferno"]
_OPACITY = 0.6


@dataclass(frozen=True)
class Confidence:
    """A class over a picture.

    Attributes:
        score: of the whole picture. values: [CELLS, CELLS], NaN where no position sees a cell.
        picture, table: URIs of the PNG and of CONFIDENCE.
    """

    label: str
    score: float
    values: np.ndarray
    picture: str
    table: str


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        out: the run. to: the PNG to write; CONFIDENCE lies beside it.
        label: the class; None: that with the highest score.
        encoder, stream: of the result to use; None: the best that is kept.
        fold: use the classifier that this fold was left out of; None: the final one.
    """

    out: str
    image: str
    to: str
    label: str | None = None
    encoder: str | None = None
    stream: str | None = None
    fold: int | None = None


def confidence(request: Request) -> Confidence:
    """Write the confidence of a class over a picture, or over the first frame of a film.

    Raises:
        ConfigError: the run has no such result, it is not of single positions, or the picture
            cannot be decoded.
    """
    run, label, to = SavedRun.open(request.out), request.label, request.to
    asked = {"encoder": request.encoder, "stream": request.stream, "fusion": "none"}
    model = choose(run, asked, request.fold)
    stream = _stream(run, model)
    encoder = load_encoder(model.encoded[0].codebook, run.store, "cpu")
    uri = absolute_uri(request.image)
    with torch.inference_mode():
        rows = described_rows(run, stream, uri)
        scorer = Scorer(run.store, model)
        whole = encoder.encode(rows.reshape(-1, encoder.descriptor_dim)).numpy()[None]
        own = scorer.scores([whole])[0]
        names = list(scorer.classes)
        if label is not None and label not in names:
            raise ConfigError(f"--class {label}: expected one of {', '.join(names)}")
        number = int(own.argmax()) if label is None else names.index(label)
        values = over_picture(run.config.describe.backbone, stream, encoder, rows, scorer, number)
    found = Confidence(names[number], float(own[number]), values, *_files(to))
    _publish(found, model, uri, to, shown(uri, run.config))
    return found


def over_picture(
    network: str, stream: Stream, encoder: Encoder, rows: torch.Tensor, scorer: Scorer, label: int
) -> np.ndarray:
    """Return the confidence [CELLS, CELLS] of a class, from rows [T, C] of one frame."""
    places, scores = [], []
    for scale, span in zip(stream.scales, stream.spans, strict=True):
        if isinstance(encoder, PerScale) and not encoder.covers(scale.side_px):
            continue
        places.append(windows(network, scale))
        for first, part in _parts(rows[span]):
            vectors = (
                encoder.encode_rows(part, scale.side_px, first)
                if isinstance(encoder, PerScale)
                else encoder.encode_batch(part, [1] * len(part))
            )
            scores.append(scorer.scores([vectors.numpy()])[:, label])
    return mean_of_windows(np.concatenate(places), np.concatenate(scores), CELLS)


def _parts(rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    for first in range(0, len(rows), ROWS_AT_A_TIME):
        yield first, rows[first : first + ROWS_AT_A_TIME]


def _stream(run: SavedRun, model: Model) -> Stream:
    if model.networks:
        raise ConfigError(
            f"--out {run.store.root}: expected a result of an encoder, got the network "
            f"{model.name}; name an encoder with --encoder"
        )
    stream = described_streams(run.config)[model.stream]
    book = model.encoded[0].codebook
    if not all(scale.height for scale in stream.scales) or book.temporal_pyramid != (1,):
        raise ConfigError(
            f"--out {run.store.root}: expected a result on positions of maps, got {model.name}; "
            "run the job with --set describe.streams=dense, or name another result"
        )
    return stream


def described_rows(
    run: SavedRun, stream: Stream, uri: str, box: Mapping[str, float | None] = NO_BOX
) -> torch.Tensor:
    """Return the descriptors [T, C] of the first view of a picture, as the run describes it."""
    frames = _decoded(uri, run.config.picture, run.config, box)
    describe = DescribeFrames(
        lambda: run.store.read(run.weights),
        run.config,
        {stream.name: stream},
        torch.get_num_threads(),
        projection=lambda: run.store.read(run.projection),
    )
    described = stored_frames(describe(frames), stream)
    return torch.from_numpy(described[0, : stream.cells].copy()).float()


def shown(uri: str, config: Config, box: Mapping[str, float | None] = NO_BOX) -> np.ndarray:
    """Return what the network saw of the picture, [SHOWN_PX, SHOWN_PX, 3]."""
    picture = config.picture
    share = 1.0 if picture.scales else picture.crop_px / picture.resize_px
    side = {"resize_px": round(SHOWN_PX / share), "crop_px": SHOWN_PX, "scales": ()}
    seen = dataclasses.replace(picture, views="centre", **side)
    pixels = np.frombuffer(_decoded(uri, seen, config, box)["images"][0].as_py(), np.uint8)
    return pixels.reshape(-1, SHOWN_PX, SHOWN_PX, 3)[0]


def _decoded(
    uri: str, picture: Picture, config: Config, box: Mapping[str, float | None]
) -> pa.Table:
    """Return the first frame, as a stage that describes takes it.

    Raises:
        ConfigError: it cannot be decoded.
    """
    one, read = Sampling(policy="uniform", num_frames=1), config.describe.windows
    decode = DecodeSegments(one, picture, config.decode, windows=read)
    row = {"segment_id": uri, "video_id": uri, "segment": 0, "num_segments": 1, "source": "", **box}
    with closing(decode.decoder):
        [frames] = decode(pa.Table.from_pylist([row | {"uri": uri, "status": "ok"}]))
    if frames["status"][0].as_py() == "failed":
        raise ConfigError(f"--image {uri}: cannot be decoded ({frames['error'][0].as_py()})")
    return frames


def painted(frame: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a frame [h, w, 3] in grey under the colours of values [s, s]: light is high. What no
    position sees stays grey.
    """
    height, width = frame.shape[:2]
    low, high = np.nanmin(values), np.nanmax(values)
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    rows = np.arange(height) * len(values) // height
    columns = np.arange(width) * len(values) // width
    shares = shares[np.ix_(rows, columns)]
    grey = np.repeat((frame @ np.array([0.299, 0.587, 0.114]))[..., None], 3, 2)
    colours = _COLORS(np.nan_to_num(shares))[..., :3] * 255
    mixed = _OPACITY * colours + (1 - _OPACITY) * grey
    return np.where(np.isnan(shares)[..., None], grey, mixed).round().astype(np.uint8)


def _files(to: str) -> tuple[str, str]:
    """Return the URIs of the PNG and of CONFIDENCE."""
    uri = absolute_uri(to)
    if not uri.lower().endswith(".png"):
        raise ConfigError(f"--to {to}: expected a file NAME.png")
    return uri, f"{uri[:-4]}.parquet"


def _publish(found: Confidence, model: Model, uri: str, to: str, frame: np.ndarray) -> None:
    folder, name = os.path.split(found.picture)
    row = {
        "uri": uri,
        "encoder": model.encoder,
        "stream": model.stream,
        "class": found.label,
        "score": found.score,
        "cells": CELLS,
        "values": found.values.ravel().tolist(),
    }
    store = Store(folder)
    with using("--to", to, "write there"):
        store.publish(name, image_file(painted(frame, found.values), kind="PNG"))
        store.publish_table(f"{name[:-4]}.parquet", CONFIDENCE.build([row]), {})
