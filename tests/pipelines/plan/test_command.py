"""--plan on real videos: which are tried, what is measured, what is said and kept; no cluster, no
lock."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import finetune
from jobs.fcvid_encode import main
from pipelines.index import manifest
from pipelines.plan.sample import spread
from pipelines.run.record import PLAN, predicted
from pipelines.settings.config import Config
from pipelines.settings.recipes import recipe
from pipelines.storage.store import Store

QUICK = (
    *("describe.streams=appearance", "encode.encoders=ave,vlad", "sampling.num_frames=4"),
    *("describe.weights=random:0", "plan.sample=30", "evaluate.bootstrap=0"),
    "split.num_folds=2",
)


@given(number=st.integers(1, 3000), seed=st.integers(0, 100))
def test_the_sample_meets_every_place_once(number: int, seed: int) -> None:
    places = list(spread(number, seed, number))
    assert sorted(places) == list(range(number))


@given(number=st.integers(200, 10**7), seed=st.integers(0, 100))
def test_any_first_part_of_the_sample_is_spread(number: int, seed: int) -> None:
    """No gap between neighbours is larger than four times the mean one."""
    places = np.sort(list(spread(number, seed, 40)))
    gaps = np.diff([*places, places[0] + number])
    assert len(places) == 40
    assert gaps.max() <= 4 * number / 40


@pytest.fixture
def corpus(data: Path, tmp_path: Path) -> Path:
    """Twelve videos in two groups of two classes."""
    folder = tmp_path / "videos"
    rows = ["path,label,group"]
    for place, label in enumerate(["walk", "run"] * 6):
        source = sorted((data / "labelled" / "weizmann" / label).iterdir())[place // 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / label / source.name)
        rows.append(f"{label}/{source.name},{label},{place // 6}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def plan_of(videos: Path | str, labels: Path | None, out: Path, *settings: str) -> int:
    flags = ["--plan", "--videos", str(videos), "--out", str(out), "--recipe", "demo"]
    flags += ["--labels", str(labels)] if labels else ["--steps", "index,describe,fit,encode"]
    for setting in (*QUICK, *settings):
        flags += ["--set", setting]
    return main(flags)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("a cluster was started"))


@pytest.mark.slow
def test_a_plan_says_what_a_run_would_take_and_leaves_one_file(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.lock").write_text("another run's")
    settings = ("plan.num_cpus=64", "plan.num_gpus=4", "plan.gpu=l4")
    networks = "tsn@num_steps=900:segments=2,conv_pooling@num_steps=50:clip_frames=4:units=8"
    settings += (f"network.networks={networks}", "network.frames=4", "network.test_views=centre")
    settings += ("network.side_px=64", "network.crop_px=56", "network.input=pixels")
    assert plan_of(corpus, corpus / "labels.csv", out, *settings) == 0
    said = capsys.readouterr().out
    assert "12 videos; headers of 12 looked at" in said
    assert "on 64 CPUs, 4 l4 GPUs" in said
    assert "4 x       g6.4xlarge" in said
    assert sorted(os.listdir(out)) == [PLAN, "run.lock"]
    assert (out / "run.lock").read_text() == "another run's"
    record = json.loads((out / PLAN).read_text())
    assert list(record["steps"]) == sorted(
        ["index", "describe", "fit", "encode", "train", "classify", "evaluate", "final"]
    )
    assert record["steps"]["train"]["units"] == 2 * 2
    assert record["steps"]["train"]["tables"]["CLIPS"] == 12 * 4 * 64 * 64 * 3
    counts = {"videos": 12, "labelled": 12, "training": 12, "tested": 12, "classes": 2}
    assert record["counts"] == counts | {"num_folds": 2}
    measured = record["measured"]
    tsn, pooling = measured["networks"]["trials"]
    assert (tsn["stream"], tsn["copies"], pooling["copies"]) == ("rgb", 2, 2)
    assert tsn["train_s"] > 900 * tsn["clip_s"] > 0
    assert measured["networks"]["decode_s"] > 0
    assert measured["segments"]["frames"] == 4
    assert measured["headers"]["mean_segments"] == 1
    # A frame of 50 descriptors, 512 wide, in half precision; zstd saves a little.
    assert 0.3 * 51_200 < measured["rates"]["frame_bytes"] < 1.3 * 51_200
    assert measured["dims"] == {
        "ave features_12_appearance": 512,
        "vlad features_12_appearance": 16384,
    }


@pytest.mark.slow
def test_damaged_and_missing_videos_are_counted(
    corpus: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (corpus / "run" / "zero.avi").write_bytes(b"")
    names = [str(p.relative_to(corpus)) for p in sorted(corpus.glob("*/*.avi"))]
    names += [f"gone/{place}.avi" for place in range(7)]
    pq.write_table(pa.table({"path": names}), corpus / "videos.parquet")
    assert plan_of(corpus / "videos.parquet", None, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "MISSING: 7 of 20 videos (35%) do not exist" in said
    assert "will fail, by the sample: 1 x empty_file" in said
    assert "classify" not in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("plan.gpu=tpu", "plan.num_cpus=8", "plan.num_gpus=1"),
            "plan.gpu: expected one of t4, l4",
        ),
        (("plan.prices=/no.toml",), "plan.prices=/no.toml: expected a TOML file"),
        (("plan.num_gpus=2",), "plan.num_gpus: expected 0 where plan.num_cpus is not given, got 2"),
    ],
)
def test_mistakes_are_one_message(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    settings: tuple[str, ...],
    message: str,
) -> None:
    assert plan_of(corpus, None, tmp_path / "out", *settings) == 2
    assert message in capsys.readouterr().err


def test_a_corpus_without_a_readable_video(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "m.csv").write_text("path\na.mp4\nb.mp4\nc.mp4\n")
    (tmp_path / "a.mp4").write_text("no video")
    assert plan_of(tmp_path / "m.csv", None, tmp_path / "out") == 2
    assert (
        "--plan: expected a video that can be read among 3 of 3, got 2 that do not exist and 1 that"
        " hold no video (1 x not_a_video); are the paths right?" in capsys.readouterr().err
    )


def test_a_plan_is_for_its_configuration_and_videos_whatever_the_cluster(tmp_path: Path) -> None:

    from pipelines.run.record import configuration

    def job(config: Config, videos: int = 3) -> SimpleNamespace:
        return SimpleNamespace(
            store=Store(str(tmp_path)), config=config, manifest=SimpleNamespace(num_rows=videos)
        )

    config = recipe("demo")
    assert predicted(job(config)) == {}
    record = {"configuration": configuration(config), "counts": {"videos": 3}, "steps": {"fit": {}}}
    Store(str(tmp_path)).publish_json(PLAN, record)
    assert predicted(job(config)) == record
    elsewhere = config.with_settings(["plan.num_cpus=8", "cluster.num_decoders=3"])
    assert predicted(job(elsewhere)) == record
    assert predicted(job(config.with_settings(["fit.num_frames=7"]))) == {}
    assert predicted(job(config, videos=4)) == {}
    (tmp_path / PLAN).write_text("{half")
    assert predicted(job(config)) == {}, "a plan that cannot be read costs no report"


def test_a_manifest_that_is_not_looked_at_names_the_same_files(corpus: Path) -> None:
    names = sorted(str(p.relative_to(corpus)) for p in corpus.glob("*/*.avi"))
    rows = [*names, str(corpus / names[0]), names[0]]
    (corpus / "m.csv").write_text("path\n" + "\n".join(rows) + "\n")
    looked = manifest.list_videos(str(corpus / "m.csv"))
    unseen = manifest.list_videos(str(corpus / "m.csv"), look=False)
    assert unseen.schema == looked.schema
    assert unseen.select(["path", "uri"]) == looked.select(["path", "uri"])
    assert set(unseen["size_bytes"].to_pylist()) == {0}


def test_jobs_of_one_step_are_not_planned(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    inputs = ["--videos", str(corpus), "--labels", str(corpus / "labels.csv")]
    assert finetune.main(["--plan", *inputs, "--out", str(tmp_path / "out")]) == 2
    assert "--plan: expected a job whose steps can be planned" in capsys.readouterr().err
