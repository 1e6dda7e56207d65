"""Named runs: each recipe is a function that returns the one frozen configuration."""

import dataclasses
from collections.abc import Callable

from encoders.networks.settings import (
    LstmSettings,
    PoolingSettings,
    TdnSettings,
    TimeConvSettings,
    TsnSettings,
    WindowSettings,
)
from encoders.settings import FV_VAE_PRESETS, GmmFvSettings, VladSettings
from pipelines.errors import ConfigError, near
from pipelines.settings.config import AUTO_ENCODERS, Config
from pipelines.settings.image_recipes import IMAGE_RECIPES
from pipelines.settings.sections import (
    Classify,
    Describe,
    Encode,
    Evaluate,
    Fit,
    Network,
    Picture,
    Sampling,
    Split,
)

_ENCODERS_FOR: tuple[tuple[float, tuple[str, ...]], ...] = (
    (300, ("vlad@num_centroids=32", "fv_vae")),
    (20_000, ("vlad", "fv_vae")),
    (float("inf"), ("fv_vae",)),
)
"""(most videos, encoders): small corpora do not fill large codebooks; of large ones each encoder
costs."""


_BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
"""Inception modules of GoogLeNet (VU Table 2.1)."""


def auto() -> Config:
    """Any corpus: 25 frames a video, SqueezeNet, encoders by its size, the split that the labels
    allow.
    """
    return dataclasses.replace(
        weizmann(),
        recipe="auto",
        split=Split(kind="auto"),
        encode=Encode(encoders=AUTO_ENCODERS),
    )


def sized(config: Config, num_videos: int) -> Config:
    """Return the configuration for a corpus of so many videos: with encoders instead of `auto`."""
    if config.encode.encoders != AUTO_ENCODERS:
        return config
    encoders = next(names for most, names in _ENCODERS_FOR if num_videos <= most)
    return dataclasses.replace(config, encode=dataclasses.replace(config.encode, encoders=encoders))


def fcvid() -> Config:
    """FCVID: one frame every 3 s, 256 x 256, 224 crop; given split; mAP over classes (VU 5.4.1)."""
    return Config(
        recipe="fcvid",
        sampling=Sampling(policy="interval", interval_s=3.0),
        split=Split(kind="given"),
        encode=Encode(dtype="float16"),
        classify=Classify(fusions=()),
    )


def ucf101() -> Config:
    """UCF101: 25 frames spread over the clip, given split, accuracy (DQ 5.2)."""
    return Config(
        recipe="ucf101",
        sampling=Sampling(policy="uniform", num_frames=25),
        split=Split(kind="given"),
        classify=Classify(fusions=()),
    )


def activitynet() -> Config:
    """ActivityNet: 25 frames, ResNet-152 res5c, given split; top-1, top-3 and mAP (DQ 5.2, 5.3)."""
    return Config(
        recipe="activitynet",
        sampling=Sampling(policy="uniform", num_frames=25),
        describe=Describe(backbone="resnet152", nodes=("res5c",)),
        split=Split(kind="given"),
        encode=Encode(dtype="float16"),
        evaluate=Evaluate(top_k=(3,)),
        classify=Classify(fusions=()),
    )


def weizmann() -> Config:
    """Dozens to hundreds of short clips in groups: 25 frames, SqueezeNet, small codebooks."""
    return Config(
        recipe="weizmann",
        sampling=Sampling(policy="uniform", num_frames=25),
        describe=Describe(backbone="squeezenet1_0", nodes=("features.12",)),
        split=Split(kind="leave_one_group_out"),
        fit=Fit(num_frames=2000),
        vlad=VladSettings(num_centroids=64, intra=True),
        gmm_fv=GmmFvSettings(num_components=32, max_iterations=30),
        fv_vae=FV_VAE_PRESETS["small"],
    )


def actions() -> Config:
    """Small sets of short clips that differ in how somebody moves: what docs/accuracy.md found
    best.

    Two kinds of motion, differences and optical flow, each at the last layer and at an early one
    (VU 5.3.2), beside appearance. Differences are parts of what there is to see, so that what does
    not move stays small. Whole pictures, for what happens at an edge, and their mirror images. AVE
    is of the maxima over whole maps, wherever they are. The result to take is FV-VAE's
    `late_weighted`: its five streams, with weights chosen on training videos. The other encoders
    are there to compare with, and `all` is every encoder on every stream. Needs the extra `flow`.
    """
    small = weizmann()
    early = "nodes=features.5:gap_s=0.08"
    motion = (
        "difference@gap_s=0.16:scaling=relative",
        f"difference@{early}:scaling=relative",
        "flow@gap_s=0.08:bound_px=10",
        f"flow@{early}:bound_px=10",
    )
    return dataclasses.replace(
        small,
        recipe="actions",
        picture=Picture(resize_px=224, views="mirror"),
        describe=dataclasses.replace(small.describe, streams=("appearance", *motion)),
        gmm_fv=GmmFvSettings(num_components=64, pca_components=128, max_iterations=30),
        encode=Encode(
            encoders=(
                "ave@levels=1:normalisation=l2",
                "vlad",
                "gmm_fv",
                "fv_vae@gradient_power=0.5:num_latents=255:num_steps=400:temporal_pyramid=1/2",
            )
        ),
        classify=Classify(fusions=("kernel_sum", "late_weighted")),
        # Not `chosen`, whose weights know scores of classifiers that the tested videos trained.
    )


