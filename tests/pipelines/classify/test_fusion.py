"""Fused results of a run: what is combined, what is published, and that no tested video has a say
in it."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from scipy.stats import binom

from encoders.descriptors.streams import Stream
from pipelines.classify import fusion
from pipelines.classify.examples import Work, target_matrix
from pipelines.classify.fold_sets import fold_sets, fused_fold_sets
from pipelines.classify.step import _possible, settle_scores, train
from pipelines.errors import ConfigError, RunError
from pipelines.evaluate.step import evaluate
from pipelines.report.collect import _warnings
from pipelines.run.combination import combinations
from pipelines.run.inputs import LEFT_OUT
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.settings.sections import Classify
from pipelines.storage.columns import encoding_type
from pipelines.storage.store import Store
from pipelines.storage.tables import ENCODINGS, FUSIONS
from tests.encoders.in_memory import fit_one_vs_rest

CLASSES = ["jump", "run", "wave"]
NUM, DIMS = 48, {"n_appearance": 12, "n_difference": 20}
RULES = tuple(
    rule for rule in get_args(get_args(get_type_hints(Classify)["fusions"])[0]) if rule != "auto"
)
ALL_RULES = f"classify.fusions={','.join(RULES)}"
QUICK = ("classify.c=1", "classify.tolerance=1e-3")
"""Where the scores' last digits do not matter: noise is slow to separate at C = 100."""


def labels_of(seed: int | None = None) -> list[list[str]]:
    """Of each video; in random order where a seed is given."""
    order = np.arange(NUM) if seed is None else np.random.default_rng(seed).permutation(NUM)
    return [[CLASSES[i % 3]] for i in order]


