"""End-to-end training as a job: pictures, training on Ray Train, and a worker that is killed."""

import itertools
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from encoders.backbones import load
from encoders.registry import encoder_from_bytes
from jobs.finetune import main
from pipelines.cluster.teams import Team
from pipelines.describe import weights
from pipelines.fit import finetune
from pipelines.fit.finetune import FRAMES, KeepFrames
from pipelines.fit.finetune_worker import read_share
from pipelines.settings.recipes import recipe
from pipelines.storage.store import Store


def decoded(video: str, segment: int, indices: list[int]) -> dict:
    """A row as DecodeSegments gives it; a picture's pixels are its frame's index."""
    images = np.repeat(np.array(indices, np.uint8), 2 * 2 * 3)
    return {
        "segment_id": f"{video}#{segment:05d}",
        "video_id": video,
        "source": "1",
        "status": "ok",
        "error": None,
        "frame_indices": indices,
        "images": images.tobytes(),
        "num_images": len(indices),
    }


FAILED = decoded("c", 0, [0]) | {
    "status": "failed",
    "error": "no video",
    "frame_indices": [],
    "images": b"",
    "num_images": 0,
}


def pictures(row: dict) -> np.ndarray:
    return np.frombuffer(row["pictures"], np.uint8).reshape(-1, 2, 2, 3)


def test_the_frames_kept_are_drawn_with_the_seed_and_lie_with_their_pixels() -> None:
    rows = [decoded("a", 0, list(range(40))), decoded("b", 1, [64, 65, 66]), FAILED]
    kept = KeepFrames(2, most=5, seed=1)(pa.Table.from_pylist(rows)).to_pylist()
    assert [len(row["frame_indices"]) for row in kept] == [5, 3, 0]
    for row in kept:
        assert row["frame_indices"] == sorted(row["frame_indices"])
        assert (
            pictures(row) == np.array(row["frame_indices"], np.uint8)[:, None, None, None]
        ).all()
    again = KeepFrames(2, most=5, seed=1)(pa.Table.from_pylist(rows[::-1])).to_pylist()
    assert again[::-1] == kept
    other = KeepFrames(2, most=5, seed=2)(pa.Table.from_pylist(rows)).to_pylist()
    assert other[0]["frame_indices"] != kept[0]["frame_indices"]


def test_each_worker_reads_whole_videos_and_all_of_them_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [
        decoded("b", 1, [70, 71]),
        decoded("a", 0, [1, 2, 3]),
        FAILED,
        decoded("b", 0, [5]),
        decoded("d", 0, [9]),
    ]
    keep = KeepFrames(2, most=9, seed=0)
    for place, row in enumerate(rows):
        table = keep(pa.Table.from_pylist([row]))
        store.publish_table(f"frames/{place}.parquet", table, {})
    shares = [read_share(store, "frames", 2, Team(rank=rank, size=2)) for rank in (0, 1)]
    assert [videos for _, videos in shares] == [["a", "a", "a", "d"], ["b", "b", "b"]]
    assert [share[:, 0, 0, 0].tolist() for share, _ in shares] == [[1, 2, 3, 9], [5, 70, 71]]
    assert all(share.dtype == torch.uint8 for share, _ in shares)


SMALL = (
    "split.kind=random",
    "sampling.num_frames=3",
    "picture.resize_px=72",
    "picture.crop_px=64",
    "describe.streams=appearance",
    "encode.encoders=ave,fv_vae",
    "fv_vae.hidden=16",
    "fv_vae.num_latents=5",
    "fv_vae.lambda3=10",
    "fv_vae.num_steps=8",
    "fv_vae.batch_frames=4",
    "fit.checkpoint_s=0.0001",
    "finetune.num_frames=20",
    "finetune.trainable_from=features.9",
)


def run(data: Path, out: Path, capsys: pytest.CaptureFixture | None = None) -> tuple[int, str]:
    """The exit code, and the command that is printed."""
    folder = data / "labelled" / "weizmann"
    flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out)]
    flags += ["--recipe", "demo", "--limit", "12"]
    for setting in (
        f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}",
        *SMALL,
    ):
        flags += ["--set", setting]
    code = main(flags)
    return code, capsys.readouterr().out if capsys else ""


