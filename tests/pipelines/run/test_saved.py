"""A run read back from its run.json: the configuration it had, and which encodings it has."""

import json
from pathlib import Path

import pytest

from encoders.settings import FV_VAE_PRESETS
from pipelines.describe.stage import described_streams
from pipelines.doctor.record import Record
from pipelines.errors import ConfigError
from pipelines.ledger import marks
from pipelines.run.saved import SavedRun
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config, config_from_json
from pipelines.settings.recipes import RECIPES, recipe
from pipelines.storage.store import Store
from tests.pipelines.doctor import run as doctor_run


@pytest.fixture
def run(tmp_path: Path) -> SavedRun:
    doctor_run.make(tmp_path / "run")
    return SavedRun.open(str(tmp_path / "run"))


def read_back(config: Config) -> Config:
    return config_from_json(json.loads(json.dumps(config.to_json())))


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_comes_back_as_it_was(name: str) -> None:
    config = recipe(name)
    assert read_back(config) == config
    odd = config.with_settings(
        [
            *("fv_vae=released", "fv_vae.hidden=", "gmm_fv.tolerance=1e-05"),
            *("evaluate.stream_weights=0.1,3", "describe.weights=/w=1/a.pth"),
            "encode.encoders=vlad@pca_components=2:compress.kind=pca,fv_vae@hidden=8/4",
        ]
    )
    assert read_back(odd) == odd != config
    assert read_back(config.with_settings(["fv_vae.hidden=none"])).fv_vae.hidden is None


def test_what_older_code_did_not_write_has_its_default() -> None:
    plain = recipe("demo").to_json()
    del plain["compress"], plain["fv_vae"]["damping"]
    assert config_from_json(plain) == recipe("demo")
    assert FV_VAE_PRESETS["paper"].damping == recipe("demo").fv_vae.damping


def test_pairs_are_in_the_order_asked_for_and_the_best_comes_first(run: SavedRun) -> None:
    pairs = [(name, stream) for name in ("ave", "fv_vae") for stream in doctor_run.STREAMS]
    assert list(run.encodings) == pairs
    folder = doctor_run.TABLES["encodings/fv_vae-pool5_appearance/fold-0"]
    encodings = run.encodings["fv_vae", "pool5_appearance"]
    assert (encodings.fold, encodings.folder) == (0, folder)
    assert run.encodings["ave", "pool5_difference"].fold == -1
    table = run.store.read_table(run.tables["metrics"]).to_pylist()
    value = {
        (row["encoder"], row["stream"]): row["value"]
        for row in table
        if (row["split"], row["metric"]) == ("all", "mAP")
    }
    assert sorted(run.best_first()) == pairs
    assert [value[pair] for pair in run.best_first()] == sorted(
        (value[pair] for pair in pairs), reverse=True
    )
    run.store.delete_folder(run.tables["metrics"])
    assert run.best_first() == pairs
    assert all(run.is_encoded(encodings) for encodings in run.encodings.values())
    marks.remove(run.store, f"{folder}/_done-{doctor_run.INDEXED}.json")
    assert not run.is_encoded(encodings)


@pytest.mark.parametrize("fold", ["", "/fold-0"])
def test_encodings_of_every_kind_of_stream_are_found(tmp_path: Path, fold: str) -> None:
    """Names of streams may end in digits, and names of encoders have a hyphen in them."""
    encoders = ["ave", "gmm_fv@tolerance=1e-05:num_components=2"]
    config = Config().with_settings(
        [
            *("describe.backbone=squeezenet1_0", "describe.nodes=features.12,ga"),
            (
                "describe.streams=appearance,appearance@scaling=whole_map,difference@gap=3,difference@gap_s=0.25,"
                "rank@frames=5,flow@method=tvl1:stack=2,flow@bound_px=7.5"
            ),
            f"encode.encoders={','.join(encoders)}",
        ]
    )
    streams = sorted(described_streams(config))
    assert {"features_12_difference_gap3", "features_12_rank_x5", "ga_global"} < set(streams)
    pairs = [(encoder, stream) for encoder in encoders for stream in streams]
    tables = {f"encodings/{e}-{s}{fold}": f"{e} {s}" for e, s in pairs}
    found = SavedRun(Store(str(tmp_path)), config, tables).encodings
    assert list(found) == pairs
    for (encoder, stream), one in found.items():
        assert (one.encoder, one.stream, one.folder) == (encoder, stream, f"{encoder} {stream}")
        assert one.fold == (0 if fold else -1)


