"""What each rule of fusing results is worth, on the encodings of runs: `python -m benchmarks.fusion
RUN ...`

RUN is the output folder of a run with labels and groups, such as those of `benchmarks.accuracy
--out`, or of several runs on the same videos, joined by +; their ENCODINGS are read, no cluster is
started. Every group is left out once, as split.kind=leave_one_group_out does, and rules that choose
something do so on inner folds of the training groups. Rules of weights that are not in the project
stand beside those that are.
--json FILE writes the rows. Letters: N videos, K classes, M results that are fused, n training
videos.
"""

import argparse
import fnmatch
import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.fusion_rules import choose_weights, qualities, select_parts
from benchmarks.harness import machine
from encoders.scores import metrics
from encoders.scores.calibration import fit_sigmoid
from encoders.scores.fusion import fuse
from encoders.scores.intervals import gains
from encoders.stream_specs import is_local
from encoders.svm.classifiers import decisions_along
from encoders.svm.columns import one_vs_rest
from encoders.svm.gram import Gram
from encoders.svm.inner_folds import held_out_scores, log_losses, weights_by_loss
from encoders.svm.kernel_sum import kernel_sum
from pipelines.errors import ConfigError
from pipelines.index.folds import group_folds
from pipelines.run.saved import SavedRun
from pipelines.storage.columns import vectors_from_arrow

C, DRAWS = 100.0, 1000

BEST = "the best part, known afterwards"

log = logging.getLogger("benchmarks.fusion")

Weigh = Callable[[Sequence[np.ndarray], np.ndarray], Sequence[float]]
"""M weights from held-out scores [n, K] of each part and their targets [n, K]."""


def by_loss(**width: float) -> Weigh:
    """As runs have it, or with another width."""

    def weigh(scores: Sequence[np.ndarray], targets: np.ndarray) -> Sequence[float]:
        return weights_by_loss([log_losses(part, targets) for part in scores], **width)

    return weigh


