"""CLIPS: which videos are decoded, again after `--retry-failed`."""

import dataclasses
from pathlib import Path

import pyarrow as pa

from pipelines.networks.clips import _to_decode
from pipelines.prepare import _failed_clips
from pipelines.run.inputs import Retries
from pipelines.storage.tables import CLIPS
from tests.pipelines.run.examples import example


def clip(video: str, status: str, attempts: int | None) -> dict:
    is_there = status != "failed"
    return {
        "clip_id": f"{video}#00000",
        "video_id": video,
        "source": "s",
        "status": status,
        "error": None if is_there else "gone",
        "frame_indices": [0] if is_there else [],
        "pictures": b"",
        "flow": None,
        "num_flows": 0,
        "error_type": None,
        "timestamps_s": None,
        "attempts": attempts,
    }


def test_failed_videos_are_decoded_again_only_when_asked_for(tmp_path: Path) -> None:
    job = example(str(tmp_path), "network.networks=tsn")
    rows = [clip("a", "ok", 1), clip("b", "failed", 1), clip("c", "partial", 1)]
    old = CLIPS.build([clip("d", "failed", 1)]).drop_columns(["attempts"])
    job.store.publish_table(f"{job.clips}/new.parquet", CLIPS.build(rows), {})
    job.store.publish_table(f"{job.clips}/old.parquet", old, {})
    plan = pa.table(
        {"clip_id": [f"{video}#00000" for video in "abcde"], "source": ["s"] * 4 + ["other"]}
    )

    def decoded(passes: int, decoder: str = "") -> dict[str, tuple]:
        again = dataclasses.replace(job, retries=Retries(passes, decoder))
        found = _to_decode(again, plan).to_pylist()
        return {row["clip_id"][0]: (row["attempts"], row.get("decoder")) for row in found}

    assert decoded(0) == {"e": (1, "")}
    assert decoded(1, "decord") == {"b": (2, "decord"), "d": (2, "decord"), "e": (2, "")}
    assert _failed_clips(job) == 2
    # One of them failed once more, the other one has pictures now.
    rows = [clip("b", "failed", 2), clip("d", "ok", 2)]
    job.store.publish_table(f"{job.clips}/again.parquet", CLIPS.build(rows), {})
    assert decoded(1, "decord") == {"e": (2, "")}
    assert _failed_clips(job) == 1
    assert decoded(2) == {"b": (3, ""), "e": (3, "")}


def test_networks_are_trained_again_where_a_retry_brought_training_videos_back(
    tmp_path: Path,
) -> None:
    job = example(str(tmp_path), "network.networks=tsn,actionflownet")
    job = dataclasses.replace(job, retries=Retries(1, ""))
    rows = [clip("v0", "failed", 1), clip("v1", "ok", 1), clip("v2", "failed", 1)]
    rows = [row | {"source": row["video_id"]} for row in rows]
    # A video that came later has had one try.
    rows.append(clip("v3", "ok", 2) | {"source": "v3"})
    job.store.publish_table(f"{job.clips}/first.parquet", CLIPS.build(rows), {})
    before = {network.fold: network.folder for network in job.networks}
    never = dataclasses.replace(job, retries=Retries(0, ""))
    assert before == {network.fold: network.folder for network in never.networks}
    rows = [clip("v0", "ok", 2) | {"source": "v0"}, clip("v2", "failed", 2) | {"source": "v2"}]
    job.store.publish_table(f"{job.clips}/second.parquet", CLIPS.build(rows), {})
    job.clips_came()
    after = {network.fold: network.folder for network in job.networks}
    is_same = {fold: after[fold] == before[fold] for fold in before}
    assert is_same == {fold: "v0" not in job.training_videos(fold) for fold in before}
    assert sorted(is_same.values()) == [False, True]


def test_without_clips_all_are_decoded(tmp_path: Path) -> None:
    job = example(str(tmp_path), "network.networks=tsn")
    plan = pa.table({"clip_id": ["a#00000"], "source": ["s"]})
    assert _to_decode(job, plan)["attempts"].to_pylist() == [1]
    assert _failed_clips(job) == 0
