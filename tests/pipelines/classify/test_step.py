"""Classifiers of a run: what is read, what is published, and that both forms find the same."""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch

from encoders.descriptors.streams import Stream
from encoders.encodings.compress import Compression
from encoders.svm.classifiers import LinearClassifier
from pipelines.classify import gram as classify_gram
from pipelines.classify import vectors as classify_vectors
from pipelines.classify.examples import Examples, locate, target_matrix
from pipelines.classify.fold_sets import fold_sets
from pipelines.classify.gram import Chunk, chunks
from pipelines.classify.publish import best_c
from pipelines.classify.step import choose_form, train
from pipelines.cluster.meter import SILENT
from pipelines.errors import RunError
from pipelines.evaluate.step import read_scores
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.settings.sections import Classify
from pipelines.storage.columns import encoding_type
from pipelines.storage.store import Store
from pipelines.storage.tables import ENCODINGS, SCORES, SOLUTIONS
from tests.encoders.in_memory import fit_one_vs_rest

CLASSES = ["jump", "run", "wave"]
STREAM = "pool5_appearance"
NUM, DIM = 48, 20


def make_job(root: Path, *settings: str, num_folds: int = 3, broken: tuple[int, ...] = ()) -> Job:
    """A run with vectors of 48 videos of 12 groups in files of 7; two of them have no label, one no
    vector."""
    kept = ("classify.keep_folds=true", "encode.encoders=ave", "fit.num_workers=2")
    config = Config().with_settings([*kept, *settings])
    draw = np.random.default_rng(0)
    labels = [[CLASSES[i % 3]] + (["wave"] if i % 11 == 0 else []) for i in range(NUM)]
    labels[5] = labels[17] = []
    folds = [i // 4 % num_folds if num_folds > 1 else i // 4 % 3 - 1 for i in range(NUM)]
    manifest = pa.table(
        {
            "video_id": [f"v{i:02d}" for i in range(NUM)],
            "uri": [f"file:///v{i:02d}" for i in range(NUM)],
            "source": ["now"] * NUM,
            "labels": pa.array([sorted(set(names)) for names in labels], pa.list_(pa.string())),
            "group": [f"g{i // 4}" for i in range(NUM)],
            "fold": pa.array(np.minimum(folds, num_folds - 1), pa.int32()),
        }
    )
    weights = SimpleNamespace(identity="none", description="none", file="weights/w.json")
    stream = Stream("pool5_appearance", "pool5", "appearance", 50, DIM)
    job = Job(
        Store(str(root)), config, manifest, "given", num_folds, weights, {stream.name: stream}
    )
    centres = draw.normal(size=(3, DIM))
    vectors = np.array([centres[i % 3] for i in range(NUM)]) + draw.normal(size=(NUM, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[list(broken), 3] = np.nan
    (book,) = job.codebooks
    order = draw.permutation(NUM - 1)
    for first in range(0, len(order), 7):
        rows = [
            {
                "video_id": f"v{i:02d}",
                "source": "now",
                "encoder": "ave",
                "stream": stream.name,
                "fold": -1,
                "num_descriptors": 1,
                "vector": vectors[i].astype(config.encode.dtype),
            }
            for i in order[first : first + 7]
        ]
        table = ENCODINGS.build(rows, vector=encoding_type(DIM, config.encode.dtype))
        job.store.publish_table(f"{job.encodings(book)}/{first:02d}.parquet", table, {})
    return job


def published(job: Job) -> tuple[dict[str, bytes], pa.Table, pa.Table]:
    """The classifiers by name, SCORES and SOLUTIONS."""
    scores, folder = (
        job.scores("ave", "pool5_appearance"),
        job.classifiers("ave", "pool5_appearance"),
    )
    classifiers = {
        name.rpartition("/")[2]: job.store.read(name)
        for name in job.store.files(folder, ".safetensors")
    }
    return classifiers, job.store.read_table(scores), job.store.read_table(folder)


def located(job: Job, manifest: pa.Table | None = None) -> Examples:
    """The videos of the run's first fold set."""
    return locate(job.store, fold_sets(job)[0], manifest or job.manifest, job.config.run.seed)


def stored(job: Job) -> tuple[np.ndarray, list[str]]:
    """All vectors of labelled videos and their ids, in order."""
    examples = located(job)
    table = job.store.read_table(fold_sets(job)[0].encodings, ["video_id", "vector"])
    found = dict(zip(table["video_id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    ids = sorted(examples.video_ids)
    return np.array([found[name] for name in ids], np.float32), ids


# --- without a cluster -------------------------------------------------------------------------


def test_labels_are_of_videos_with_a_vector_of_their_source(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_folds=1)
    stale = job.manifest.set_column(
        2, "source", pa.array(["now"] * 3 + ["later"] + ["now"] * (NUM - 4))
    )
    examples = located(job, stale)
    # Without a label: v05, v17. Changed since: v03. Never encoded: v47.
    assert set(examples.video_ids) == {f"v{i:02d}" for i in range(NUM)} - {
        "v05",
        "v17",
        "v03",
        "v47",
    }
    assert examples.classes == CLASSES
    assert examples.places.dim == DIM
    training = examples.video_ids[: examples.num_training]
    tested = examples.video_ids[examples.num_training :]
    assert training == sorted(training)
    assert tested == sorted(tested)
    folds = dict(
        zip(job.manifest["video_id"].to_pylist(), job.manifest["fold"].to_pylist(), strict=True)
    )
    assert [folds[name] for name in examples.video_ids] == examples.folds.tolist()
    assert {folds[name] for name in training} == {-1}
    assert {folds[name] for name in tested} == {0}
    assert examples.training((0,)).all()
    names = [
        pq.read_table(io.BytesIO(job.store.read(examples.places.files[f])))["video_id"][
            int(r)
        ].as_py()
        for f, r in zip(examples.places.file, examples.places.row, strict=True)
    ]
    assert names == examples.video_ids


def test_targets_are_one_column_per_class() -> None:
    targets = target_matrix([["b"], ["a", "b"], []], ["a", "b", "c"])
    np.testing.assert_array_equal(targets, [[0, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_ignored_classes_are_targets_that_do_not_count() -> None:
    targets = target_matrix([["b"], ["a"]], ["a", "b", "c"], [["c", "no class"], []])
    np.testing.assert_array_equal(targets, [[0, 1, -1], [1, 0, 0]])


def test_a_finished_fold_is_no_work(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert [fold_set.folds for fold_set in fold_sets(job)] == [(0, 1, 2)]
    names = fold_sets(job)[0].files(1)
    assert names[0] == fold_sets(job)[0].scores_file(1)
    for lacking in names:
        for name in names:
            job.store.publish(name, b"")
        assert [fold_set.todo for fold_set in fold_sets(job)] == [(0, 2)]
        job.store.delete(lacking)
        assert [fold_set.todo for fold_set in fold_sets(job)] == [(0, 1, 2)]
    job.store.publish(names[-1], b"")
    assert [(fold_set.folds, fold_set.todo) for fold_set in fold_sets(job)] == [((0, 1, 2), (0, 2))]


def test_folds_with_a_compression_of_their_own_share_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path, "compress.kind=pca", "compress.num_features=5")
    assert [fold_set.folds for fold_set in fold_sets(job)] == [(0,), (1,), (2,)]


def test_the_form_follows_from_size_and_memory_and_says_why() -> None:
    gib = 2**30
    form, reason = choose_form(Classify(), 45_000, 20 * gib)
    assert form == "gram"
    assert (
        reason
        == "the Gram matrix of 45,000 training vectors takes 7.54 GiB, at most 10 GiB, half of the"
        " largest node's object store"
    )
    form, reason = choose_form(Classify(), 500_000, 20 * gib)
    assert form == "primal"
    assert "takes 931 GiB, more than 10 GiB" in reason
    assert choose_form(Classify(form="primal"), 10, 20 * gib)[0] == "primal"
    assert choose_form(Classify(form="gram"), 500_000, gib)[0] == "gram"


@pytest.mark.parametrize(
    ("folds", "num_classes"), [((0,), 239), ((0, 1, 2), 50), ((4,), 128), ((1, 2), 3)]
)
def test_chunks_hold_each_fold_and_class_once(folds: tuple[int, ...], num_classes: int) -> None:
    found = chunks(folds, num_classes)
    pairs = [
        (fold, k)
        for chunk in found
        for fold in chunk.folds
        for k in range(num_classes)[chunk.class_range]
    ]
    assert sorted(pairs) == [(fold, k) for fold in folds for k in range(num_classes)]
    assert all(
        len(chunk.folds) * len(range(num_classes)[chunk.class_range]) <= classify_gram.COLUMNS
        for chunk in found
    )


def test_few_classes_are_solved_with_several_folds() -> None:
    assert chunks((0, 1, 2), 50) == [Chunk((0, 1), slice(0, 50)), Chunk((2,), slice(0, 50))]


def test_a_task_reads_rows_of_many_files_by_the_block_they_go_to(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (fold_set,) = fold_sets(job)
    names = job.store.files(fold_set.encodings)
    tables = [
        pq.read_table(io.BytesIO(job.store.read(name)))["vector"].to_pylist() for name in names
    ]
    draw = np.random.default_rng(1)
    # Three blocks, in any order, none from the second file.
    every = [(f, r) for f in range(len(names)) if f != 1 for r in range(len(tables[f]))]
    draw.shuffle(every)
    blocks = [np.array(every[:5]), np.array(every[5:6]), np.array(every[6:20])]
    rows = [(block[:, 0], block[:, 1]) for block in blocks]
    parts = classify_vectors._read._function(job.store, names, rows, SILENT)
    for block, part in zip(blocks, parts, strict=True):
        np.testing.assert_array_equal(part, [tables[f][r] for f, r in block])
    alone = classify_vectors._read._function(job.store, names, rows[:1], SILENT)
    np.testing.assert_array_equal(alone, parts[0])


def test_inner_folds_hold_whole_groups_of_training_videos(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    examples = located(job)
    inner = examples.inner_folds(1)
    assert ((inner < 0) == (examples.folds == 1)).all()
    assert set(inner.tolist()) == {-1, 0, 1, 2}
    for group in set(examples.groups):
        assert (
            len({part for part, name in zip(inner, examples.groups, strict=True) if name == group})
            == 1
        )
    np.testing.assert_array_equal(inner, examples.inner_folds(1))


def test_one_group_is_too_few_to_choose_from(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    one = job.manifest.set_column(4, "group", pa.array(["same"] * NUM))
    examples = located(job, one)
    with pytest.raises(
        RunError, match=r"classify.c: expected at least two groups .* fold 2 .* got 1"
    ):
        examples.inner_folds(2)


def test_the_best_c_is_the_smallest_of_equals_over_classes_with_positives() -> None:
    precision = np.array([[0.5, 0.2, np.nan], [0.7, 0.4, np.nan], [0.6, 0.5, np.nan]])
    c, words = best_c((1, 10, 100), precision)
    assert c == 10
    assert words == "held-out mAP by C: 1: 0.3500, 10: 0.5500, 100: 0.5500; C = 10"
    assert best_c((1, 10), np.full((2, 3), np.nan))[0] == 1


# --- on the cluster ----------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_scores_are_those_of_separate_fits(
    local_ray: None, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several blocks, strips and chunks.
    for module in (classify_gram, classify_vectors):
        monkeypatch.setattr(module, "strip_rows", lambda dim: 13)
    monkeypatch.setattr(classify_gram, "COLUMNS", 2)
    job = make_job(tmp_path, f"classify.loss={loss}", "classify.c=10", "classify.tolerance=1e-7")
    vectors, ids = stored(job)
    spent = train(job)
    assert {stage.name for stage in spent.stages} == {"read", "gram", "solve", "write"}
    assert all(stage.busy_s > 0 for stage in spent.stages)
    classifiers, scores, solutions = published(job)
    assert scores.num_rows == (NUM - 3) * 3
    assert scores.schema.equals(SCORES.schema())
    assert solutions.schema.equals(SOLUTIONS.schema())
    rows = {row["video_id"]: row for row in job.manifest.to_pylist()}
    folds = np.array([rows[name]["fold"] for name in ids])
    targets = target_matrix([rows[name]["labels"] for name in ids], CLASSES)
    score = {(row["video_id"], row["label"]): row for row in scores.to_pylist()}
    assert len(score) == scores.num_rows
    for fold in range(3):
        training = folds != fold
        expected = fit_one_vs_rest(
            vectors[training], targets[training], classes=CLASSES, c=10, loss=loss, tolerance=1e-10
        )
        own = LinearClassifier.from_bytes(classifiers[f"fold-{fold:05d}.safetensors"])
        assert own.classes == tuple(CLASSES)
        np.testing.assert_allclose(own.weights, expected.weights, atol=3e-4)
        decisions = expected.decision(vectors[~training])
        for name, row in zip(np.array(ids)[~training], decisions, strict=True):
            for label, value in zip(CLASSES, row, strict=True):
                found = score[name, label]
                assert found["score"] == pytest.approx(value, abs=3e-4)
                assert found["fold"] == fold
                assert found["is_true"] == (label in rows[name]["labels"])
    for row in solutions.to_pylist():
        assert row["is_solved"]
        assert row["gap"] <= 1e-7
        assert (row["form"], row["loss"], row["c"]) == ("gram", loss, 10)
        training = folds != row["fold"]
        assert row["num_positive"] == targets[training, CLASSES.index(row["label"])].sum()
        assert row["num_positive"] + row["num_negative"] == training.sum()


@pytest.mark.ray
@pytest.mark.parametrize("form", ["gram", pytest.param("primal", marks=pytest.mark.nightly)])
def test_videos_that_do_not_count_for_a_class_neither_train_nor_test_it(
    local_ray: None, tmp_path: Path, form: str
) -> None:
    job = make_job(
        tmp_path,
        *("classify.c=10", "classify.tolerance=1e-8", "classify.loss=squared_hinge"),
        f"classify.form={form}",
    )
    ignored = [["run"] if i % 3 == 0 and i % 2 else [] for i in range(NUM)]
    column = pa.array(ignored, pa.list_(pa.string()))
    job = replace(job, manifest=job.manifest.append_column("ignored", column))
    vectors, ids = stored(job)
    train(job)
    classifiers, scores, solutions = published(job)
    rows = {row["video_id"]: row for row in job.manifest.to_pylist()}
    for row in scores.to_pylist():
        video = rows[row["video_id"]]
        counts = row["label"] not in video["ignored"]
        assert row["is_true"] == ((row["label"] in video["labels"]) if counts else None)
    folds = np.array([rows[name]["fold"] for name in ids])
    kept = np.array(["run" not in rows[name]["ignored"] for name in ids])
    targets = target_matrix([rows[name]["labels"] for name in ids], CLASSES)
    for fold in range(3):
        trains = (folds != fold) & kept
        expected = fit_one_vs_rest(vectors[trains], targets[trains], c=10, tolerance=1e-10)
        own = LinearClassifier.from_bytes(classifiers[f"fold-{fold:05d}.safetensors"])
        np.testing.assert_allclose(own.weights[1], expected.weights[1], atol=1e-3)
        [counted] = [
            row["num_positive"] + row["num_negative"]
            for row in solutions.to_pylist()
            if (row["fold"], row["label"]) == (fold, "run")
        ]
        assert counted == trains.sum()
    matrix = read_scores(job.store, "ave", STREAM, job.scores("ave", STREAM), "failures")
    run = matrix.targets[:, CLASSES.index("run")]
    assert [name for name, t in zip(matrix.video_ids, run, strict=True) if t < 0] == [
        name for name in matrix.video_ids if rows[name]["ignored"]
    ]


@pytest.mark.ray
def test_the_same_bytes_whatever_the_files(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors are put in order of their ids: how they were dealt into files does not count."""
    first, second = (make_job(tmp_path / name, "encode.dtype=float16") for name in "ab")
    folder = fold_sets(second)[0].encodings
    whole = second.store.read_table(folder).take(
        pa.array(np.random.default_rng(1).permutation(NUM - 1))
    )
    for name in second.store.files(folder):
        second.store.delete(name)
    for place in range(4):
        part = whole.slice(place * 12, 12)
        second.store.publish_table(f"{folder}/{place}.parquet", part, {})
    train(first)
    # A task for each file, as where vectors are long.
    monkeypatch.setattr(classify_vectors, "READ_TASK_BYTES", 1)
    train(second)
    (classifiers, scores, _), (again, scores_again, _) = published(first), published(second)
    assert classifiers == again
    assert scores.equals(scores_again)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_primal_and_gram_agree_and_choose_the_same_c(
    local_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (
        "classify.c=10,0.001,1",
        "classify.class_weight=balanced",
        "encode.dtype=float16",
    )
    gram, primal = (
        make_job(tmp_path / form, *settings, f"classify.form={form}", num_folds=1)
        for form in ("gram", "primal")
    )
    with caplog.at_level(logging.DEBUG, "pipelines"):
        train(gram)
        assert {"solve", "write"} == {stage.name for stage in train(primal).stages}
    assert (
        "classify ave-pool5_appearance: form primal, because classify.form says so" in caplog.text
    )
    assert "fold 0: held-out mAP by C: 0.001: 0." in caplog.text
    (classifiers, scores, solved), (others, other_scores, other_solved) = (
        published(gram),
        published(primal),
    )
    (data,), (other,) = classifiers.values(), others.values()
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    header = json.loads(entries["classifier"])
    assert header["c"] in (0.001, 1, 10)
    assert header["class_weight"] == "balanced"
    assert set(solved["c"].to_pylist()) == {header["c"]} == set(other_solved["c"].to_pylist())
    assert set(other_solved["form"].to_pylist()) == {"primal"}
    np.testing.assert_allclose(
        solved["primal"].to_numpy(), other_solved["primal"].to_numpy(), rtol=2e-6
    )
    keys = ["video_id", "label", "is_true", "fold"]
    assert scores.select(keys).equals(other_scores.select(keys))
    np.testing.assert_allclose(
        scores["score"].to_numpy(), other_scores["score"].to_numpy(), atol=2e-3
    )
    ours, theirs = (safetensors.numpy.load(part) for part in (data, other))
    for name in ("weights", "bias"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3)


@pytest.mark.ray
def test_a_class_that_no_training_video_has_or_all_have(local_ray: None, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    names = [
        sorted({*names, "always"} | ({"once"} if i == 0 else set())) if names else []
        for i, names in enumerate(job.manifest["labels"].to_pylist())
    ]
    column = pa.array(names, pa.list_(pa.string()))
    object.__setattr__(job, "manifest", job.manifest.set_column(3, "labels", column))
    job.__dict__.pop("_videos_digest", None)
    train(job)
    _, scores, solutions = published(job)
    table = scores.to_pylist()
    assert {row["score"] for row in table if row["label"] == "always"} == {1.0}
    fold = job.manifest["fold"][0].as_py()
    assert {row["score"] for row in table if row["label"] == "once" and row["fold"] == fold} == {
        -1.0
    }
    for row in solutions.to_pylist():
        known = row["label"] != "always" and (row["label"], row["fold"]) != ("once", fold)
        assert (row["gap"] is not None) == (row["primal"] is not None) == known
        assert row["is_solved"]


@pytest.mark.ray
def test_a_killed_run_goes_on_behind_its_folds(local_ray: None, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    train(job)
    _, scores, _ = published(job)
    files = job.store.files(job.scores("ave", "pool5_appearance"))
    job.store.delete(files[1])
    before = {
        name: Path(job.store.path(name)).stat().st_mtime_ns for name in files if name != files[1]
    }
    train(job)
    assert {n: Path(job.store.path(n)).stat().st_mtime_ns for n in before} == before
    assert published(job)[1].equals(scores)


@pytest.mark.ray
def test_compressed_vectors(local_ray: None, tmp_path: Path) -> None:
    settings = ("compress.kind=pca", "compress.num_features=6", "classify.c=1")
    job = make_job(tmp_path, *settings)
    vectors, ids = stored(job)
    train(job)
    classifiers, scores, _ = published(job)
    folder = job.classifiers("ave", "pool5_appearance")
    rows = {row["video_id"]: row for row in job.manifest.to_pylist()}
    compression = Compression.from_bytes(job.store.read(f"{folder}/compression-00002.safetensors"))
    own = LinearClassifier.from_bytes(classifiers["fold-00002.safetensors"])
    assert own.weights.shape == (3, 6)
    tests = [place for place, name in enumerate(ids) if rows[name]["fold"] == 2]
    expected = own.decision(compression.transform(torch.from_numpy(vectors[tests])).numpy())
    found = {
        (row["video_id"], row["label"]): row["score"]
        for row in scores.to_pylist()
        if row["fold"] == 2
    }
    for place, row in zip(tests, expected, strict=True):
        for label, value in zip(CLASSES, row, strict=True):
            assert found[ids[place], label] == pytest.approx(value, abs=1e-5)


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["gram", "primal"])
def test_vectors_that_are_not_finite_stop_the_run_with_a_message(
    local_ray: None, tmp_path: Path, form: str
) -> None:
    job = make_job(tmp_path, f"classify.form={form}", broken=(8, 30))
    with pytest.raises(
        RunError, match=r"classify: .*expected finite vectors, got NaN or infinity in"
    ):
        train(job)
    assert not job.store.files(job.scores("ave", "pool5_appearance"))


@pytest.mark.ray
def test_settings_that_cannot_be_are_messages(local_ray: None, tmp_path: Path) -> None:
    wide = make_job(tmp_path / "a", "compress.kind=pca", "compress.num_features=19", num_folds=1)
    with pytest.raises(RunError, match=r"classify: compress.num_features: expected at most"):
        train(wide)
    primal = make_job(
        tmp_path / "b", "compress.kind=pca", "compress.num_features=3", "classify.form=primal"
    )
    with pytest.raises(RunError, match=r"classify.form: expected gram for ave-pool5_appearance"):
        train(primal)


@pytest.mark.ray
def test_a_class_that_is_not_solved_is_named(
    local_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(tmp_path, "classify.tolerance=1e-12", "classify.c=1e5", num_folds=1)
    with caplog.at_level(logging.WARNING):
        train(job)
    _, _, solutions = published(job)
    bad = [row["label"] for row in solutions.to_pylist() if not row["is_solved"]]
    assert bad
    assert (
        f"fold 0: {len(bad)} classes are not solved to a relative gap of 1e-12: {bad[0]} ("
        in caplog.text
    )