def by_accuracy(errors: float, tolerated: float) -> Weigh:
    """Held-out accuracy in place of the loss; the width is that of the best part's."""

    def weigh(scores: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
        right = np.stack([qualities(part, targets) for part in scores])
        best = right[right.mean(1).argmax()]
        width = np.hypot(errors * best.std() / np.sqrt(len(best)), tolerated)
        return np.exp(-(((best.mean() - right.mean(1)) / width) ** 2) / 2)

    return weigh


def by_power(scores: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The 8th power of held-out accuracy."""
    return np.array([qualities(part, targets).mean() for part in scores]) ** 8 + 1e-9


def best_alone(scores: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """1 for the part of the least loss."""
    losses = [log_losses(part, targets).mean() for part in scores]
    return np.arange(len(losses)) == np.argmin(losses)


LATE: dict[str, Weigh] = {
    "late_weighted": by_loss(),
    "late, log loss, 1 error and 0.1 nats": by_loss(errors=1, tolerated=0.1),
    "late, log loss, 2 errors and 0.1 nats": by_loss(errors=2, tolerated=0.1),
    "late, accuracy, 2 errors and 0.05": by_accuracy(2, 0.05),
    "late, accuracy, 1 error and 0.05": by_accuracy(1, 0.05),
    "late, 8th power of accuracy": by_power,
    "late, best part alone": best_alone,
    "given, equal": lambda scores, _: np.ones(len(scores)),
}
"""Weighted means of the parts' scores."""


@dataclass(frozen=True)
class Corpus:
    """Gram matrices of a run's results by name, targets [N, K] and groups [N]."""

    videos: list[str]
    grams: dict[str, Gram]
    targets: np.ndarray
    groups: np.ndarray

    def joined(self, other: "Corpus") -> "Corpus":
        """With the results of another run too; where both have one of a name, this one's counts.

        Raises:
            ConfigError: they are of other videos.
        """
        if self.videos != other.videos:
            raise ConfigError("expected runs on the same videos to join, got other ones")
        return replace(self, grams=other.grams | self.grams)

    @classmethod
    def read(cls, run: SavedRun) -> "Corpus":
        """The results on local descriptors of the videos with labels.

        Raises:
            ConfigError: a video has no group, or a result lacks the vector of a video.
        """
        videos = run.store.read_table(run.videos, ["video_id", "labels", "group"]).to_pylist()
        videos = [video for video in videos if video["labels"]]
        if not all(video["group"] for video in videos):
            raise ConfigError("expected a group of every labelled video; give labels with a group")
        classes = sorted({name for video in videos for name in video["labels"]})
        targets = [[name in video["labels"] for name in classes] for video in videos]
        names = [video["video_id"] for video in videos]
        grams = {}
        for pair, encodings in run.encodings.items():
            if not is_local(pair[1]):
                continue
            table = run.store.read_table(encodings.folder, ["video_id", "vector"])
            place = {name: row for row, name in enumerate(table["video_id"].to_pylist())}
            if missing := [name for name in names if name not in place]:
                raise ConfigError(
                    f"{run.store.uri(encodings.folder)}: expected a vector of every labelled video,"
                    f" found none of {missing[0]}; leave out what failed, or retry it"
                )
            vectors = vectors_from_arrow(table["vector"].take([place[name] for name in names]))
            grams[" on ".join(pair)] = Gram.of(torch.from_numpy(vectors.astype(np.float32)))
        groups = np.array([video["group"] for video in videos])
        return cls(names, grams, np.array(targets, np.uint8), groups)


@dataclass(frozen=True)
class Row:
    """A rule on a corpus: its accuracy, and the gain over the part that is best on the tested
    videos."""

    run: str
    rule: str
    accuracy: float
    gain: float
    low: float
    high: float


def scores_of(
    grams: Sequence[Gram], targets: np.ndarray, groups: np.ndarray, num_inner: int
) -> dict[str, np.ndarray]:
    """{rule: scores [N, K]}; those of the parts are called by their numbers."""
    every, number = torch.from_numpy(targets), len(grams)
    names, folds = np.unique(groups, return_inverse=True)
    found: dict[str, np.ndarray] = {}

    def outer(gram: Gram, fold: int) -> np.ndarray:
        training = torch.from_numpy(folds != fold)[:, None]
        (decisions,) = decisions_along(
            gram,
            lambda c: one_vs_rest(every, training, c=c, loss="hinge"),
            (C,),
            tolerance=1e-6,
        )
        return decisions.numpy()[folds == fold]

    for fold in range(len(names)):
        tested = folds == fold
        inner = np.full(len(targets), -1)
        inner[~tested] = group_folds(groups[~tested], num_inner, 0)
        known = targets[~tested]

        def held_out(gram: Gram, inner: np.ndarray = inner) -> np.ndarray:
            settings = {"loss": "hinge", "class_weight": "none", "tolerance": 1e-3}
            return next(held_out_scores(gram, every, inner, (C,), **settings))

        def summed(parts: tuple[int, ...]) -> Gram:
            return kernel_sum([grams[s] for s in parts], [1 / len(parts)] * len(parts))

        own, inside = [outer(g, fold) for g in grams], [held_out(g) for g in grams]
        sigmoids = [fit_sigmoid(scores, known) for scores in inside]
        likely = [s.probabilities(scores) for s, scores in zip(sigmoids, own, strict=True)]
        selected = select_parts(
            lambda p, known=known: qualities(held_out(summed(p)), known), number
        )
        made = {f"{s}": scores for s, scores in enumerate(own)}
        made |= {rule: fuse(own, weigh(inside, known)) for rule, weigh in LATE.items()}
        made |= {
            "calibrated": fuse(likely),
            "kernel_sum": outer(summed(tuple(range(number))), fold),
            "kernel_weighted": outer(kernel_sum(grams, LATE["late_weighted"](inside, known)), fold),
            "kernel_selected": outer(summed(selected), fold),
        }
        for name, scores in made.items():
            found.setdefault(name, np.zeros(targets.shape))[tested] = scores
    singles = [found[f"{s}"] for s in range(number)]
    chosen = choose_weights(singles, targets, folds)
    found["chosen"] = np.zeros(targets.shape)
    for fold, weights in chosen.items():
        rows = folds == fold
        found["chosen"][rows] = fuse([scores[rows] for scores in singles], weights)
    return found


def compare(name: str, corpus: Corpus, num_inner: int) -> list[Row]:
    """The best part, then all rules."""
    targets = corpus.targets
    found = scores_of(list(corpus.grams.values()), targets, corpus.groups, num_inner)
    singles = [found.pop(f"{s}") for s in range(len(corpus.grams))]
    accuracies = [metrics.accuracy(scores, targets) for scores in singles]
    first = int(np.argmax(accuracies))
    rows = []
    for rule, scores in found.items():
        gain = gains(scores, singles[first], targets, num_draws=DRAWS, seed=0)["accuracy"]
        accuracy = metrics.accuracy(scores, targets)
        rows.append(Row(name, rule, accuracy, gain.value, gain.low, gain.high))
    log.info("%s: the best part is %s", name, list(corpus.grams)[first])
    return [Row(name, BEST, accuracies[first], 0.0, np.nan, np.nan), *rows]


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table, a line for each rule, in the order of their mean over the runs."""
    runs = list(dict.fromkeys(row.run for row in rows))
    of_rule = {row.rule: [r for r in rows if r.rule == row.rule] for row in rows}
    lines = [f"| rule | {' | '.join(runs)} | mean |", "|---" * (len(runs) + 2) + "|"]
    for rule in sorted(of_rule, key=lambda r: -np.mean([row.accuracy for row in of_rule[r]])):
        cells = [
            f"{row.accuracy:.3f}"
            + ("" if rule == BEST else f", {row.gain:+.3f} [{row.low:+.3f}, {row.high:+.3f}]")
            for row in of_rule[rule]
        ]
        mean = np.mean([row.accuracy for row in of_rule[rule]])
        lines.append(f"| {rule} | {' | '.join(cells)} | {mean:.3f} |")
    return lines


def main(arguments: list[str]) -> None:
    """Prints the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", help="output folders of runs")
    parser.add_argument(
        "--results",
        default="*",
        help="those that are fused: patterns of `ENCODER on STREAM`, with +",
    )
    parser.add_argument("--inner-folds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for run in options.runs:
            try:
                corpora = [Corpus.read(SavedRun.open(folder)) for folder in run.split("+")]
                corpus = functools.reduce(Corpus.joined, corpora)
            except (ConfigError, FileNotFoundError) as error:
                parser.error(f"{run}: {error}")
            wanted = options.results.split("+")
            grams = {
                name: gram
                for name, gram in corpus.grams.items()
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
            }
            if len(grams) < 2:
                parser.error(f"--results: expected two or more of {', '.join(corpus.grams)}")
            rows += compare(Path(run).name, replace(corpus, grams=grams), options.inner_folds)
    print("\n".join(table(rows)))
    if options.json:
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
