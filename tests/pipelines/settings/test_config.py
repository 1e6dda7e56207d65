import dataclasses
import json
import math
import re
import typing

import pytest

from encoders.encodings.pooling import Average
from encoders.registry import ENCODERS
from encoders.settings import FV_VAE_PRESETS, EncoderSettings
from pipelines.errors import ConfigError
from pipelines.settings.config import Config, digest
from pipelines.settings.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_return_their_own_frozen_configuration(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.recipe = "other"  # type: ignore[misc]


def test_fcvid_is_the_papers_protocol() -> None:
    config = recipe("fcvid")
    assert (config.sampling.policy, config.sampling.interval_s) == ("interval", 3.0)
    assert (config.picture.resize_px, config.picture.crop_px) == (256, 224)
    assert config.classify.c == (100,)


@pytest.mark.parametrize(
    ("setting", "section", "field", "value"),
    [
        ("sampling.num_frames=7", "sampling", "num_frames", 7),
        ("sampling.interval_s=0.5", "sampling", "interval_s", 0.5),
        ("vlad.intra=true", "vlad", "intra", True),
        ("describe.nodes=pool5,conv5_4", "describe", "nodes", ("pool5", "conv5_4")),
        ("describe.spp_levels=2,1", "describe", "spp_levels", (2, 1)),
        ("fv_vae.hidden=", "fv_vae", "hidden", ()),
        ("fv_vae.hidden=none", "fv_vae", "hidden", None),
        ("fv_vae.hidden=128,64", "fv_vae", "hidden", (128, 64)),
        ("classify.c=100", "classify", "c", (100.0,)),
        ("classify.c=1,10,100", "classify", "c", (1.0, 10.0, 100.0)),
        ("split.kind=leave_one_group_out", "split", "kind", "leave_one_group_out"),
    ],
)
def test_any_field_can_be_set(setting: str, section: str, field: str, value: object) -> None:
    config = Config().with_settings([setting])
    assert getattr(getattr(config, section), field) == value


def test_a_preset_is_a_section_that_later_settings_change() -> None:
    config = Config().with_settings(["fv_vae=released", "fv_vae.lambda3=7"])
    assert config.fv_vae == dataclasses.replace(FV_VAE_PRESETS["released"], lambda3=7)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense", "expected section.field=value"),
        ("sampler.num_frames=3", "no section 'sampler'; did you mean sampling"),
        ("sampling.frames=3", "no field 'frames'; did you mean"),
        ("sampling.num_frames=many", "expected a whole number, got 'many'"),
        ("sampling.num_frames=0", "expected at least 1, got 0"),
        ("sampling.keyframe_tolerance_s=-1", "expected at least 0, got -1.0"),
        ("vlad.intra=yes", "expected true or false"),
        ("split.kind=kfold", "expected one of"),
        ("fv_vae=large", "expected one of"),
        ("fv_vae.dropout=1", "fv_vae.dropout: expected 0 <= x < 1"),
        ("picture.resize_px=100", "at least picture.crop_px = 224"),
        ("describe.streams=appearance,appearance", "each once"),
        ("describe.streams=motion", "expected one of ['appearance', 'difference', 'positions', "),
        ("describe.streams=difference@gap", "expected kind@field=value:field=value"),
        ("describe.streams=difference@gap=1:gap=2", "each field once"),
        ("describe.streams=difference@gap=x", "expected a whole number, got 'x'"),
        ("describe.streams=difference@gap=-1", "gap: expected 1 to 10000 source frames, got -1"),
        (
            "describe.streams=difference@gap_s=nan",
            "difference.gap_s: expected a finite number, got 'nan'",
        ),
        ("describe.streams=difference@gap_s=0.0002", "in whole milliseconds, got 0.0002"),
        ("describe.streams=difference@gap=1:gap_s=1", "gap_s: expected no gap in source frames"),
        ("describe.streams=difference@gaps=3", "no field 'gaps'; did you mean"),
        ("describe.streams=appearance@gap=3", "no field 'gap'; there are nodes, scaling"),
        ("describe.streams=appearance@nodes=a/a", "nodes: expected each once"),
        ("describe.streams=appearance@scaling=l1", "expected one of ['per_position'"),
        ("describe.streams=rank@frames=1", "frames: expected 2 to 64, got 1"),
        ("picture.views=five", "expected one of ['centre', 'mirror', 'ten', 'fifty']"),
        ("run.max_failed_fraction=2", "0 to 1"),
        ("classify.c=1,0", "classify.c: expected more than 0, got 0.0"),
        ("classify.c=", "classify.c: expected one or more values, each once, got ()"),
        ("classify.c=1,1", "classify.c: expected one or more values, each once"),
        ("classify.tolerance=1", "classify.tolerance: expected 1e-12 to 0.1"),
        ("classify.form=dual", "expected one of"),
        (
            "encode.encoders=vlad@k=3",
            (
                "no field 'k'; there are scales, sides, regions, levels, per_level, pca_components,"
                " pca_whiten, position_weight, num_centroids, intra"
            ),
        ),
        (
            "encode.encoders=ave@levels=1/4",
            "ave.levels: expected some of describe.spp_levels (6, 3, 2, 1), got (1, 4)",
        ),
        (
            "encode.encoders=ave@pca_components=4",
            "no field 'pca_components'; there are scales, sides, regions, levels, per_level",
        ),
        ("encode.encoders=vlad@num_centroids", "expected encoder@field=value:field=value"),
        ("encode.encoders=vlad@num_centroids=0", "vlad.num_centroids: expected at least 1"),
        ("encode.encoders=ga@num_centroids=3", "ga: no field 'num_centroids'; there are none"),
        ("encode.encoders=vlad@fit.num_workers=3", "expected encoder@field=value"),
        ("encode.encoders=vlat", "encode.encoders: expected some of ['ave', 'bilinear', "),
        ("encode.encoders=vlat@k=3", "got 'vlat'; did you mean vlad?"),
        ("encode.temporal_pyramid=", "encode.temporal_pyramid: expected one or more numbers"),
        ("encode.temporal_pyramid=1,1", "each once and at least 1, got (1, 1)"),
        ("encode.encoders=ave@temporal_pyramid=0", "temporal_pyramid: expected at least 1, got 0"),
        ("encode.encoders=vlad@encode.temporal_pyramid=1/2", "expected encoder@field=value"),
        ("ave.levels=1,1", "ave.levels: expected each once, got (1, 1)"),
        ("ave.levels=0", "ave.levels: expected at least 1, got 0"),
        ("bilinear.num_features=0", "bilinear.num_features: expected at least 1, got 0"),
        ("bilinear.pca_components=-1", "bilinear.pca_components: expected at least 0, got -1"),
        ("bilinear.pca_whiten=true", "bilinear.pca_whiten: expected false where pca_components"),
        ("compress.num_features=0", "compress.num_features: expected at least 1, got 0"),
        (
            "encode.encoders=vlad@compress.kind=random_maclaurin:compress.whiten=true",
            "compress.whiten: expected false where compress.kind is random_maclaurin, got True",
        ),
        ("fv_vae.gradient_power=2", "fv_vae.gradient_power: expected 0 to 1, got 2.0"),
        ("vlad.position_weight=-1", "vlad.position_weight: expected at least 0"),
        ("fv_vae.early_stopping_steps=-1", "early_stopping_steps: expected 0, or at least 25, the"),
        ("fv_vae.early_stopping_steps=24", "early_stopping_steps: expected 0, or at least 25, the"),
    ],
)
def test_wrong_settings_say_what_was_expected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config().with_settings([setting])
    assert message in str(error.value)
    assert str(error.value).startswith(f"--set {setting}")


