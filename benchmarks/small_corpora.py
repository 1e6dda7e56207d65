"""Accuracy of encoders on a small corpus, over several seeds: one fit of k-means, EM or SGD says
little there.

    python -m benchmarks.small_corpora --run OUT --encoders vlad,gmm_fv,fv_vae,fv_vae@dropout=0

reads the descriptors of a run (steps index and describe are enough; none of it retried), and for
each entry of encode.encoders, stream and seed fits, encodes, and tests one-vs-rest SVMs with each
group left out of their training, or each of --folds parts of whole groups.
--groups 5,25,100 compares corpora of the first so many groups: how many videos settings are for. No
cluster is started.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from encoders.codebooks.sample import FitSample
from encoders.descriptors.streams import Stream
from encoders.encodings.time_pyramid import TemporalPyramid
from encoders.registry import ENCODERS, encoder_from_bytes, fit_encoder
from encoders.settings import CODEBOOK
from pipelines.describe.segments import stored_frames
from pipelines.describe.stage import described_streams
from pipelines.errors import ConfigError
from pipelines.index.folds import group_folds
from pipelines.run.saved import SavedRun
from pipelines.settings.config import Config, Variant

C = 100.0
"""Of the SVM (DQ 5.2)."""

GRAM_COLUMNS = 65_536
"""Of all vectors, to convert at a time."""


class Corpus:
    """The descriptors of a stream: of each video the frames [f, T, C] and their places in time [f],
    its label and group."""

    def __init__(self, run: SavedRun, stream: Stream, num_groups: int | None = None) -> None:
        """Of the first `num_groups` groups, in the order of their names, or of all of them.

        Raises:
            ConfigError: there are fewer groups.
        """
        columns = ["video_id", "segment", "status", "timestamps_s", stream.name]
        rows = run.store.read_table(run.tables["descriptors"], columns)
        videos = run.store.read_table(run.videos, ["video_id", "labels", "group"]).to_pylist()
        of = {row["video_id"]: row["group"] or row["video_id"] for row in videos}
        groups = sorted(set(of.values()))
        if num_groups is not None and num_groups > len(groups):
            raise ConfigError(f"--groups: expected {len(groups)} at most, got {num_groups}")
        wanted = set(groups[:num_groups])
        known = {row["video_id"]: row for row in videos if of[row["video_id"]] in wanted}
        taken = [
            status != "failed" and name in known
            for status, name in zip(
                rows["status"].to_pylist(), rows["video_id"].to_pylist(), strict=True
            )
        ]
        rows = rows.filter(taken)
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
        self.groups = np.array([of[name] for name in self.frames])

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


def accuracy(
    corpus: Corpus, variant: Variant, config: Config, seed: int, num_folds: int | None = None
) -> float:
    """Of all videos, each tested by SVMs that its group did not train, nor a codebook with
    labels."""
    every = np.arange(len(corpus.labels))
    classes = np.array(sorted(set(corpus.labels)))
    right, shared = 0, None
    num_groups = len(set(corpus.groups))
    num_folds = min(num_folds or num_groups, num_groups)
    if num_folds < 2:
        raise ConfigError(
            f"expected two groups and two folds at least, got {num_groups} and {num_folds}; see"
            " --groups and --folds"
        )
    folds = group_folds(corpus.groups, num_folds, 0)
    for fold in range(num_folds):
        test = folds == fold
        if variant.uses_labels:
            x = vectors(corpus, variant, config, corpus.sample(every[~test], True, config, seed))
        elif shared is None:
            x = shared = vectors(corpus, variant, config, corpus.sample(every, False, config, seed))
        gram = sum(part.double() @ part.double().T for part in x.split(GRAM_COLUMNS, 1)).numpy()
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


def rows(
    run: SavedRun,
    config: Config,
    seeds: int,
    sizes: Sequence[int | None] = (None,),
    num_folds: int | None = None,
) -> Iterator[str]:
    """A line for each entry of encode.encoders, stream it reads, and number of groups."""
    for stream, size in itertools.product(described_streams(config).values(), sizes):
        corpus = Corpus(run, stream, size)
        for variant in map(config.variant, config.encode.encoders):
            if stream.kind not in ENCODERS[variant.base].reads:
                continue
            # A mean is fitted to nothing.
            tried = range(seeds if ENCODERS[variant.base].learns else 1)
            found = [accuracy(corpus, variant, config, seed, num_folds) for seed in tried]
            each = " ".join(f"{value:.3f}" for value in found)
            yield (
                f"{stream.name} | {len(corpus.videos)} | {variant.name} |"
                f" {statistics.mean(found):.3f} | {each}"
            )


def group_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="the output folder of a run")
    parser.add_argument("--encoders", default="ave,vlad,gmm_fv,fv_vae", help="as encode.encoders")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--groups",
        type=group_numbers,
        default=[None],
        help="numbers of groups to take (default: all)",
    )
    parser.add_argument("--folds", type=int, help="folds of whole groups (default: each group one)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        run = SavedRun.open(arguments.run)
        config = run.config.with_settings(
            [f"encode.encoders={arguments.encoders}", *arguments.settings]
        )
        print("stream | videos | encoder | mean accuracy | by seed")
        for row in rows(run, config, arguments.seeds, arguments.groups, arguments.folds):
            print(row, flush=True)
    except (ConfigError, FileNotFoundError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