def modern() -> Config:
    """Any corpus, with patch tokens of DINOv3 (small, of timm) in place of a network's maps.

    Other towers the same way: `describe.backbone=timm:vit_small_patch14_dinov2.lvd142m` at 518 px,
    `timm:vit_base_patch16_siglip_224.webli` or `timm:vit_base_patch16_clip_224.openai` at 224 px.
    """
    return dataclasses.replace(
        auto(),
        recipe="modern",
        picture=Picture(resize_px=256, crop_px=256),
        describe=Describe(
            backbone="timm:vit_small_patch16_dinov3.lvd1689m",
            nodes=("tokens",),
            weights="pretrained",
        ),
    )


def compare_encoders() -> Config:
    """The runs of DQ Table 2 on a small corpus: single frames, every encoding, FV-VAE with class
    loss.
    """
    small = weizmann()
    return dataclasses.replace(
        small,
        recipe="compare_encoders",
        describe=dataclasses.replace(
            small.describe, nodes=("features.12", "ga"), streams=("appearance", "positions")
        ),
        encode=Encode(
            encoders=(
                "ga",
                "concat",
                "ave",
                "gmm_fv",
                "vlad",
                "bilinear",
                "fv_vae@lambda3=0",
                "fv_vae",
            ),
        ),
        fv_vae=dataclasses.replace(small.fv_vae, lambda3=1000.0),
    )


def demo() -> Config:
    """A smaller `weizmann`: it must be done in minutes on two cores."""
    return dataclasses.replace(
        weizmann(),
        recipe="demo",
        sampling=Sampling(policy="uniform", num_frames=8),
        split=Split(kind="auto"),
        fit=Fit(num_frames=800),
        vlad=VladSettings(num_centroids=32, intra=True),
        gmm_fv=GmmFvSettings(num_components=16, max_iterations=15),
        fv_vae=dataclasses.replace(FV_VAE_PRESETS["small"], hidden=(256,), num_steps=250),
    )


def tsn() -> Config:
    """FCVID by a temporal segment network: ResNet-50, three snippets, 30,000 steps (VU 5.4.2)."""
    return dataclasses.replace(
        fcvid(),
        recipe="tsn",
        describe=Describe(backbone="resnet50", nodes=("res5c",), streams=("appearance",)),
        encode=Encode(encoders=("ave",), dtype="float16"),
        network=Network(networks=("tsn",)),
    )


def tdn() -> Config:
    """FCVID by a temporal difference network: as `tsn`, and 10,000 steps of all (VU 5.4.2)."""
    return dataclasses.replace(tsn(), recipe="tdn", network=Network(networks=("tdn",)))


def hmdb51() -> Config:
    """HMDB51 by TSN and TDN on pictures and optical flow (VU 5.4.2 and TSN's solver files).

    Splits have names: `split.name=split1`, and jobs.average_splits for all three. The second phase
    of the TDN is a third of the first, as on FCVID.
    """
    small = {
        "segments": 2,
        "learning_rate": 0.001,
        "rate_at": (2000, 4000),
        "decay": 5e-4,
        "bias_rate_factor": 2.0,
        "decay_biases": False,
        "clip_norm": 40.0,
        "dropout": 0.8,
        "batch_norm": "first",
        "crops": "corners",
        "colour_jitter": 0.4,
        "flow_learning_rate": 0.005,
        "flow_rate_at": (12_000, 18_000),
        "flow_dropout": 0.7,
        "flow_clip_norm": 20.0,
        "flow_first_rate_factor": 5.0,
    }
    return dataclasses.replace(
        ucf101(),
        recipe="hmdb51",
        describe=Describe(backbone="resnet50", nodes=("res5c",), streams=("appearance",)),
        encode=Encode(encoders=("ave",)),
        network=Network(networks=("tsn", "tdn"), streams=("rgb", "flow"), flow_method="tvl1"),
        tsn=TsnSettings(num_steps=(4500,), flow_num_steps=(20_000,), **small),
        tdn=TdnSettings(num_steps=(4500, 1500), flow_num_steps=(20_000, 6667), **small),
    )


