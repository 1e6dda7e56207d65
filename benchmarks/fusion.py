"""What each rule of fusing streams is worth on vectors of videos: `python -m benchmarks.fusion FILE.npz ...`

A file has an array [N, D] for each stream, and `labels` and `groups` [N]. Every group is left out once, as
split.kind=leave_one_group_out does. Rules that choose something do so on inner folds of the training groups.
--json FILE writes the rows. Letters: N videos, D values of a vector, K classes.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness import machine
from encoders import metrics
from encoders.calibration import fit_sigmoid
from encoders.fusion import choose_weights, fuse
from encoders.intervals import gains
from encoders.kernels import kernel_sum
from encoders.nested import (
    held_out_scores,
    log_losses,
    qualities,
    select_parts,
    weights_by_loss,
)
from encoders.svm import decisions_along
from encoders.svm_columns import one_vs_rest
from encoders.svm_gram import Gram
from pipelines.folds import group_folds

C, INNER_FOLDS, DRAWS = 100.0, 3, 1000


@dataclass(frozen=True)
class Row:
    """A rule on a file: its accuracy, and the gain over the stream that is best on the tested videos."""

    file: str
    rule: str
    accuracy: float
    gain: float
    low: float
    high: float


def rules(
    vectors: list[np.ndarray], targets: np.ndarray, groups: np.ndarray
) -> dict[str, np.ndarray]:
    """{rule: scores [N, K]}; those of single streams are called by their numbers."""
    grams = [Gram.of(torch.from_numpy(x.astype(np.float32))) for x in vectors]
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
        inner[~tested] = group_folds(groups[~tested], INNER_FOLDS, 0)
        known = targets[~tested]

        def held_out(gram: Gram, inner: np.ndarray = inner) -> np.ndarray:
            settings = {"loss": "hinge", "class_weight": "none", "tolerance": 1e-3}
            return next(held_out_scores(gram, every, inner, (C,), **settings))

        def summed(parts: tuple[int, ...]) -> Gram:
            return kernel_sum([grams[s] for s in parts], [1 / len(parts)] * len(parts))

        own, inside = [outer(g, fold) for g in grams], [held_out(g) for g in grams]
        quality = [qualities(scores, known).mean() for scores in inside]
        weights = weights_by_loss([log_losses(scores, known) for scores in inside])
        sigmoids = [fit_sigmoid(scores, known) for scores in inside]
        likely = [s.probabilities(scores) for s, scores in zip(sigmoids, own, strict=True)]
        selected = select_parts(
            lambda p, known=known: qualities(held_out(summed(p)), known), number
        )
        made = {f"{s}": scores for s, scores in enumerate(own)} | {
            "best stream on inner folds": own[max(range(number), key=lambda s: quality[s])],
            "given, equal": fuse(own),
            "calibrated": fuse(likely),
            "late_weighted": fuse(own, weights),
            "kernel_sum": outer(summed(tuple(range(number))), fold),
            "kernel_weighted": outer(kernel_sum(grams, weights), fold),
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


def compare(
    name: str, streams: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray
) -> list[Row]:
    """All rules on some streams, the best first."""
    targets = (labels[:, None] == np.unique(labels)).astype(np.uint8)
    found = rules(list(streams.values()), targets, groups)
    singles = [found.pop(f"{s}") for s in range(len(streams))]
    accuracies = [metrics.accuracy(scores, targets) for scores in singles]
    best = singles[int(np.argmax(accuracies))]
    rows = [
        Row(name, f"stream {stream}", accuracy, accuracy - max(accuracies), np.nan, np.nan)
        for stream, accuracy in zip(streams, accuracies, strict=True)
    ]
    for rule, scores in found.items():
        gain = gains(scores, best, targets, num_draws=DRAWS, seed=0)["accuracy"]
        accuracy = metrics.accuracy(scores, targets)
        rows.append(Row(name, rule, accuracy, gain.value, gain.low, gain.high))
    return sorted(rows, key=lambda row: -row.accuracy)


def main(arguments: list[str]) -> None:
    """Prints a table for each file and set of streams."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--streams", help="some of them, joined by commas; all without it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for file in options.files:
            arrays = np.load(file, allow_pickle=False)
            known = [name for name in arrays.files if name not in ("labels", "groups")]
            wanted = options.streams.split(",") if options.streams else known
            streams = {name: arrays[name] for name in wanted}
            rows += compare(file.stem, streams, arrays["labels"], arrays["groups"])
    print(
        "| file | rule | accuracy | gain over the best stream | 95 % interval |\n|---|---|---|---|---|"
    )
    for row in rows:
        ends = "" if np.isnan(row.low) else f"{row.low:+.3f} to {row.high:+.3f}"
        print(f"| {row.file} | {row.rule} | {row.accuracy:.3f} | {row.gain:+.3f} | {ends} |")
    if options.json:
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
