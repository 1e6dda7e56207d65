"""Named runs: each recipe is a function that returns the one frozen configuration."""

from collections.abc import Callable

from encoders.settings import FV_VAE_PRESETS, GmmFvSettings, VladSettings
from pipelines.config import (
    Classify,
    Config,
    ConfigError,
    Describe,
    Encode,
    Evaluate,
    Fit,
    Sampling,
    Split,
)


def fcvid() -> Config:
    """FCVID: one frame every 3 s, 256 x 256, 224 crop; given split; mAP over classes (VU 5.4.1)."""
    return Config(
        recipe="fcvid",
        sampling=Sampling(policy="interval", interval_s=3.0),
        split=Split(kind="given"),
        fit=Fit(num_frames=50_000),
        encode=Encode(dtype="float16"),
    )


def ucf101() -> Config:
    """UCF101: 25 frames spread over the clip, given split, accuracy (DQ 5.2)."""
    return Config(
        recipe="ucf101",
        sampling=Sampling(policy="uniform", num_frames=25),
        split=Split(kind="given"),
        fit=Fit(num_frames=50_000),
    )


def activitynet() -> Config:
    """ActivityNet: 25 frames, ResNet-152 res5c, given split; top-1, top-3 and mAP (DQ 5.2, 5.3)."""
    return Config(
        recipe="activitynet",
        sampling=Sampling(policy="uniform", num_frames=25),
        describe=Describe(backbone="resnet152", nodes=("res5c",)),
        split=Split(kind="given"),
        fit=Fit(num_frames=50_000),
        encode=Encode(dtype="float16"),
        evaluate=Evaluate(top_k=3),
    )


def demo() -> Config:
    """Some hundred short videos on a small machine: SqueezeNet, small codebooks, grouped folds."""
    return Config(
        recipe="demo",
        sampling=Sampling(policy="uniform", num_frames=8),
        describe=Describe(backbone="squeezenet1_0", nodes=("features.12",)),
        fit=Fit(num_frames=1000),
        vlad=VladSettings(num_centroids=32),
        gmm_fv=GmmFvSettings(num_components=32, max_iterations=30),
        fv_vae=FV_VAE_PRESETS["small"],
        classify=Classify(c=100.0),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "fcvid": fcvid,
    "ucf101": ucf101,
    "activitynet": activitynet,
    "demo": demo,
}


def recipe(name: str) -> Config:
    """The configuration of a named recipe.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"--recipe: expected one of {sorted(RECIPES)}, got {name!r}")
    return RECIPES[name]()
