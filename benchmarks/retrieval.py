"""Which layer finds an image again (VU Figure 2.2): `python -m benchmarks.retrieval`.

Five frames of each of 25 moving clips of $VIDEO_FISHER_DATA/clips, of each a random crop of 62 % of
both sides: the first is the query, the other four are right, and the query is left out of its
ranking. VLAD with 100 words and intra-normalisation on every position of the layers of SqueezeNet
1.0 (weights of $VIDEO_FISHER_DATA/weights), at 224 px and at 448 px, and the unit vectors of both
side by side; mAP by the L2 distance of whole vectors, and after PCA with whitening. --quick: fewer
clips, 224 px alone. --json FILE writes the rows, which docs/retrieval.md shows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import progress, show
from benchmarks.pipeline_decode import data_folder
from encoders.backbones import load
from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import positions
from encoders.encodings.compress import fit_whitening
from encoders.encodings.normalise import l2
from encoders.registry import fit_encoder
from encoders.scores.retrieval import average_precision
from encoders.settings import VladSettings
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video.decode import decode_segment

CLIPS = (
    *("abseiling_k400.mp4", "arm_wrestling.mp4", "asl_walk.mkv", "big_buck_bunny_0_30.webm"),
    *("bikes.mp4", "bottle-detection.mp4", "camtrap_small_cat.mp4", "car-detection.mp4"),
    *("carphone_pristine.mp4", "chaplin.mp4", "chimp.mp4", "cosmos_clip_10s.mp4"),
    *("dog_eating_854132.mp4", "fall_subject1_13.mp4", "fire2.mp4", "flipping_a_pancake.mkv"),
    *("mmaction_test.avi", "mmaction_test2.mp4", "nasa_13013.mp4", "portrait_362x640.mp4"),
    *("portrait_480x640.mp4", "v_Basketball_g01_c01.avi", "v_GGSY1Qvo990.mp4"),
    *("v_ZNVhz7ctTq0.mp4", "video_with_failing_audio.mp4"),
)
"""None of them is another one in another format, a test picture, or a plot."""

FRAMES, SHARE = 5, 0.62
BACKBONE = "squeezenet1_0"
LAYERS = ("features.5", "features.7", "features.8", "features.10", "features.12")
SIDES_PX = (224, 448)
NUM_WORDS, NUM_FEATURES, SEED = 100, 128, 0


def crops(clips: Sequence[str]) -> list[Image.Image]:
    """Return a random crop of each frame, those of a clip together."""
    draw = np.random.default_rng(SEED)
    sampling = Sampling(policy="uniform", num_frames=FRAMES)
    large = Picture(resize_px=720, crop_px=720)
    found = []
    for name in clips:
        path = str(data_folder() / "clips" / name)
        frames = decode_segment(path, 0, 1, sampling, large, Decode()).images
        for frame in frames:
            size = round(SHARE * len(frame))
            top, left = draw.integers(len(frame) - size, size=2)
            found.append(Image.fromarray(frame[top : top + size, left : left + size]))
    return found


def vectors(images: Sequence[Image.Image], side_px: int) -> dict[str, Tensor]:
    """Return {layer: VLAD [N, D] of the images}."""
    weights = data_folder() / "weights" / f"{BACKBONE}.safetensors"
    packed = load.load_file(weights.read_bytes(), weights.name)
    network = load.build(BACKBONE, LAYERS, packed)
    rows: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    for image in images:
        pixels = np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR))
        for layer, maps in network.maps(torch.from_numpy(pixels.copy())[None]).items():
            rows[layer].append(positions(maps, "per_position").half())
    return {layer: _vlad(torch.cat(own)) for layer, own in rows.items()}


def _vlad(rows: Tensor) -> Tensor:
    """Return the vectors [N, D] of rows [N, T, C], by a vocabulary of their own."""
    sample = FitSample(frames=rows, video=torch.arange(len(rows)), seed=SEED)
    settings = VladSettings(num_centroids=NUM_WORDS, intra=True)
    vlad = fit_encoder("vlad", sample, settings, "l2")
    return torch.stack([vlad.finalise(vlad.accumulate(own.float())) for own in rows])


def mean_precision(found: Tensor) -> float:
    """Return the mAP of vectors [N, D] of length 1, FRAMES after FRAMES."""
    similarity = (found @ found.T).numpy()
    precisions = []
    for query in range(0, len(found), FRAMES):
        ignored = np.arange(len(found)) == query
        right = np.arange(len(found)) // FRAMES == query // FRAMES
        precisions.append(average_precision(similarity[query], right & ~ignored, ignored))
    return float(np.mean(precisions))


def measure(by_side: dict[int, dict[str, Tensor]]) -> list[dict[str, object]]:
    """Return a row for each layer and side, and for the sides joined."""
    rows = []
    for layer in LAYERS:
        found = {str(side): by_side[side][layer] for side in by_side}
        if len(found) > 1:
            found[" + ".join(found)] = l2(torch.cat(list(found.values()), 1))
        for name, own in found.items():
            short = fit_whitening(own, NUM_FEATURES).transform(own)
            values = {"mAP": mean_precision(own), "after PCA": mean_precision(short)}
            rows.append({"layer": layer, "px": name, "D": own.shape[1], **values})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer clips, one size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = crops(CLIPS[:6] if arguments.quick else CLIPS)
    by_side = {}
    for side_px in SIDES_PX[:1] if arguments.quick else SIDES_PX:
        by_side[side_px] = vectors(images, side_px)
        progress(f"{len(images)} crops at {side_px} px")
    rows = measure(by_side)
    show(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
