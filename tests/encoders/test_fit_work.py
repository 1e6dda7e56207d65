"""What an encoder says of its fit's work, against fits: every encoder of the registry, with its
usual settings."""

from dataclasses import replace

import pytest
import torch

from encoders.codebooks.sample import FitSample
from encoders.registry import ENCODERS, fit_encoder
from pipelines.settings.config import Config

FRAMES, CELLS, STEPS = 40, 14, 3
SMALL = ("vlad.num_centroids=4", "gmm_fv.num_components=4", "fv_vae.num_latents=3")
VARIANTS = (
    *ENCODERS,
    "gmm_fv@batch_descriptors=100",
    "vlad@position_weight=0.5",
    "fv_vae@num_steps=0",
)


def steps_of(name: str, settings: object) -> int:
    """How often a fit offers its state."""
    generator = torch.Generator().manual_seed(0)
    seen = []
    sample = FitSample(
        frames=torch.rand(FRAMES, CELLS, 6, generator=generator),
        video=torch.arange(FRAMES),
        targets=torch.eye(2)[torch.arange(FRAMES) % 2],
        levels=(1, 2, 3),
        checkpoint=seen.append,
    )
    fit_encoder(name, sample, settings, "signed_sqrt_l2")
    return len(seen)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_short_fit_takes_the_steps_that_its_work_says(name: str) -> None:
    variant = Config().with_settings(list(SMALL)).variant(name)
    kind = ENCODERS[variant.base]
    short = kind.short_fit(variant.settings, STEPS)
    work = kind.fit_work(short, FRAMES, CELLS)
    assert steps_of(variant.base, short) == work.steps
    assert bool(work.steps) == bool(work.step)
    assert work.steps <= kind.fit_work(variant.settings, FRAMES, CELLS).steps


@pytest.mark.parametrize("name", VARIANTS)
def test_more_frames_are_never_less_work(name: str) -> None:
    variant = Config().variant(name)
    works = [ENCODERS[variant.base].fit_work(variant.settings, 10**n, 50) for n in range(2, 8)]
    totals = [work.once + work.steps * work.step for work in works]
    assert totals == sorted(totals)
    assert totals[0] > 0


def test_k_means_draws_no_more_descriptors_than_it_uses() -> None:
    settings = replace(Config().vlad, num_centroids=10)
    assert ENCODERS["vlad"].fit_work(settings, 100, 50).once == 5000
    assert ENCODERS["vlad"].fit_work(settings, 1000, 50).once == 10 * 1024


def test_em_reads_everything_in_each_iteration_and_training_a_batch() -> None:
    config = Config()
    em = ENCODERS["gmm_fv"].fit_work(replace(config.gmm_fv, max_iterations=7), 200, 50)
    assert em == (10_000, 7, 10_000)
    stepwise = replace(config.gmm_fv, max_iterations=7, batch_descriptors=4000)
    assert ENCODERS["gmm_fv"].fit_work(stepwise, 200, 50) == (10_000, 7 * 3, 4000)
    trained = replace(config.fv_vae, num_steps=9, batch_frames=16)
    assert ENCODERS["fv_vae"].fit_work(trained, 200, 50) == (10_000, 9, 800)