def act() -> Config:
    """ACT's first task: as `hmdb51`, with three snippets (VU 5.4.2)."""
    hmdb = hmdb51()
    return dataclasses.replace(
        hmdb,
        recipe="act",
        tsn=dataclasses.replace(hmdb.tsn, segments=3),
        tdn=dataclasses.replace(hmdb.tdn, segments=3),
    )


def actionflownet() -> Config:
    """UCF101 by ActionFlowNet: 16 frames, flow first and then flow and classes (VU 4.4.2).

    The thesis's other rows are variants of it: `network.networks=actionflownet@frames=2`,
    `@learns=scratch` and so on (docs/networks.md). Eight runs of frames are kept of each video.
    """
    return dataclasses.replace(
        ucf101(),
        recipe="actionflownet",
        describe=Describe(backbone="resnet18", nodes=("layer4",), streams=("appearance",)),
        encode=Encode(encoders=("ave",)),
        network=Network(networks=("actionflownet",), frames=8),
    )


def sports1m() -> Config:
    """Sports-1M by networks on full-length video: AlexNet's maps of a frame a second of the first
    five minutes, clips of 1, 30 and 120 frames in turn (VU 3.3, 3.4.1).

    The paper gives no numbers of steps; an epoch here is 0.9 million training videos over 128.
    """
    pooling = PoolingSettings(rate_every=7000, num_steps=(35_000, 14_000, 14_000))
    windows = WindowSettings(rate_every=7000, num_steps=pooling.num_steps)
    return Config(
        recipe="sports1m",
        sampling=Sampling(policy="fps", fps=1.0, max_duration_s=300.0),
        split=Split(kind="given"),
        describe=Describe(
            backbone="alexnet",
            nodes=("pool5",),
            streams=("appearance", "positions@scaling=whole_map"),
        ),
        encode=Encode(encoders=("ave",), dtype="float16"),
        evaluate=Evaluate(top_k=(5,)),
        network=Network(
            networks=(
                *("conv_pooling", "late_pooling", "slow_pooling", "local_pooling"),
                *("time_conv", "lstm"),
            ),
            test_clips=8,
            over_time="shown",
        ),
        conv_pooling=pooling,
        late_pooling=pooling,
        slow_pooling=windows,
        local_pooling=windows,
        time_conv=TimeConvSettings(rate_every=7000, num_steps=pooling.num_steps),
        lstm=LstmSettings(rate_every=7000, num_steps=(63_000,)),
    )


def holidays() -> Config:
    """Retrieval on Holidays (VU 2.3): VLAD with 100 words and intra-normalisation on every position
    of GoogLeNet's layers, whole pictures at 224 px; `jobs.retrieve --preset holidays` measures.

    The paper's second scale is another run, with picture.resize_px=448 and picture.crop_px=448.
    """
    layers = ("pool1-norm1", "conv2-norm2", *(f"inception {b}" for b in _BLOCKS))
    return Config(
        recipe="holidays",
        sampling=Sampling(policy="uniform", num_frames=1),
        picture=Picture(resize_px=224),
        describe=Describe(
            backbone="googlenet", nodes=layers, streams=("dense",), scaling="per_position"
        ),
        # About a million rows of a layer of 28 x 28 positions; the paper does not print its number.
        fit=Fit(num_frames=1300),
        vlad=VladSettings(num_centroids=100, intra=True),
        encode=Encode(encoders=("vlad",), dtype="float16"),
        classify=Classify(fusions=()),
    )


def oxford() -> Config:
    """Retrieval on Oxford: as `holidays`, with `jobs.retrieve --preset oxford --truth FOLDER`."""
    return dataclasses.replace(holidays(), recipe="oxford")


def paris() -> Config:
    """Retrieval on Paris: as `holidays`, with `jobs.retrieve --preset paris --truth FOLDER`."""
    return dataclasses.replace(holidays(), recipe="paris")


RECIPES: dict[str, Callable[[], Config]] = {
    "auto": auto,
    "fcvid": fcvid,
    "ucf101": ucf101,
    "activitynet": activitynet,
    "weizmann": weizmann,
    "actions": actions,
    "modern": modern,
    "compare_encoders": compare_encoders,
    "demo": demo,
    "tsn": tsn,
    "tdn": tdn,
    "hmdb51": hmdb51,
    "act": act,
    "actionflownet": actionflownet,
    "sports1m": sports1m,
    **IMAGE_RECIPES,
    "holidays": holidays,
    "oxford": oxford,
    "paris": paris,
}


MAIN = {"actions": ("fv_vae", "late_weighted")}
"""{recipe: the encoder, by its registry key, and the fusion of the result to take}; of the other
recipes that is the one with the best number.
"""


def recipe(name: str) -> Config:
    """Return the configuration of a named recipe.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(
            f"--recipe: expected one of {sorted(RECIPES)}, got {name!r}{near(name, RECIPES, '')}"
        )
    return RECIPES[name]()
