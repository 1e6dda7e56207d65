"""Trials of networks without a cluster."""

from types import SimpleNamespace

from pipelines.plan import networks
from tests.pipelines.run.examples import example

SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.12",
    "network.networks=actionflownet@pretraining_steps=900:num_steps=100",
    "network.side_px=20",
    "network.crop_px=16",
    "network.frames=2",
    "network.test_views=centre",
    "actionflownet.frames=3",
    "actionflownet.width=2",
)


def test_a_network_that_learns_flow_first_is_tried_in_both_phases(tmp_path) -> None:
    job = example(str(tmp_path), *SETTINGS)
    job.__dict__["weights"] = SimpleNamespace(file="w", identity="w", description="w")
    trial = networks._try(job, job.networks[0], 3, 2)
    assert (trial.name, trial.copies) == (job.networks[0].encoder, 2)
    assert trial.num_bytes > 1000
    # 1,000 steps of 128 clips, measured on steps of 2: no less than a microsecond each.
    assert trial.train_s > 1000 * 64 * 1e-6
    assert trial.clip_s > 0
