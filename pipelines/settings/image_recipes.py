"""Recipes of image data sets (DQ Table 6, FK Tables 3 to 5); pictures are videos of one frame."""

import dataclasses
from collections.abc import Callable

from encoders.settings import FV_VAE_PRESETS, GmmFvSettings
from pipelines.settings.config import Config
from pipelines.settings.sections import Describe, Encode, Fit, Picture, Sampling, Split

ONE = Sampling(policy="uniform", num_frames=1)

FK_SCALES = (227, 322, 454, 643, 908, 1285, 1816)
"""Each of twice the area of the one before (FK Table 1)."""


def cub() -> Config:
    """CUB-200-2011: conv5_4 of VGG-19 at 448, all 28 x 28 positions, given split (DQ Table 6, Table
    7 row 3). With boxes: picture.box=crop.
    """
    return Config(
        recipe="cub",
        sampling=ONE,
        picture=Picture(resize_px=448, crop_px=448),
        split=Split(kind="given"),
        describe=Describe(nodes=("conv5_4",), streams=("dense",)),
        fit=Fit(num_frames=6000),
        fv_vae=FV_VAE_PRESETS["paper"],
        encode=Encode(encoders=("vlad", "gmm_fv", "bilinear", "fv_vae")),
    )


def voc2007() -> Config:
    """VOC 2007: FC7 of AlexNet at seven scales, 128 values of a PCA, a Fisher vector of 256
    components for each scale, pooled over scales; hinge loss, mAP_11 (FK 4.2, 4.3).
    """
    return Config(
        recipe="voc2007",
        sampling=ONE,
        picture=Picture(scales=FK_SCALES),
        split=Split(kind="given"),
        describe=Describe(
            backbone="alexnet_fcn",
            nodes=("fc7",),
            streams=("dense",),
            scaling="none",
            pca_components=128,
        ),
        fit=Fit(num_frames=1000),
        gmm_fv=GmmFvSettings(num_components=256),
        encode=Encode(
            encoders=(
                *("gmm_fv@scales=mpp", "gmm_fv@scales=mpp:regions=true"),
                *("gmm_fv@scales=nfk", "gmm_fv@scales=csf"),
            )
        ),
    )


def indoor67() -> Config:
    """MIT Indoor 67: as `voc2007`; accuracy (FK 4.2)."""
    return dataclasses.replace(voc2007(), recipe="indoor67")


def flowers102() -> Config:
    """Oxford Flowers 102: as `voc2007`; accuracy (FK 4.2)."""
    return dataclasses.replace(voc2007(), recipe="flowers102")


IMAGE_RECIPES: dict[str, Callable[[], Config]] = {
    "cub": cub,
    "voc2007": voc2007,
    "indoor67": indoor67,
    "flowers102": flowers102,
}