@pytest.fixture(scope="module")
def finished(data: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetune") / "out"
    assert run(data, out)[0] == 0
    return out


def tuned(out: Path) -> Path:
    (folder,) = (out / "finetuned").iterdir()
    return folder


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_new_weights_codebook_and_curves(finished: Path, data: Path) -> None:
    folder = tuned(finished)
    before = safetensors.torch.load_file(data / "weights" / "squeezenet1_0.safetensors")
    packed = (folder / "weights.safetensors").read_bytes()
    after = safetensors.torch.load(packed)
    moved = {name for name, value in before.items() if not torch.equal(value.float(), after[name])}
    behind = ("features.10.", "features.11.", "features.12.")
    assert moved == {name for name in before if name.startswith(behind)}
    load.build("squeezenet1_0", ("features.12",), packed)
    codebook = encoder_from_bytes((folder / "codebook.safetensors").read_bytes())
    assert codebook.descriptor_dim == 512
    curves = pq.read_table(folder / "curves.parquet").to_pylist()
    assert [row["step"] for row in curves if row["quantity"] == "total"] == list(range(1, 9))


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_only_training_videos_become_pictures(finished: Path) -> None:
    """Two of the twelve videos are for the test; two frames of 64 x 64 of each other one."""
    files = [file for file in (finished / "frames").rglob("*.parquet") if file.name[0] != "."]
    table = pa.concat_tables(pq.read_table(file).cast(FRAMES.schema()) for file in files)
    videos = pq.read_table(next((finished / "videos").rglob("*.parquet"))).to_pylist()
    training = {row["video_id"] for row in videos if row["fold"] != 0}
    assert len(training) == 10
    assert set(table["video_id"].to_pylist()) == training
    assert {len(value.as_py()) for value in table["pictures"]} == {2 * 64 * 64 * 3}


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_second_run_has_nothing_to_do_and_prints_a_command_that_takes_the_weights(
    finished: Path,
    data: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finetune, "train", lambda *_: pytest.fail("it was trained again"))
    code, printed = run(data, finished, capsys)
    assert code == 0
    program, *flags = shlex.split(printed.splitlines()[-1])[2:]
    assert program == "jobs.fcvid_encode"
    assert flags[flags.index("--recipe") + 1] == "demo"
    given = [value for flag, value in itertools.pairwise(flags) if flag == "--set"]
    assert not [setting for setting in given if setting.startswith("finetune.")]
    found = weights.resolve(recipe("demo").with_settings(given).describe)
    assert found.load() == (tuned(finished) / "weights.safetensors").read_bytes()


def train_workers() -> Iterator[int]:
    """Processes of Ray Train's workers that descend from this one."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            stat = (folder / "stat").read_text() if folder.name.isdigit() else ""
            name = (folder / "cmdline").read_bytes() if stat else b""
        except OSError:
            continue
        if stat:
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            names[int(folder.name)] = name
    for pid, name in names.items():
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and b"RayTrainWorker" in name:
            yield pid


def kill_once(is_time: Callable[[], bool], stopped: threading.Event, killed: list[int]) -> None:
    while not stopped.is_set() and not killed:
        if is_time():
            for pid in train_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.002)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_killed_worker_changes_nothing(finished: Path, data: Path, tmp_path: Path) -> None:
    """It goes on from its last checkpoint, and the weights are those of the undisturbed run."""
    out, stopped, killed = tmp_path / "out", threading.Event(), []

    def has_checkpoint() -> bool:
        return any(out.glob("train/*.pt"))

    killer = threading.Thread(target=kill_once, args=(has_checkpoint, stopped, killed))
    killer.start()
    try:
        code, _ = run(data, out)
    finally:
        stopped.set()
        killer.join()
    assert code == 0
    assert killed
    for name in ("weights.safetensors", "codebook.safetensors"):
        assert (tuned(out) / name).read_bytes() == (tuned(finished) / name).read_bytes()
    steps = [
        row["step"]
        for row in pq.read_table(tuned(out) / "curves.parquet").to_pylist()
        if row["quantity"] == "total"
    ]
    assert steps == list(range(1, 9))
