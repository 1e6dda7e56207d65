"""What a run does that meets the work of earlier ones, with steps that need no Ray."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from encoders.descriptors.streams import Stream
from pipelines import corpus
from pipelines.cluster import sink
from pipelines.encode import step as encode_step
from pipelines.index import current_rows
from pipelines.index import step as index_step
from pipelines.ledger import accounts as ledger
from pipelines.ledger import marks
from pipelines.ledger.accounts import Account, Spent
from pipelines.run.codebook import Codebook
from pipelines.run.inputs import RETRIES, Retries
from pipelines.run.job import Job
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.storage.store import DONE, Store
from pipelines.storage.tables import SEGMENTS, VIDEOS
from pipelines.video.stages import plan_segments

STREAM = Stream("pool5_appearance", "pool5", "appearance", 50, 20)


def job(root: Path, num_videos: int, encoders: str = "vlad", retries: Retries | None = None) -> Job:
    names = [f"v{n}" for n in range(num_videos)]
    columns = {
        "video_id": names,
        "uri": names,
        "source": ["s"] * num_videos,
        "labels": pa.array([["ab"[n % 2]] for n in range(num_videos)], pa.list_(pa.string())),
        "group": pa.nulls(num_videos, pa.string()),
        "fold": pa.array([-1 if n < 2 else 0 for n in range(num_videos)], pa.int32()),
    }
    config = Config().with_settings([f"encode.encoders={encoders}"])
    weights = SimpleNamespace(identity="w", description="w", file="weights/w.json")
    made_from = (config, pa.table(columns), "given", 1, weights, {STREAM.name: STREAM})
    return Job(Store(str(root)), *made_from, retries or Retries())


# --- --retry-failed -----------------------------------------------------------------------------


def test_the_decoder_of_a_retry_is_for_what_is_tried_again(tmp_path: Path) -> None:
    one = job(tmp_path, 4, retries=Retries(1, "decord"))
    plan = pa.table({"segment_id": [f"v{n}#00000" for n in range(4)]})
    plan = plan.append_column("video_id", pa.array([f"v{n}" for n in range(4)]))
    plan = plan.append_column("source", pa.array(["s"] * 4))
    described = plan.slice(0, 2).append_column("status", pa.array(["ok", "failed"]))
    described = described.append_column("attempts", pa.array([1, 1], pa.int32()))
    one.store.publish_table(f"{one.descriptors}/x.parquet", described, {})
    rows = current_rows.to_describe(one, plan)
    assert dict(zip(rows["video_id"].to_pylist(), rows["decoder"].to_pylist(), strict=True)) == {
        "v1": "decord",
        "v2": "",
        "v3": "",
    }


def test_the_decoder_of_a_retry_ends_with_it_and_its_count_stays(tmp_path: Path) -> None:
    one = job(tmp_path, 4, retries=Retries(2, "decord"))
    one.finish("index")
    assert not one.store.exists(RETRIES)
    one.finish("describe")
    assert one.store.read_json(RETRIES) == {"passes": 2, "decoder": ""}


# --- steps --------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that run, with stand-ins: `describe` fails on v4, and `encode` wants the
    codebooks."""
    ran: list[str] = []

    def stand_in(name: str, one: Job) -> tuple[Account, Spent]:
        ran.append(name)
        if name == "evaluate":
            one.store.publish(one.report, b"</html>")
        if name == "describe":
            one.store.publish(one.weights.file, b"{}")
            names = [f"{v}#00000" for v in one.manifest["video_id"].to_pylist() if v == "v4"]
            columns = {"source": "s", "status": "failed", "num_missing": 0}
            rows = pa.table(
                {"segment_id": pa.array(names, pa.string())}
                | {column: pa.array([value] * len(names)) for column, value in columns.items()}
            )
            one.store.publish_table(f"{one.failures}/x.parquet", rows, {})
        for book in one.codebooks if name == "encode" else ():
            assert marks.find(one.store, f"{book.folder}/{DONE}")
        return Account(name, 0, 0, 0), Spent(0.0, ())

    for name in STEPS:
        monkeypatch.setattr(corpus, name, lambda one, name=name: stand_in(name, one))
    nothing = ledger.Outcome(False, 0, 0, 0, 0)
    monkeypatch.setattr(corpus, "outcome", lambda _, did_work: nothing)
    monkeypatch.setattr(corpus.connect, "connect", lambda *_: ran.append("connect"))
    monkeypatch.setattr(corpus.ray, "cluster_resources", dict)
    return ran


def test_what_a_failure_changes_is_fitted_again(tmp_path: Path, steps: list[str]) -> None:
    """A broken test video is in no sample, but codebooks are named by the failures too."""
    # No network is asked for.
    wanted = [name for name in STEPS if name != "train"]
    corpus.run(job(tmp_path, 4), tuple(STEPS), None)
    assert steps == ["connect", *wanted]
    steps.clear()
    corpus.run(job(tmp_path, 5), tuple(STEPS), None)
    assert steps == ["connect", *wanted]
    steps.clear()
    corpus.run(job(tmp_path, 5), tuple(STEPS), None)
    assert steps == []


def test_what_is_known_of_videos_is_published_once(tmp_path: Path) -> None:
    """A run was killed in index, another named split indexed all its videos, and the first one
    comes again."""
    one = job(tmp_path, 4)
    known = pa.table({"video_id": [f"v{n}" for n in range(4)], "source": ["s"] * 4})
    known = known.append_column("num_segments", pa.array([1, 2, 1, 2]))
    videos = sink.Output(VIDEOS, one.videos, {})
    segments = sink.Output(SEGMENTS, one.segments, {}, plan_segments)
    index_step._publish_known(one, known.slice(0, 3), [segments])
    index_step._publish_known(one, known.slice(0, 2), [videos])
    for _ in range(2):
        index_step._publish_known(one, known, [segments, videos])
        assert sorted(one.store.read_table(one.videos)["video_id"].to_pylist()) == [
            f"v{n}" for n in range(4)
        ]
        assert one.store.read_table(one.segments).num_rows == 6


def test_new_labels_encode_only_what_depends_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(tmp_path, 4, "vlad,ave,fv_vae@lambda3=1")
    named = {"video_id": [f"v{n}" for n in range(4)], "source": ["s"] * 4}
    videos = pa.table(named | {"num_descriptors": [7] * 4})
    monkeypatch.setattr(current_rows, "places_by_video", lambda _: videos)
    vlad, ave, fv_vae = one.codebooks

    def publish(book: Codebook, rows: pa.Table) -> None:
        one.store.publish_table(f"{one.encodings(book)}/{len(rows)}.parquet", rows, {})

    publish(vlad, videos)
    publish(ave, videos.slice(0, 3))
    asked = {}

    def encode(_: Job, visible: dict[Codebook, frozenset[str]], __: pa.Table) -> Spent:
        asked.update(visible)
        publish(ave, videos.slice(3))
        publish(fv_vae, videos)
        one.store.publish_table(f"{one.attention(fv_vae)}/x.parquet", videos, {})
        return Spent(0.0, ())

    monkeypatch.setattr(encode_step, "_encode", encode)
    compacted = []
    monkeypatch.setattr(encode_step, "_compact", lambda _, book: compacted.append(book))
    encode_step.encode(one)
    one.finish("encode")
    assert compacted == [vlad, ave, fv_vae]
    assert asked == {ave: {"v0", "v1", "v2"}, fv_vae: frozenset()}
    assert one.is_complete("encode")
