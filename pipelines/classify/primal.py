"""SVMs on the weights, by Ray Train: for corpora whose Gram matrix fits nowhere.

Each worker reads its share of the files of ENCODINGS again in each pass. It holds one file of
vectors and some arrays [classes, D], whatever the number of videos.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from encoders.scores.metrics import average_precision
from encoders.svm.columns import class_weights, one_vs_rest
from encoders.svm.kernel_sum import unit
from encoders.svm.primal import Data, PrimalSolution, Shard, solve_primal
from pipelines.classify.examples import Examples, Places, Work, read_vectors
from pipelines.classify.fold_sets import CHOICE_TOLERANCE
from pipelines.classify.publish import Part, Trained, best_c, publish, warn_unsolved
from pipelines.cluster import training as cluster_training
from pipelines.cluster.teams import Team
from pipelines.errors import RunError
from pipelines.ledger.accounts import Spent
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.settings.sections import Classify
from pipelines.storage.store import Store


def solve(job: Job, work: list[Work], step: str) -> Spent:
    """Classify the fold sets in one Ray Train run and return the time spent.

    Raises:
        RunError: a vector is not finite, C cannot be chosen, or vectors are to be compressed.
    """
    if not work:
        return Spent(0.0, ())
    fold_sets = [item.fold_set for item in work]
    for fold_set in fold_sets:
        if any(part.compress.kind != "none" for part in fold_set.parts or (fold_set,)):
            raise RunError(
                f"classify.form: expected gram for {fold_set.name}, whose vectors are "
                "compressed, got primal; a compression is fitted on all training vectors in memory"
            )
    spent = cluster_training.run_training(
        _solve_all,
        {
            "work": [
                (item.fold_set, [part.examples for part in item.parts or (item,)]) for item in work
            ],
            "store": job.store,
            "config": job.config,
            "final": (ValueError, RunError),
        },
        name=job.digest(step),
        step=step,
        total=sum(len(fold_set.todo) for fold_set in fold_sets),
        workers=job.config.fit.num_workers,
        threads=1,
    )
    for fold_set in fold_sets:
        warn_unsolved(job.store, fold_set, job.config.classify.tolerance)
    return spent


def _solve_all(setting: dict) -> None:
    store, config = setting["store"], setting["config"]
    team = Team.of(ray.train.get_context().get_world_size())
    for fold_set, shared in setting["work"]:
        parts = ray.get(shared)
        share, examples = Share.of(store, parts, team), parts[0]
        if any(part.video_ids != examples.video_ids for part in parts):
            raise RunError(
                f"classify {fold_set.name}: expected vectors of the same videos for all parts; "
                "delete their encodings and run it again"
            )
        for fold in fold_set.todo:
            if team.agree(team.rank == 0 and all(map(store.exists, fold_set.files(fold)))):
                continue
            with setting["meter"]("solve"):
                trained, words = _train(share, fold, config)
            if team.rank == 0:
                with setting["meter"]("write"):
                    publish(store, fold_set, examples, config.classify, trained)
                setting["meter"].done({"ok": 1})
                setting["counter"].tell("say", f"{fold_set.name} fold {fold} {words}")
    ray.train.report({"finished": True})


@dataclass(frozen=True, eq=False)
class Share:
    """One worker's files: whole files, dealt out in turn.

    Attributes:
        team: of all workers.
        parts: of a combination, whose files are those of the first part: its vectors are the unit
            vectors of all, concatenated, with equal weights.
    """

    store: Store
    team: Team
    parts: list[Examples]
    files: list[int]

    @classmethod
    def of(cls, store: Store, parts: list[Examples], team: Team) -> "Share":
        return cls(
            store, team, parts, list(range(team.rank, len(parts[0].places.files), team.size))
        )

    @property
    def examples(self) -> Examples:
        return self.parts[0]

    @property
    def dim(self) -> int:
        return sum(part.places.dim for part in self.parts)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the parts; empty for a single part."""
        count = len(self.parts)
        return (1 / count,) * count if count > 1 else ()

    def vectors(self, selected: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the indices and the vectors of the selected videos [N], file by file."""
        for number in self.files:
            indices = np.flatnonzero((self.examples.places.file == number) & selected)
            if len(indices):
                parts = [self._vectors(part.places, indices) for part in self.parts]
                if len(parts) > 1:
                    parts = [torch.cat([unit(part) for part in parts], 1) / len(parts) ** 0.5]
                yield indices, parts[0]

    def _vectors(self, part: Places, indices: np.ndarray) -> Tensor:
        """Return the vectors [n, D] of a part, which may have these videos in several files."""
        files, vectors = part.file[indices], None
        for number in np.unique(files):
            in_file = files == number
            rows = read_vectors(self.store, part.files[number], part.row[indices[in_file]])
            if vectors is None:
                vectors = np.empty((len(indices), part.dim), rows.dtype)
            vectors[in_file] = rows
        return torch.from_numpy(vectors)

    def count(self, selected: np.ndarray) -> int:
        return int((np.isin(self.examples.places.file, self.files) & selected).sum())


def _train(share: Share, fold: int, config: Config) -> tuple[Trained, str]:
    """Train the classifiers of a fold; return them, and the choice of C in words."""
    began, examples, settings = time.monotonic(), share.examples, config.classify
    values = tuple(sorted(settings.c))
    c, words = values[0], ""
    if len(values) > 1:
        scores = _held_out(share, examples.inner_folds(fold), values, settings)
        c, words = best_c(values, scores)
    inside = np.zeros(len(examples.video_ids), bool)
    inside[: examples.num_training] = examples.training((fold,))[:, 0]
    solution = _solution(share, inside[:, None], c, settings, settings.tolerance)
    tested = examples.tested(fold)
    decisions = _decisions(share, tested, solution)
    part = Part(
        # Published weights are for vectors of length 1; the solver's have length sqrt(weight).
        weights=solution.weights.cpu().numpy() / len(share.parts) ** 0.5,
        bias=solution.bias.cpu().numpy(),
        scores=decisions[tested],
        primal=solution.primal.cpu().numpy(),
        dual=solution.dual.cpu().numpy(),
        rounds=solution.rounds.cpu().numpy(),
        seconds=time.monotonic() - began,
    )
    return Trained(fold, c, "primal", share.weights, (part,)), words


def _solution(
    share: Share,
    training: np.ndarray,
    c: float,
    settings: Classify,
    tolerance: float,
    start: Tensor | None = None,
) -> PrimalSolution:
    """Solve one column for each class and each column of training [N, F]."""
    device = ray.train.torch.get_device()
    targets, training_of = torch.from_numpy(share.examples.targets), torch.from_numpy(training)
    weights = class_weights(settings.class_weight, targets, training_of)
    trains = np.asarray(training.any(1))

    def shards() -> Iterator[Shard]:
        for indices, vectors in share.vectors(trains):
            yield Shard(
                vectors,
                one_vs_rest(
                    targets[indices], training_of[indices], c=c, loss=settings.loss, weights=weights
                ),
            )

    data = Data(
        shards=shards,
        num_rows=share.count(trains),
        dim=share.dim,
        num_columns=training.shape[1] * targets.shape[1],
        is_hinge=settings.loss == "hinge",
        all_reduce=share.team.all_reduce,
        device=device,
    )
    return solve_primal(data, tolerance=tolerance, start=start)


def _decisions(share: Share, selected: np.ndarray, solution: PrimalSolution) -> np.ndarray:
    """Return decisions [N, J] on the selected videos [N] of all workers; 0 for the others."""
    weights, bias = solution.weights.double(), solution.bias.double()
    total = weights.new_zeros(len(selected), len(bias))
    for indices, vectors in share.vectors(selected):
        total[torch.from_numpy(indices).to(total.device)] = vectors.to(weights) @ weights.T + bias
    return share.team.all_reduce(total).cpu().numpy()


def _held_out(
    share: Share, inner: np.ndarray, values: tuple[float, ...], settings: Classify
) -> np.ndarray:
    """Return AP [C, K] on the held-out inner folds; each c starts from the solution of the one
    before."""
    inner = np.concatenate([inner, np.full(len(share.examples.video_ids) - len(inner), -1)])
    parts, inside, start, precisions = np.unique(inner[inner >= 0]), inner >= 0, None, []
    for c in values:
        training = inside[:, None] & (inner[:, None] != parts)
        tolerance = max(settings.tolerance, CHOICE_TOLERANCE)
        solution = _solution(share, training, c, settings, tolerance, start)
        start = torch.cat([solution.weights, solution.bias.unsqueeze(1)], 1)
        decisions = _decisions(share, inside, solution).reshape(len(inner), len(parts), -1)
        scores = decisions[inside, inner[inside]]
        precisions.append(average_precision(scores, share.examples.targets[inside]))
    return np.array(precisions)
