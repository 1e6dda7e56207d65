"""Digests name the folders of a run: those recorded here were made by commit 8e83f35, and runs of
then still resume."""

import contextlib
import dataclasses
import json
import re
import typing
from types import SimpleNamespace

import pyarrow as pa
import pytest

from encoders.descriptors.streams import Stream
from encoders.fields import Changes, changes_of
from encoders.networks.registry import NETWORKS
from pipelines.prepare import as_sampled_before
from pipelines.run.job import Job
from pipelines.run.record import configuration
from pipelines.settings.config import Config, config_from_json, digest
from pipelines.settings.recipes import RECIPES, recipe
from pipelines.settings.sections import Fit
from pipelines.storage.store import Store

# These are newer: of whole configurations, which name no folder, but say whether a plan is of this
# run. The default of evaluate.fusions lost a rule; decode.accept_old_codecs,
# manifest.stretches, classify.final and classify.keep_folds came; fit.num_frames follows the
# corpus.
CONFIGURATIONS = {
    "auto": "aaeb22bc14f3",
    "fcvid": "506b25d79769",
    "ucf101": "adddde781ed0",
    "activitynet": "ca3d382cffe9",
    "weizmann": "8bb1cad57a3e",
    "actions": "2a12fbdd6da8",
    "modern": "8c6c457fac32",
    "compare_encoders": "a808e59b9c86",
    "demo": "37cc3187b576",
    "tsn": "b0a952955c3e",
    "tdn": "8f0e72ab43e9",
    "hmdb51": "652791cf34ba",
    "act": "18da53ccbe33",
    "actionflownet": "19aaa5b8e0de",
    "sports1m": "7e92a0acbb9e",
    "cub": "abb868daf3b0",
    "voc2007": "eabd8875d458",
    "indoor67": "2f9fccd96a67",
    "flowers102": "8035c96e807d",
    "holidays": "d12f9e15e370",
    "oxford": "a41adb390d9b",
    "paris": "c8851194dd58",
    "plan": "37cc3187b576",
    "set": "e04b0fe6f8c3",
}
FOLDERS = {
    "videos": "videos/67757cfb31c6",
    "descriptors": "descriptors/64bd80151c34",
    "samples": "6cf6e0f6ef02",
    "codebooks": "1f89f1e0c61f",
    "encodings": "d7cf5256eeba",
    "scores": "cdf15e108041",
    "metrics": "metrics/0fe6261de865",
}
SETTINGS = (
    "encode.encoders=ave,ga,concat,vlad@num_centroids=64,vlad@levels=1:compress.kind=pca,"
    "gmm_fv,fv_vae,fv_vae@lambda3=0:early_stopping_steps=50,bilinear@temporal_pyramid=1/2",
    "describe.batch_frames=7",
    "fit.num_frames=20000",
    "classify.fusions=kernel_sum",
)
STREAMS = [
    Stream("pool5_appearance", "pool5", "appearance", 50, 20),
    Stream("pool5_positions", "pool5", "positions", 49, 20),
    Stream("fc7_global", "fc7", "global", 1, 20),
]


def job(config: Config) -> Job:
    names = [f"v{n}" for n in range(6)]
    columns = {
        "video_id": names,
        "uri": names,
        "source": names,
        "labels": [["ab"[n % 2]] for n in range(6)],
        "group": names,
        "fold": pa.array([n % 2 for n in range(6)], pa.int32()),
    }
    weights = SimpleNamespace(identity="w", description="w", file="weights/w.json")
    described = {stream.name: stream for stream in STREAMS}
    return Job(Store("nowhere"), config, pa.table(columns), "given", 2, weights, described)


def folders(one: Job) -> dict[str, str]:
    """A digest of the folders of each table."""
    return {
        "videos": one.videos,
        "descriptors": one.descriptors,
        "samples": digest([one.sample(stream) for stream in one.streams]),
        "codebooks": digest([book.folder for book in one.codebooks]),
        "encodings": digest([one.encodings(book) for book in one.codebooks]),
        "scores": digest([one.scores(*pair) for pair in one.scored()]),
        "metrics": one.metrics,
    }


def configurations() -> dict[str, str]:
    return {
        **{name: digest(recipe(name)) for name in RECIPES},
        "plan": configuration(recipe("demo")),
        "set": digest(Config().with_settings([*SETTINGS, "fv_vae=released", "split.kind=random"])),
    }


VECTORS = ("encodings", "scores", "metrics")
"""What Changes.VECTORS may change."""

