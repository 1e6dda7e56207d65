"""Attention of an FV-VAE over pictures, at each position of the maps (DQ appendix B, Figure 6)."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.describe.stage import described_streams
from pipelines.encode.stage import load_encoder
from pipelines.predict.confidence import described_rows, painted, shown
from pipelines.run.saved import SavedRun
from pipelines.storage.pictures import image_file
from pipelines.video.stages import BOX


@dataclass(frozen=True)
class Attention:
    """The attention of one picture: its name, its values at the positions, and a PNG of it beside
    the picture.
    """

    video: str
    values: np.ndarray
    png: bytes


def attention(run: SavedRun, number: int) -> list[Attention]:
    """Return the attention of some tested pictures, evenly spread over them; nothing where the run
    has no FV-VAE on positions of one size.
    """
    streams = described_streams(run.config)
    for encoder, stream in run.encodings:
        book = run.codebook((encoder, stream)) if stream in streams else None
        if book is None or book.base != "fv_vae" or book.settings.is_scaled:
            continue
        (scale, *others), loaded = streams[stream].scales, load_encoder(book, run.store, "cpu")
        if others or not scale.height:
            continue
        found = []
        for row in _tested(run, number):
            box = {name: row[name] for name in BOX}
            with torch.inference_mode():
                rows = described_rows(run, streams[stream], row["uri"], box)
                values = loaded.attention(rows).reshape(scale.height, scale.width).numpy()
            frame = shown(row["uri"], run.config, box)
            sides = np.concatenate([frame, painted(frame, values)], axis=1)
            found.append(Attention(row["video_id"], values, image_file(sides, kind="PNG")))
        return found
    return []


def _tested(run: SavedRun, number: int) -> list[dict]:
    columns = ["video_id", "uri", "fold", "status", *BOX]
    videos = run.store.read_table(run.videos, columns).sort_by("video_id")
    is_tested = pc.and_(pc.equal(videos["status"], "ok"), pc.greater_equal(videos["fold"], 0))
    videos = videos.filter(is_tested)
    count = min(number, videos.num_rows)
    places = [videos.num_rows * place // count for place in range(count)]
    return videos.take(pa.array(places, pa.int64())).to_pylist()