NUMBERS = [
    (section, name)
    for section, record in vars(Config()).items()
    if dataclasses.is_dataclass(record)
    for name, hint in typing.get_type_hints(type(record)).items()
    if name in vars(record) and re.search("int|float", str(hint))
]
"""(section, field) of all that take a number, or several."""


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "-1", str(2**40), "9" * 400, "1e300"])
@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_a_number_that_cannot_work_is_refused(section: str, name: str, text: str) -> None:
    setting = f"{section}.{name}={text}"
    try:
        config = Config().with_settings([setting])
    except ConfigError as error:
        assert str(error).startswith(f"--set {setting}: ")  # noqa: PT017 (either is right)
        assert "expected " in str(error)  # noqa: PT017
        return
    assert text != "-1", "there is no setting for which it has a meaning"
    value = getattr(getattr(config, section), name)
    for number in value if isinstance(value, tuple) else (value,):
        assert math.isfinite(number)
        if isinstance(number, int):
            assert name.endswith("_bytes"), "no count is so large"
            assert number <= 2**50
        assert not name.endswith("_s")
    json.loads(json.dumps(config.to_json(), allow_nan=False))


def test_all_numbers_of_the_sections_are_looked_at() -> None:
    assert len(NUMBERS) > 70
    assert {("run", "seed"), ("fv_vae", "hidden"), ("evaluate", "stream_weights")} <= {*NUMBERS}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.seed=4294967296", "run.seed: expected 0 to 4294967295, got 4294967296"),
        ("run.seed=-1", "run.seed: expected 0 to 4294967295, got -1"),
        ("decode.timeout_s=inf", "decode.timeout_s: expected a finite number, got 'inf'"),
        ("evaluate.stream_weights=inf,1", "stream_weights: expected a finite number, got 'inf'"),
        ("sampling.num_frames=99999999999", "sampling.num_frames: expected at most 1000000, got"),
        ("sampling.interval_s=1e-12", "sampling.interval_s: expected at least 0.001, got 1e-12"),
        ("encode.encoders=vlad@position_weight=nan", "vlad.position_weight: expected"),
        ("encode.encoders=fv_vae@lambda1=inf", "fv_vae.lambda1: expected a finite number"),
        (
            "encode.encoders=vlad@compress.num_features=99999999999",
            "compress.num_features: expected at most 2147483647",
        ),
    ],
)
def test_numbers_out_of_range_say_what_was_expected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^--set " + re.escape(setting)) as error:
        Config().with_settings([setting])
    assert message in str(error.value)
    assert Config().with_settings(["run.seed=4294967295"]).run.seed == 2**32 - 1