BASE = Config().with_settings(
    [
        *SETTINGS[:1],
        *(f"{name}.pca_components=4" for name in ("vlad", "gmm_fv", "fv_vae", "bilinear")),
        *("compress.kind=pca", "cluster.max_cpus=4", "plan.num_cpus=4", "picture.box=crop"),
        *(f"network.networks={','.join(NETWORKS)}", "network.streams=rgb,flow"),
        # Of two frames, which have every setting.
        "actionflownet.frames=2",
    ]
)
"""With which each field may have another value."""

FIELDS = [
    pytest.param(section, field, id=f"{section}.{field.name}")
    for section in BASE.sections()
    if section != "finetune"
    for field in dataclasses.fields(getattr(BASE, section))
    if changes_of(field) in (Changes.RESULTS, Changes.VECTORS, Changes.NOTHING)
]


def other(section: str, field: dataclasses.Field) -> Config:
    """The configuration with another value of a field."""
    record = getattr(BASE, section)
    now, hint = getattr(record, field.name), typing.get_type_hints(type(record))[field.name]
    words = re.findall(r"'([a-z0-9_]+)'", str(hint))
    tried = [*words, not now] if isinstance(now, bool) else list(words)
    if isinstance(now, int | float) and not isinstance(now, bool):
        tried += [now + 1, now + 100, now / 2, now / 4, 0.9]
    if isinstance(now, str):
        tried += [f"{now}x"]
    if isinstance(now, tuple) and all(isinstance(part, int) for part in now):
        # As many as before: some have one for each phase.
        tried += [tuple(part + 1 for part in now), (1, 2, 3)]
    for value in (
        *tried,
        (1,),
        (1, 2),
        (7.0,),
        (7.0, 7.0, 7.0, 7.0),
        ("given",),
        ("appearance",),
        ("input",),
        "tensorboard:here",
    ):
        # As (1.0,) is (1,).
        if value != now and json.dumps(value) != json.dumps(now):
            with contextlib.suppress(ValueError):
                config = BASE.with_values({section: {field.name: value}})
                if getattr(config, section) != record:
                    return config
    raise AssertionError(f"no other value of {section}.{field.name} was accepted")


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_a_field_says_itself_whether_it_changes_results(
    section: str, field: dataclasses.Field
) -> None:
    before, after = folders(job(BASE)), folders(job(other(section, field)))
    changed = {name for name in before if before[name] != after[name]}
    if changes_of(field) == Changes.NOTHING:
        assert not changed
    elif changes_of(field) == Changes.VECTORS:
        assert changed == {*VECTORS}
    else:
        assert changed


def test_digests_of_configurations_are_those_of_before() -> None:
    assert configurations() == CONFIGURATIONS


def test_sections_of_networks_say_nothing_without_networks() -> None:
    plain = Config()
    changed = plain.with_settings(["network.frames=5", "tdn.segments=2"])
    assert digest(changed) == digest(plain)
    assert plain.to_json().keys().isdisjoint({"network", "tsn", "tdn"})
    asked = changed.with_settings(["network.networks=tdn"])
    assert asked.to_json()["tdn"]["segments"] == 2
    assert "tsn" not in asked.to_json()
    assert config_from_json(asked.to_json()) == asked


def test_folders_are_those_of_before() -> None:
    assert folders(job(Config().with_settings(list(SETTINGS)))) == FOLDERS


def test_a_sample_of_before_stays_where_a_folder_has_one(tmp_path) -> None:
    """fit.num_frames was 20,000 by default: what a run of then made is complete today."""
    before = dataclasses.replace(
        job(Config().with_settings(["fit.num_frames=20000"])), store=Store(str(tmp_path))
    )
    now = dataclasses.replace(job(Config()), store=before.store)
    assert as_sampled_before(now) is now
    stream = before.streams[0]
    assert now.sample(stream) != before.sample(stream)
    before.store.publish_json("run.json", {})
    assert as_sampled_before(now) is now
    before.store.publish_json(f"{before.sample(stream)}/_done.json", {})
    assert folders(as_sampled_before(now)) == folders(before)
    assert as_sampled_before(now).config == before.config


def test_the_sample_follows_the_corpus_within_its_bounds() -> None:
    fit = Config().fit
    assert fit.frames_for(300, 50) == 20_000
    assert fit.frames_for(45_000, 50) == 45_000
    assert fit.frames_for(1_000_000, 50) == 2**23 // 50
    assert fit.frames_for(10, 4410) == 2**23 // 4410
    assert Fit(num_frames=7).frames_for(45_000, 50) == 7