def make_job(
    root: Path, *settings: str, labels: list[list[str]] | None = None, num_folds: int = 3
) -> Job:
    """A run of two encoders on two streams of different widths and scales, in files that are cut
    differently."""
    config = Config().with_settings(
        [
            "encode.encoders=ave,vlad",
            "evaluate.bootstrap=50",
            "classify.keep_folds=true",
            *settings,
        ]
    )
    folds = [i // 4 % 3 for i in range(NUM)]
    manifest = pa.table(
        {
            "video_id": [f"v{i:02d}" for i in range(NUM)],
            "uri": [f"/v{i:02d}" for i in range(NUM)],
            "source": ["now"] * NUM,
            "labels": pa.array(labels or labels_of(), pa.list_(pa.string())),
            "group": [f"g{i // 4}" for i in range(NUM)],
            "fold": pa.array(
                folds if num_folds > 1 else [min(f - 1, 0) for f in folds], pa.int32()
            ),
        }
    )
    streams = {name: Stream(name, "n", name[2:], 50, dim) for name, dim in DIMS.items()}
    weights = SimpleNamespace(identity="none", description="none", is_random=False)
    job = Job(Store(str(root)), config, manifest, "given", num_folds, weights, streams)
    for seed, book in enumerate(job.codebooks):
        _publish_vectors(job, book, np.random.default_rng(seed), 5 + 3 * seed)
    return job


def test_results_weighted_by_an_earlier_rule_are_not_taken_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folders() -> dict[str, str]:
        job = make_job(tmp_path, ALL_RULES)
        return {one.stream: job.scores(*one.pair) for one in job.combinations}

    now = folders()
    monkeypatch.setattr("pipelines.run.combination.WEIGHTING", 1)
    before = folders()
    changed = {rule for rule in now if now[rule] != before[rule]}
    assert changed == {"late_weighted"}


def _publish_vectors(job: Job, book, draw: np.random.Generator, rows_per_file: int) -> None:
    dim = DIMS[book.stream]
    centres = draw.normal(size=(3, dim))
    vectors = np.array([centres[i % 3] for i in range(NUM)]) + 1.5 * draw.normal(size=(NUM, dim))
    vectors[7] = 0  # a video of one frame has no difference
    order = draw.permutation(NUM)
    for first in range(0, NUM, rows_per_file):
        rows = [
            {
                "video_id": f"v{i:02d}",
                "source": "now",
                "encoder": book.encoder,
                "stream": book.stream,
                "fold": -1,
                "num_descriptors": 1,
                "vector": vectors[i].astype(np.float32),
            }
            for i in order[first : first + rows_per_file]
        ]
        table = ENCODINGS.build(rows, vector=encoding_type(dim, "float32"))
        job.store.publish_table(f"{job.encodings(book)}/{first:02d}.parquet", table, {})


def concatenated(job: Job, parts: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, list[str]]:
    """Unit vectors of the parts side by side, of a length of 1 in all; and the ids of the
    videos."""
    found = []
    for encoder, stream in parts:
        folder = job.encodings(job.codebook(encoder, stream, 0))
        table = job.store.read_table(folder, ["video_id", "vector"]).sort_by("video_id")
        x = np.array(table["vector"].to_pylist(), np.float64)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        found.append(x / np.where(length > 0, length, 1) / len(parts) ** 0.5)
    return np.hstack(found).astype(np.float32), table["video_id"].to_pylist()


def scores_of(job: Job, pair: tuple[str, str]) -> dict[tuple[str, str], float]:
    rows = job.store.read_table(job.scores(*pair)).to_pylist()
    return {(row["video_id"], row["label"]): row["score"] for row in rows}


def weights_of(job: Job, fold: int) -> list[dict]:
    """All FUSIONS rows of a fold."""
    rows = [
        r
        for one in job.combinations
        for r in job.store.read_table(job.fusions(*one.pair)).to_pylist()
    ]
    return [row for row in rows if row["fold"] == fold]


# --- without a cluster -------------------------------------------------------------------------

LOCAL = [(e, s) for e in ("ave", "vlad") for s in ("a_appearance", "a_difference")]
PAIRS = [*LOCAL, ("ga", "ga_global")]


def test_groups_are_of_an_encoder_of_all_or_of_patterns() -> None:
    settings = Classify(fusions=("kernel_sum", "late_weighted"))
    found = combinations(PAIRS, settings)
    assert [one.pair for one in found] == [
        (name, rule) for name in ("ave", "vlad", "all") for rule in settings.fusions
    ]
    assert found[0].parts == tuple(LOCAL[:2])
    assert found[-1].parts == tuple(LOCAL)
    settings = Classify(fusion_groups=("motion=*_difference", "mixed=ave-a_app*+ga-*"))
    motion, mixed = combinations(PAIRS, settings)
    assert motion.pair == ("motion", "late_weighted")
    assert motion.parts == (("ave", "a_difference"), ("vlad", "a_difference"))
    assert mixed.parts == (("ave", "a_appearance"), ("ga", "ga_global"))


def test_what_has_no_parts_is_no_group_unless_it_was_asked_for() -> None:
    assert combinations(PAIRS, Classify(fusions=())) == ()
    assert combinations([("ave", "a_appearance")], Classify()) == ()
    one = [pair for pair in LOCAL if pair[0] == "ave"]
    assert [c.encoder for c in combinations(one, Classify())] == ["ave"], "all is the same"
    for group in ("none=x*", "ave=*_appearance"):
        with pytest.raises(ConfigError, match="expected a name that no encoder has"):
            combinations(PAIRS, Classify(fusion_groups=(group,)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("classify.fusions=best", "expected one of"),
        ("classify.fusions=kernel_sum,kernel_sum", r"classify\.fusions: expected each once"),
        ("classify.fusions=auto,kernel_sum", r"classify\.fusions: expected auto alone"),
        (
            "classify.fusion_groups=everything",
            r"classify\.fusion_groups: expected encoders, all, or",
        ),
        ("classify.fusion_groups=../x=*", r"classify\.fusion_groups: expected encoders, all, or"),
        ("classify.fusion_groups=a=b,a=c", "expected each name once"),
    ],
)
def test_wrong_settings_say_which(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().with_settings([setting])


def test_a_rule_that_needs_the_gram_matrix_does_not_go_with_the_form_primal() -> None:
    settings = ["classify.fusions=kernel_sum,late_weighted", "classify.form=primal"]
    with pytest.raises(ConfigError, match=r"auto or kernel_sum, where .* is primal.*late_weighted"):
        Config().with_settings(settings)


def test_single_results_do_not_depend_on_what_is_fused(tmp_path: Path) -> None:
    plain = make_job(tmp_path / "a", "classify.fusions=")
    fused = make_job(tmp_path / "b", ALL_RULES)
    assert [plain.scores(*p) for p in plain.pairs()] == [fused.scores(*p) for p in fused.pairs()]
    assert plain.metrics != fused.metrics
    assert plain.combinations == ()
    assert len(fused.combinations) == 3 * len(RULES)


# --- on the cluster ----------------------------------------------------------------------------


@pytest.mark.ray
def test_a_sum_of_kernels_is_the_svm_of_concatenated_unit_vectors(
    local_ray: None, tmp_path: Path
) -> None:
    settings = ("classify.fusions=kernel_sum", "classify.c=10", "classify.tolerance=1e-7")
    job = make_job(tmp_path / "gram", *settings)
    train(job)
    folds = np.array(job.manifest["fold"].to_pylist())
    targets = target_matrix(job.manifest["labels"].to_pylist(), CLASSES)
    for combination in job.combinations:
        x, ids = concatenated(job, combination.parts)
        found = scores_of(job, combination.pair)
        assert len(found) == NUM * 3
        for fold in range(3):
            own = fit_one_vs_rest(
                x[folds != fold], targets[folds != fold], c=10, loss="hinge", tolerance=1e-7
            )
            expected = own.decision(x[folds == fold])
            tested = [name for name, f in zip(ids, folds, strict=True) if f == fold]
            got = np.array([[found[name, label] for label in CLASSES] for name in tested])
            np.testing.assert_allclose(got, expected, atol=2e-3)
            # The published classifier is for unit vectors.
            name = f"{job.classifiers(*combination.pair)}/fold-{fold:05d}.safetensors"
            tensors = safetensors.numpy.load(job.store.read(name))
            units = x[folds == fold] * len(combination.parts) ** 0.5
            again = units @ tensors["weights"].T + tensors["bias"]
            np.testing.assert_allclose(got, again, atol=1e-5)
        table = job.store.read_table(job.fusions(*combination.pair))
        assert table.schema.equals(FUSIONS.schema())
        assert set(table["weight"].to_pylist()) == {1 / len(combination.parts)}
    tested = frozenset(job.manifest["video_id"].to_pylist())
    assert settle_scores(job, tested, {"vectors": frozenset()}).done == NUM * len(job.scored())


@pytest.mark.nightly
@pytest.mark.ray
def test_both_forms_find_the_same_scores(local_ray: None, tmp_path: Path) -> None:
    settings = ("classify.c=1", "classify.loss=squared_hinge", "classify.fusions=kernel_sum")
    settings += ("classify.fusion_groups=all", "classify.tolerance=1e-5")
    gram = make_job(tmp_path / "gram", *settings)
    train(gram)
    primal = make_job(tmp_path / "primal", *settings, "classify.form=primal", "fit.num_workers=2")
    # Single results are not what is tested here.
    for single in fold_sets(primal):
        for fold in single.todo:
            for name in single.files(fold):
                primal.store.publish(name, b"")
    train(primal)
    first, second = scores_of(gram, ("all", "kernel_sum")), scores_of(primal, ("all", "kernel_sum"))
    np.testing.assert_allclose([second[key] for key in first], list(first.values()), atol=5e-3)
    # A fold with scores alone is not finished.
    lost = f"{primal.classifiers('all', 'kernel_sum')}/solutions-00001.parquet"
    primal.store.delete(lost)
    train(primal)
    assert primal.store.exists(lost)
    assert scores_of(primal, ("all", "kernel_sum")) == second


def test_the_form_primal_leaves_out_what_needs_the_gram_matrix(tmp_path: Path) -> None:
    job = make_job(tmp_path, "classify.form=primal", "classify.fusion_groups=all")
    assert job.combinations == ()
    left_out = "all-late_weighted, without a Gram matrix: classify.form says so"
    assert job.left_out == left_out
    assert _warnings(job)[-1] == f"Left out: {left_out}."
    with_sum = make_job(tmp_path, "classify.form=primal", "classify.fusions=kernel_sum")
    assert {one.stream for one in with_sum.combinations} == {"kernel_sum"}
    assert with_sum.left_out == ""
    assert not any("Left out" in note for note in _warnings(with_sum))


def test_a_named_rule_whose_matrix_is_too_large_is_a_message(tmp_path: Path) -> None:
    job = make_job(tmp_path, "classify.fusions=kernel_sum,late_weighted")
    small, large = (SimpleNamespace(num_training=number) for number in (100, 1_000_000))
    works = [Work(fold_set, None, small) for fold_set in fused_fold_sets(job)]
    assert _possible(job, works, 2**30) == works
    works = [dataclasses.replace(work, places=large) for work in works]
    with pytest.raises(
        RunError, match=r"need no Gram matrix .*3\.73e\+03 GiB.*, got late_weighted;"
    ):
        _possible(job, works, 2**30)
    assert _possible(job, works[:1], 2**30) == works[:1], "kernel_sum needs no matrix"


@pytest.mark.ray
def test_the_default_rule_falls_away_where_the_matrix_is_too_large(
    local_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Single results are there already, so that only what is fused is to be done."""
    train(make_job(tmp_path, *QUICK, "classify.fusions="))
    job = make_job(tmp_path, *QUICK)
    fused = [one.pair for one in job.combinations]
    caplog.clear()
    monkeypatch.setattr("pipelines.classify.step.choose_form", lambda *_: ("primal", "it is large"))
    train(job)
    names = "ave-late_weighted, vlad-late_weighted, all-late_weighted"
    left_out = f"{names}, without a Gram matrix: it is large"
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"classify: left out: {left_out}"
    ]
    assert (job.combinations, job.scored()) == ((), job.pairs())
    tested = frozenset(job.manifest["video_id"].to_pylist())
    assert settle_scores(job, tested, {"vectors": frozenset()}).failed == 0
    evaluate(job)
    with job.store.open_parquet(job.store.files(job.metrics)[0]) as file:
        assert file.metadata.metadata[b"video_fisher.left_out"].decode() == left_out
        assert not {one[1] for one in fused} & set(file.read()["stream"].to_pylist())

    # Of the same results a later step, on any nodes, knows it; of other ones not.
    record = job.store.read_json(LEFT_OUT)
    again = dataclasses.replace(make_job(tmp_path, *QUICK), no_gram=record)
    assert (again.left_out, again.metrics) == (left_out, job.metrics)
    other = dataclasses.replace(make_job(tmp_path, "classify.c=2"), no_gram=record)
    assert [one.pair for one in other.combinations] == fused


@pytest.mark.ray
def test_the_tested_videos_have_no_say(local_ray: None, tmp_path: Path) -> None:
    """Labels of the videos that a fold tests change neither its weights, nor its sigmoids, nor its
    C."""
    settings = (ALL_RULES, "classify.c=0.1,10", "classify.tolerance=1e-8")
    settings += ("classify.fusion_groups=all",)
    job = make_job(tmp_path / "true", *settings)
    train(job)
    labels = labels_of()
    tested = [i for i in range(NUM) if i // 4 % 3 == 1]
    for i, other in zip(tested, np.roll(tested, 5), strict=True):
        labels[i] = labels_of()[other]
    poisoned = make_job(tmp_path / "poisoned", *settings, labels=labels)
    train(poisoned)
    assert weights_of(job, 1) == weights_of(poisoned, 1)
    assert weights_of(job, 0) != weights_of(poisoned, 0), "where they train, they count"
    for pair in job.scored():
        if pair[1] == "late_weighted":
            continue
        chosen = [
            {
                r["label"]: r["c"]
                for r in one.store.read_table(one.classifiers(*pair)).to_pylist()
                if r["fold"] == 1
            }
            for one in (job, poisoned)
        ]
        assert chosen[0] == chosen[1]
    for pair in job.scored():
        first, second = scores_of(job, pair), scores_of(poisoned, pair)
        # Folds are solved side by side, so that the last bits may differ.
        own = [(f"v{i:02d}", label) for i in tested for label in CLASSES]
        found = [[scores[key] for key in own] for scores in (first, second)]
        np.testing.assert_allclose(*found, atol=1e-3)


@pytest.mark.ray
def test_an_interrupted_run_ends_in_the_same_bytes(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, ALL_RULES, *QUICK)
    submitted = _count_inner_scores(monkeypatch)
    train(job)
    # Two late rules of three groups, and each part and fold is scored once.
    once = Counter((*pair, fold) for pair in job.pairs() for fold in job.folds)
    assert submitted == once
    names = [
        name
        for pair in job.scored()
        for folder in (job.scores(*pair), job.fusions(*pair))
        for name in job.store.files(folder)
    ]
    before = {name: job.store.read(name) for name in names}
    for one in job.combinations:
        job.store.delete(f"{job.scores(*one.pair)}/fold-00001.parquet")
    assert len(fold_sets(job)) == 0
    assert {fold_set.todo for fold_set in fused_fold_sets(job)} == {(1,)}
    submitted.clear()
    train(job)
    assert submitted == Counter((*pair, 1) for pair in job.pairs())
    assert {name: job.store.read(name) for name in names} == before


def _count_inner_scores(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts, by result and fold, the tasks that score training videos for the late rules."""
    task, submitted = fusion._scores_of, Counter()

    class Counting:
        def options(self, **options):
            self.task = task.options(**options)
            return self

        def remote(self, store, part, examples, gram, fold, *rest):
            submitted[part.encoder, part.stream, fold] += 1
            return self.task.remote(store, part, examples, gram, fold, *rest)

    monkeypatch.setattr(fusion, "_scores_of", Counting())
    return submitted


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_shuffled_labels_are_told_at_chance(local_ray: None, tmp_path: Path) -> None:
    """With labels that mean nothing, no choice may make the tested videos look right."""
    found: dict[tuple, list[float]] = {}
    for seed in range(2):
        settings = (ALL_RULES, "classify.fusion_groups=all", *QUICK)
        job = make_job(tmp_path / str(seed), *settings, labels=labels_of(seed))
        train(job)
        for row in evaluate(job).metrics.to_pylist():
            if (row["split"], row["metric"]) == ("all", "accuracy"):
                key = (row["encoder"], row["stream"], row["fusion"])
                found.setdefault(key, []).append(row["value"])
    assert {key[2] for key in found} >= {"none", "given", "two_stream", *RULES}
    # What a binomial of all videos allows but one time in 10,000.
    low, high = binom.interval(1 - 1e-4, 2 * NUM, 1 / 3)
    right = {key: round(NUM * sum(values)) for key, values in found.items()}
    assert {key: number for key, number in right.items() if not low <= number <= high} == {}
    assert abs(np.mean(list(found.values())) - 1 / 3) < 0.1