def test_the_order_of_a_sections_settings_does_not_matter() -> None:
    small = ["picture.resize_px=72", "picture.crop_px=64"]
    assert Config().with_settings(small) == Config().with_settings(small[::-1])
    with pytest.raises(
        ConfigError, match=r"--set picture.resize_px=72: picture.resize_px: expected"
    ):
        Config().with_settings(small[:1])


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="activitynet"):
        recipe("imagenet")


def test_digest_tells_settings_apart_and_is_stable() -> None:
    config = Config()
    assert digest(config) == digest(Config())
    assert digest(config) != digest(config.with_settings(["vlad.num_centroids=3"]))


def test_a_variant_is_the_encoder_with_settings_of_its_own() -> None:
    config = Config().with_settings(
        ["fv_vae.lambda3=10", "encode.encoders=fv_vae@lambda3=0:hidden=8/4:compress.kind=pca,vlad"]
    )
    name, plain = config.encode.encoders
    variant = config.variant(name)
    assert (variant.base, variant.codebook) == ("fv_vae", "fv_vae@lambda3=0:hidden=8/4")
    assert (variant.settings.lambda3, variant.settings.hidden) == (0, (8, 4))
    assert not variant.uses_labels
    assert config.variant("fv_vae").uses_labels
    assert variant.settings.num_steps == config.fv_vae.num_steps
    assert (variant.compress.kind, config.compress.kind) == ("pca", "none")
    assert config.variant(plain).settings == config.vlad
    assert config.variant("ga").settings == EncoderSettings()


def test_an_encoder_of_ones_own_is_known_by_its_line_in_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ENCODERS, "toy", Average)
    config = Config().with_settings(["encode.encoders=toy,ave,toy@compress.kind=pca"])
    assert config.variant("toy").settings == EncoderSettings()
    assert (config.variant("toy").uses_labels, ENCODERS["toy"]) == (False, Average)


def test_a_variant_may_have_a_normalisation_of_its_own() -> None:
    config = Config().with_settings(
        ["encode.encoders=ave@normalisation=signed_sqrt,ave,vlad", "encode.normalisation=l2"]
    )
    ways = [config.variant(name).normalisation for name in config.encode.encoders]
    assert ways == ["signed_sqrt", "l2", "l2"]
    with pytest.raises(ConfigError, match=r"signed_sqrt_l2.*got 'sqrt'"):
        config.with_settings(["encode.encoders=ave@normalisation=sqrt"])


def test_a_variant_may_have_places_levels_and_a_temporal_pyramid() -> None:
    names = (
        "fv_vae@position_weight=0.5:per_level=true,ave@temporal_pyramid=1/2:compress.kind=pca,ga"
    )
    config = Config().with_settings([f"encode.encoders={names}", "encode.temporal_pyramid=1,3"])
    places, cut, plain = (config.variant(name) for name in config.encode.encoders)
    assert (places.settings.position_weight, places.settings.per_level) == (0.5, True)
    assert places.settings.is_spatial
    assert not config.fv_vae.is_spatial
    assert (cut.temporal_pyramid, cut.codebook) == ((1, 2), "ave@temporal_pyramid=1/2")
    assert places.temporal_pyramid == plain.temporal_pyramid == (1, 3)