def test_variants_that_differ_for_the_classifier_alone_share_encodings(run: SavedRun) -> None:
    record = json.loads(run.store.read("run.json"))
    record["config"]["encode"]["encoders"] = ["ave@compress.kind=pca", "ave"]
    run.store.publish_json("run.json", record)
    again = SavedRun.open(run.store.root).encodings
    assert len(again) == 4
    assert len(set(again.values())) == 2


def test_codebook_and_weights_are_those_of_the_footers(run: SavedRun) -> None:
    book = run.codebook(("fv_vae", "pool5_difference"))
    assert book.digest == doctor_run.book_digest("fv_vae", "pool5_difference", 0)
    assert run.store.exists(f"{book.folder}/codebook.safetensors")
    assert book.settings == run.config.fv_vae
    assert run.weights.startswith("weights/")
    run.store.delete(f"{book.folder}/codebook.safetensors")
    with pytest.raises(ConfigError, match=r"expected the codebook of fv_vae on pool5_difference"):
        run.codebook(("fv_vae", "pool5_difference"))
    for name in run.store.files(run.tables["descriptors"]):
        run.store.delete(name)
    with pytest.raises(ConfigError, match=r"video_fisher.weights in their footer, found none"):
        _ = run.weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected a JSON object, got"),
        (b"[]", "expected a JSON object"),
        (b'{"config": {}, "tables": {}, "steps": {}}', "this version writes, got 'recipe'"),
        (
            b'{"config": {"recipe": "x", "sampling": {"speed": 1}}, "tables": {}, "steps": {}}',
            "no field 'speed'",
        ),
        (
            b'{"config": {"recipe": "x", "fit": {"num_frames": -1}}, "tables": {}, "steps": {}}',
            "at least 0, got -1",
        ),
        (
            b'{"config": {"recipe": "x", "fit": 3}, "tables": {}, "steps": {}}',
            "this version writes",
        ),
    ],
)
def test_a_record_of_other_code_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    Store(str(tmp_path)).publish("run.json", content)
    with pytest.raises(ConfigError, match=message):
        SavedRun.open(str(tmp_path))


def paths(value: object, depth: int = 3) -> list[list]:
    """The places in a JSON value, each as the keys that lead there; of a list the first entry."""
    if isinstance(value, list):
        value = dict(enumerate(value[:1]))
    if not isinstance(value, dict) or not depth:
        return []
    return [[key, *rest] for key in value for rest in ([], *paths(value[key], depth - 1))]


def test_whatever_is_in_run_json_is_a_message(tmp_path: Path) -> None:
    """Each place of a real one, replaced: the doctor and a reader say so or can do without it."""
    doctor_run.make(tmp_path / "run")
    store, file = Store(str(tmp_path / "run")), tmp_path / "run" / "run.json"
    whole, said = file.read_text(), 0
    for keys in paths(json.loads(whole)):
        if keys[0] == "config":
            continue
        for odd in (None, -1, "x", [], {}, [1], {"x": 1}):
            record = json.loads(whole)
            place = record
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = odd
            file.write_text(json.dumps(record))
            read = Record(store)
            for step in STEPS:
                assert isinstance(read.marks(step), list)
                assert isinstance(read.is_recorded(step), bool)
            assert isinstance(read.scored, list)
            try:
                SavedRun.open(store.root)
            except ConfigError as error:
                said += 1
                assert "run.json" in str(error)  # noqa: PT017
    assert said > 50
    for text in ("", "[]", "{", "null", "3", "\x00"):
        file.write_text(text)
        assert Record(store).error
        with pytest.raises(ConfigError, match=r"run\.json: expected a JSON object"):
            SavedRun.open(store.root)
