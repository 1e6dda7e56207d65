"""Weights of the demonstration, also without a network."""

import logging

from encoders.backbones import load
from pipelines.settings.recipes import recipe

log = logging.getLogger("video_fisher")


def weights_or_random(given: str | None) -> str:
    """Return the given weights, else the published ones, else random ones, with a warning in the
    log and the report."""
    if given:
        return given
    describe = recipe("demo").describe
    try:
        load.load_published(describe.backbone, describe.weights)
    except load.WeightsError as error:
        log.warning("%s", error)
        log.warning(
            "The demo goes on with seeded RANDOM filters: what follows shows the pipeline, not "
            "the accuracy of the method. With weights: make demo WEIGHTS=FILE"
        )
        return "random:0"
    return describe.weights
