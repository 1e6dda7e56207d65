"""Networks that cannot be trained are refused before anything is decoded."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pyarrow as pa
import pytest

from pipelines import prepare
from pipelines.errors import ConfigError
from pipelines.networks.train import Task, targets
from pipelines.run.job import Job
from pipelines.settings.config import Config
from tests.pipelines.run.examples import example


def job(root: str, *settings: str) -> Job:
    backbone = ("describe.backbone=squeezenet1_0", "describe.nodes=features.12")
    made = example(root, *backbone, "network.crop_px=64", *settings)
    loaded = SimpleNamespace(file="weights/w", identity="w", description="w", load=lambda: b"")
    made.__dict__["weights"] = loaded
    return made


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.node=features.99", "network.networks: tsn: .* got 'features.99'"),
        ("tdn.layers=input,classifier.1", "nodes of squeezenet1_0 before features.12, got classif"),
        ("network.networks=tdn@layers=input/features.12", "before features.12, got features.12"),
        ("tsn.start=nowhere", "start: expected the folder of a trained .* nowhere without classif"),
        ("network.num_workers=9", "network.num_workers: expected at most the 2 training videos"),
    ],
)
def test_what_cannot_be_made_is_named(tmp_path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare._check_networks(job(str(tmp_path), setting))


def test_what_can_be_made_passes(tmp_path) -> None:
    prepare._check_networks(job(str(tmp_path), "tdn.layers=input,stages"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.networks=tdm", "did you mean tdn"),
        ("network.networks=tdn@layer=input", "did you mean layers"),
        ("network.networks=tdn@layers=stages", "input, then nodes"),
        ("tdn.num_steps=5", "2 numbers, one for each phase"),
        ("network.side_px=100", "at least network.crop_px = 224"),
        ("tsn.dropout=1", "0 <= x < 1"),
        ("network.frames=65", "1 to 64"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().with_settings([setting])


def test_a_network_has_folders_of_its_own_for_each_fold_and_stream(tmp_path) -> None:
    made = example(str(tmp_path), "network.streams=rgb,flow")
    folders = [network.folder for network in made.networks]
    assert len(set(folders)) == 2 * 2 * 2
    assert made.current("networks") == folders
    other = example(str(tmp_path), "network.streams=rgb,flow", "tdn.flow_dropout=0.5")
    changed = {n.folder for n in other.networks} ^ {n.folder for n in made.networks}
    assert {name.split("/")[1] for name in changed} == {"tdn-flow"}
    assert example(str(tmp_path), "network.networks=").networks == []


def test_one_width_is_that_of_all_networks_that_have_one(tmp_path) -> None:
    def folders(*settings: str) -> list[str]:
        names = "network.networks=actionflownet,tsn,actionflownet@frames=2:width=8"
        return [n.folder for n in example(str(tmp_path), names, *settings).networks]

    assert folders("network.width=16") == folders("actionflownet.width=16") != folders()
    # A variant's own is its own.
    assert set(folders("network.width=16")) & set(folders()) >= set(folders()[2:4])


def test_a_network_of_flow_that_starts_from_pictures_depends_on_theirs(tmp_path) -> None:
    def folders(*settings: str) -> dict[str, list[str]]:
        made = example(str(tmp_path), "network.streams=rgb,flow", "network.networks=tsn", *settings)
        return {s: [n.folder for n in made.networks if n.stream == s] for s in ("rgb", "flow")}

    own, of_rgb, faster = (
        folders(*settings)
        for settings in (
            ("tsn.flow_learning_rate=0.1",),
            ("tsn.flow_learning_rate=0.1", "tsn.flow_start=rgb"),
            ("tsn.flow_learning_rate=0.1", "tsn.flow_start=rgb", "tsn.learning_rate=0.5"),
        )
    )
    assert own["rgb"] == of_rgb["rgb"] != faster["rgb"]
    assert len({tuple(f["flow"]) for f in (own, of_rgb, faster)}) == 3


def test_targets_are_in_the_order_of_the_classes() -> None:
    task = SimpleNamespace(
        labels={"u": ["c"], "v": ["a", "b"], "w": []}, ignored={"w": ["b", "none"], "u": ["a"]}
    )
    found = targets(["a", "b", "c"], cast(Task, task), ["u", "v", "w"])
    # -1: the video does not count for the class.
    assert found.tolist() == [[-1, 0, 1], [1, 1, 0], [0, -1, 0]]


def test_classes_that_a_video_does_not_count_for_change_networks_and_codebooks(tmp_path) -> None:
    def folders(job: Job) -> dict[str, list[str]]:
        bases = ("fv_vae", "vlad")
        return {base: [b.folder for b in job.fitted if b.base == base] for base in bases}

    made = example(str(tmp_path), "encode.encoders=fv_vae,vlad")
    networks = [network.folder for network in made.networks]
    (video, *_) = made.training_videos(made.folds[0])
    manifest = made.manifest
    for names, is_same in (([], True), (["b"], False)):
        own = [names if v == video else [] for v in manifest["video_id"].to_pylist()]
        column = pa.array(own, pa.list_(pa.string()))
        other = replace(made, manifest=manifest.append_column("ignored", column))
        assert (networks == [network.folder for network in other.networks]) == is_same
        assert folders(other)["vlad"] == folders(made)["vlad"]
        assert (folders(other)["fv_vae"] == folders(made)["fv_vae"]) == is_same
