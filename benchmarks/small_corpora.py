"""Accuracy of encoders on a small corpus, over several seeds: one fit of k-means, EM or SGD says little there.

    python -m benchmarks.small_corpora --run OUT --encoders vlad,gmm_fv,fv_vae,fv_vae@dropout=0

reads the descriptors of a run (steps index and describe are enough; none of it retried), and for each entry of encode.encoders, stream and
seed fits, encodes, and tests one-vs-rest SVMs with each group left out of their training. No cluster is started.
"""

import argparse
import statistics
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from encoders.base import CODEBOOK
from encoders.descriptors import Stream
from encoders.registry import ENCODERS, encoder_from_bytes, fit_encoder
from encoders.sample import FitSample
from encoders.temporal import TemporalPyramid
from pipelines.config import Config, Variant
from pipelines.descriptor_stages import described_streams
from pipelines.encoding_stages import stored_frames
from pipelines.saved_run import SavedRun

C = 100.0
"""Of the SVM (DQ 5.2)."""


class Corpus:
    """The descriptors of a stream: of each video the frames [f, T, C] and their places in time [f], its label and group."""

    def __init__(self, run: SavedRun, stream: Stream) -> None:
        columns = ["video_id", "segment", "status", "timestamps_s", stream.name]
        rows = run.store.read_table(run.tables["descriptors"], columns)
        videos = run.store.read_table(run.videos, ["video_id", "labels", "group"]).to_pylist()
        known = {row["video_id"]: row for row in videos}
        rows = rows.filter([status != "failed" for status in rows["status"].to_pylist()])
        rows = rows.sort_by([("video_id", "ascending"), ("segment", "ascending")])
        self.frames: dict[str, list[Tensor]] = {}
        times_s: dict[str, list[float]] = {}
        for k in range(rows.num_rows):
            row = rows.slice(k, 1)
            name = row["video_id"][0].as_py()
            frames = torch.from_numpy(stored_frames(row, stream).copy())
            self.frames.setdefault(name, []).append(frames)
            own = row["timestamps_s"][0].as_py()
            times_s.setdefault(name, []).extend(own[len(own) - len(frames) :])
        self.videos = [torch.cat(parts) for parts in self.frames.values()]
        self.places = [_in_unit(np.array(times)) for times in times_s.values()]
        self.labels = np.array([known[name]["labels"][0] for name in self.frames])
        self.groups = np.array([known[name]["group"] or name for name in self.frames])

    def sample(self, videos: np.ndarray, with_labels: bool, config: Config, seed: int) -> FitSample:
        """All frames of the videos with these numbers."""
        classes = sorted(set(self.labels))
        targets = torch.zeros(len(videos), len(classes))
        for row, video in enumerate(videos):
            targets[row, classes.index(self.labels[video])] = 1
        groups = sorted(set(self.groups))
        lengths = torch.tensor([len(self.videos[video]) for video in videos])
        return FitSample(
            frames=torch.cat([self.videos[video] for video in videos]),
            video=torch.arange(len(videos)).repeat_interleave(lengths),
            targets=targets if with_labels else None,
            group=torch.tensor([groups.index(self.groups[video]) for video in videos]),
            levels=config.describe.spp_levels,
            seed=seed,
        )


def _in_unit(times_s: np.ndarray) -> np.ndarray:
    span_s = np.ptp(times_s) if len(times_s) else 0
    return (times_s - times_s[0]) / span_s if span_s else 0 * times_s


def vectors(corpus: Corpus, variant: Variant, config: Config, sample: FitSample) -> Tensor:
    """[videos, D] by a codebook of the sample."""
    normalisation = config.encode.normalisation
    fitted = fit_encoder(variant.base, sample, variant.settings, normalisation)
    files = fitted.files()
    encoder = encoder_from_bytes(files[CODEBOOK]).with_files(files, variant.settings)
    pyramid = TemporalPyramid(variant.temporal_pyramid)
    return torch.stack(
        [
            pyramid.finalise(encoder, pyramid.accumulate(encoder, frames, place))
            for frames, place in zip(corpus.videos, corpus.places, strict=True)
        ]
    )


def accuracy(corpus: Corpus, variant: Variant, config: Config, seed: int) -> float:
    """Of all videos, each tested by SVMs that its group did not train, nor a codebook with labels."""
    every = np.arange(len(corpus.labels))
    classes = np.array(sorted(set(corpus.labels)))
    right, shared = 0, None
    for group in sorted(set(corpus.groups)):
        test = corpus.groups == group
        if variant.uses_labels:
            x = vectors(corpus, variant, config, corpus.sample(every[~test], True, config, seed))
        elif shared is None:
            x = shared = vectors(corpus, variant, config, corpus.sample(every, False, config, seed))
        gram = (x.double() @ x.double().T).numpy()
        scores = np.stack(
            [
                SVC(C=C, kernel="precomputed")
                .fit(gram[np.ix_(~test, ~test)], corpus.labels[~test] == name)
                .decision_function(gram[np.ix_(test, ~test)])
                for name in classes
            ]
        )
        right += int((classes[scores.argmax(0)] == corpus.labels[test]).sum())
    return right / len(corpus.labels)


def rows(run: SavedRun, config: Config, seeds: int) -> Iterator[str]:
    """A line for each entry of encode.encoders and stream it reads."""
    for stream in described_streams(config).values():
        corpus = Corpus(run, stream)
        for variant in map(config.variant, config.encode.encoders):
            if stream.kind not in ENCODERS[variant.base].reads:
                continue
            # A mean is fitted to nothing.
            tried = range(seeds if ENCODERS[variant.base].learns else 1)
            found = [accuracy(corpus, variant, config, seed) for seed in tried]
            each = " ".join(f"{value:.3f}" for value in found)
            yield f"{stream.name} | {variant.name} | {statistics.mean(found):.3f} | {each}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="the output folder of a run")
    parser.add_argument("--encoders", default="ave,vlad,gmm_fv,fv_vae", help="as encode.encoders")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = SavedRun.open(arguments.run)
    config = run.config.with_settings(
        [f"encode.encoders={arguments.encoders}", *arguments.settings]
    )
    print("stream | encoder | mean accuracy | by seed")
    for row in rows(run, config, arguments.seeds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
