"""ActionFlowNet's variants: shapes and sizes of VU 4, and what each phase learns."""

import pytest
import torch
from torch import Tensor
from torchvision.models.video import r3d_18

from encoders.backbones.resnet_18 import ClipResNet, PairResNet
from encoders.networks import scoring
from encoders.networks.augment import augmented
from encoders.networks.base import Clips
from encoders.networks.body import Source
from encoders.networks.end_point import from_levels
from encoders.networks.fit import Pairs, fit_network
from encoders.networks.flow.actionflownet import CLIP, ActionFlowNet
from encoders.networks.flow.decoder import Decoder
from encoders.networks.scoring import clip_scores
from encoders.networks.settings import ActionFlowSettings
from encoders.networks.training import generator
from pipelines.video.flow import to_levels
from tests.encoders.networks import tiny
from tests.encoders.networks.tiny import CROP, SIDE, K

LABELS = torch.eye(K).repeat(2, 1)
STEADY = {"crops": "centre", "mirror": False, "colour_jitter": 0.0, "dropout": 0.0}


def record(**changed: object) -> ActionFlowSettings:
    values = {"width": 4, "frames": 4, "pretraining_steps": 2, "num_steps": (2,), "batch_clips": 6}
    return ActionFlowSettings(**(values | {"learning_rate": 1e-3} | STEADY | changed))


def network(**changed: object) -> ActionFlowNet:
    source = Source(network="tiny", node="", weights=b"", crop_px=CROP)
    return ActionFlowNet.build(source, record(**changed), K)


def clips(count: int, frames: int) -> Tensor:
    return tiny.videos(count, frames)[:, :, :CROP, :CROP]


def random_flow(*shape: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed))


def test_the_encoder_of_clips_is_r3d_18_with_a_pool() -> None:
    with torch.device("meta"):
        encoder, other = ClipResNet(3, 64), r3d_18()
        shapes = [tuple(m.shape[1:]) for m in encoder(torch.zeros(1, 3, 16, 224, 224))]
    assert shapes == [(512, 2, 7, 7), (256, 4, 14, 14), (128, 8, 28, 28), (64, 16, 56, 56)]
    # VU 4.3.2's network has 33.4 million parameters with Kinetics' classes.
    assert round(sum(p.numel() for p in other.parameters()) / 1e5) == 334
    state = {k: v for k, v in other.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }


def test_the_encoder_of_clips_computes_what_r3d_18_does_behind_the_pool() -> None:
    other = load_random(r3d_18)
    encoder = ClipResNet(3, 64).eval()
    encoder.load_state_dict(
        {k: v for k, v in other.state_dict().items() if not k.startswith("fc.")}
    )
    pixels = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = encoder(pixels)
        expected = torch.max_pool3d(other.stem(pixels), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for stage, found in enumerate(maps[::-1]):
            expected = getattr(other, f"layer{stage + 1}")(expected)
            assert torch.equal(found, expected)


def load_random(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def test_flow_has_a_quarter_of_the_side_and_pairs_all_scales() -> None:
    with torch.device("meta"):
        clip = Decoder((512, 256, 128, 64), 3, has_all_scales=False)
        (flow,) = clip(ClipResNet(3, 64)(torch.zeros(1, 3, 16, 224, 224)))
        pair = Decoder((512, 256, 128, 64), 2, has_all_scales=True)
        flows = pair(PairResNet(6, 64)(torch.zeros(1, 6, 224, 224)))
    assert tuple(flow.shape) == (1, 2, 16, 56, 56)
    assert [tuple(f.shape[1:]) for f in flows] == [(2, side, side) for side in (7, 14, 28, 56)]


@pytest.mark.parametrize("frames", [2, 16])
def test_width_scales_all_layers(frames: int) -> None:
    sizes = [
        sum(p.numel() for n, p in network(width=width, frames=frames).named_parameters())
        for width in (4, 8)
    ]
    assert 3.7 < sizes[1] / sizes[0] < 4


def test_frame_17_changes_no_output() -> None:
    net = network(frames=16).eval()
    given = clips(1, 17)
    other = given.clone()
    other[:, 16] = 255 - other[:, 16]
    assert torch.equal(net.flows(given), net.flows(other))
    assert torch.equal(net.outputs(given)[CLIP], net.outputs(other)[CLIP])
    assert net.flows(given).shape == (1, 16, CROP // 4, CROP // 4, 2)
    # The 16 flows that training is given lead to the frame that the network is not.
    run = net.clip_places(1, 17, generator("cpu", 0))
    assert list(run) == list(range(16))
    assert net.num_flows == 16


@pytest.mark.parametrize(
    ("changed", "tasks", "trained"),
    [
        ({}, ("flow", "both"), ({"encoder", "decoder"}, {"encoder", "decoder", "classifiers"})),
        ({"pretraining_steps": 0}, ("both",), ({"encoder", "decoder", "classifiers"},)),
        ({"learns": "scratch"}, ("classes",), ({"encoder", "classifiers"},)),
        (
            {"learns": "fine_tuned"},
            ("flow", "classes"),
            ({"encoder", "decoder"}, {"encoder", "classifiers"}),
        ),
        (
            {"learns": "stacked", "frames": 2},
            ("flow", "classes"),
            ({"encoder", "decoder"}, {"on_flow", "classifiers"}),
        ),
    ],
)
def test_each_phase_trains_the_parts_of_its_task(changed: dict, tasks, trained) -> None:
    net = network(**changed)
    assert net.own.tasks == tasks
    for phase, (task, parts) in enumerate(zip(tasks, trained, strict=True)):
        net.begin(phase)
        named = net.own_parameters(phase)
        assert {name.split(".")[0] for name in named} == parts
        flow = random_flow(2, max(1, net.num_flows), CROP, CROP)
        losses = net.losses(
            Clips(clips(2, net.own.frames), flow), LABELS[:2], None, multi_label=False
        )
        assert set(losses) == {"total"} | {"flow": {"flow"}, "classes": {"classes"}}.get(
            task, {"flow", "classes"}
        )
        gradients = torch.autograd.grad(losses["total"], [*named.values()])
        assert all(g.isfinite().all() for g in gradients)
        assert any(g.abs().max() > 0 for g in gradients)


def test_without_weight_of_flow_gradients_are_those_of_the_classes() -> None:
    flow = random_flow(2, 4, CROP, CROP)
    found = []
    for changed in ({"epe_weight": 0.0}, {"learns": "scratch"}):
        net = network(pretraining_steps=0, **changed)
        net.begin(0)
        total = net.losses(Clips(clips(2, 4), flow), LABELS[:2], None, multi_label=False)["total"]
        own = [p for n, p in net.own_parameters(0).items() if not n.startswith("decoder.")]
        found.append(torch.autograd.grad(total, own))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_decoder_is_not_run_for_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network().eval()
    monkeypatch.setattr(net.decoder, "forward", None)
    assert net.outputs(clips(1, 4))[CLIP].shape == (1, K)


def test_stacked_reads_the_flow_alone() -> None:
    net = network(learns="stacked", frames=2).eval()
    given = clips(2, 2)
    flow = net.flows(given)[:, 0].permute(0, 3, 1, 2) / 20
    deepest = net.on_flow(flow)[0]
    expected = net.classifiers[CLIP].linear(deepest.mean((2, 3)))
    torch.testing.assert_close(net.outputs(given)[CLIP], expected, rtol=1e-4, atol=1e-6)


def videos_that_move(count: int, frames: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [count, frames, SIDE, SIDE, 3] that move right by 2 px, and levels of flow."""
    wide = tiny.videos(count, 1, seed=3).repeat(1, 1, 1, 3, 1)[:, 0]
    shifted = [wide[:, :, SIDE - 2 * t : 2 * SIDE - 2 * t] for t in range(frames)]
    flow = torch.zeros(count, SIDE, SIDE, 2 * (frames - 1))
    flow[..., ::2] = 2
    return torch.stack(shifted, 1), torch.from_numpy(to_levels(flow.numpy(), 8.0))


def moving_sample(run: int, **changed: object):
    frames, levels = videos_that_move(6, run)
    return tiny.sample(frames, LABELS, run_frames=run, flows=levels, flow_bound_px=8.0, **changed)


@pytest.mark.parametrize("frames", [2, 4])
def test_the_flow_of_moving_clips_is_learned(frames: int) -> None:
    losses = []
    # Statistics of batches of 6 clips are not those of the test.
    steady = {"batch_norm": "fixed", "learning_rate": 3e-3}
    net = network(frames=frames, pretraining_steps=40, num_steps=(1,), **steady)
    of = moving_sample(
        net.own.run_frames,
        log=lambda quantity, step, value: losses.append(value) if quantity == "flow" else None,
    )
    fit_network(net, of, CROP)
    assert losses[39] < 0.5 * losses[0]
    u, v = net.flows(of.frames.unflatten(0, (6, -1))[:, :, :CROP, :CROP]).mean((0, 1, 2, 3))
    assert abs(u - 2) < 1
    assert abs(v) < 1


def test_the_flow_of_a_clip_is_that_of_its_frames() -> None:
    """Each flow of a run is 1 px longer than the one before: those of a clip begin at its frame."""
    run = 6
    flow = torch.arange(run - 1.0).repeat_interleave(2) * torch.tensor([1.0, -1.0]).repeat(run - 1)
    levels = from_px(flow.expand(2, SIDE, SIDE, -1))
    net = network(frames=3)
    of = tiny.sample(
        tiny.videos(2, run), LABELS[:2], run_frames=run, flows=levels, flow_bound_px=8.0
    )
    seen = []
    net.losses = lambda clips, *_, **__: seen.append(clips.flow) or one_loss(net)
    fit_network(net, of, CROP)
    (first, *_) = seen
    assert first.shape == (6, 3, CROP, CROP, 2)
    starts = first[:, 0, 0, 0, 0].round()
    assert len(set(starts.tolist())) > 1
    for clip, start in zip(first, starts, strict=True):
        for place in range(3):
            # Levels are 0.06 px apart.
            expected = (start + place) * torch.tensor([1.0, -1.0])
            assert (clip[place] - expected).abs().max() < 0.07


def one_loss(net: ActionFlowNet) -> dict[str, Tensor]:
    return {"total": sum(p.sum() for p in net.parameters()) * 0}


def from_px(flow: Tensor) -> Tensor:
    levels = torch.from_numpy(to_levels(flow.numpy(), 8.0))
    assert (from_levels(levels, 8.0) - flow).abs().max() < 0.07
    return levels


def test_pairs_with_truth_are_learned_first_and_videos_after() -> None:
    frames, _ = videos_that_move(5, 2)
    flow = torch.tensor([2.0, 0.0]).expand(5, SIDE, SIDE, 2)
    names = []
    net = network(frames=2, pairs="somewhere", num_steps=(3,))
    of = moving_sample(
        2,
        pairs=Pairs(frames=frames, flow=flow.half()),
        log=lambda quantity, step, value: names.append((step, quantity)),
    )
    fit_network(net, of, CROP)
    by_step = [{quantity for at, quantity in names if at == step} for step in range(1, 6)]
    assert by_step == [{"total", "flow"}] * 2 + [{"total", "flow", "classes"}] * 3


def test_stopped_and_resumed_in_either_phase_is_undisturbed() -> None:
    states = []
    of = moving_sample(5, checkpoint=lambda state: states.append(state()))
    undisturbed = fit_network(network(), of, CROP).state_dict()
    assert len(states) == 4
    for state in states[:3]:
        again = fit_network(network(), moving_sample(5, state=state), CROP).state_dict()
        assert all(torch.equal(again[name], value) for name, value in undisturbed.items())


def test_a_mirrored_clip_with_a_mirrored_target_has_the_same_error() -> None:
    frames, flow = tiny.videos(1, 2)[0], random_flow(1, SIDE, SIDE)
    found = {}
    for seed in range(8):
        found.setdefault(
            bool(torch.rand((), generator=generator("cpu", seed), dtype=torch.float64) < 0.5),
            augmented(frames, record(frames=2, mirror=True), SIDE, generator("cpu", seed), flow),
        )
    (plain, straight), (turned, mirrored) = found[False], found[True]
    assert torch.equal(plain.flip(2), turned)
    back = mirrored.flip(2) * torch.tensor([-1.0, 1.0])
    assert torch.equal(back, straight)


def test_a_resized_crop_scales_its_flow() -> None:
    flow = torch.tensor([3.0, -6.0]).expand(1, SIDE, SIDE, 2)
    settings = record(frames=2, crops="corners")
    frames = tiny.videos(1, 2)[0]
    factors = set()
    for seed in range(40):
        _, given = augmented(frames, settings, CROP, generator("cpu", seed), flow)
        factors.add(tuple(round(x, 3) for x in (given[0, 0, 0] / flow[0, 0, 0]).tolist()))
    sides = [int(SIDE * scale) for scale in (1, 0.875, 0.75, 0.66)]
    assert factors <= {(round(CROP / w, 3), round(CROP / h, 3)) for w in sides for h in sides}
    assert len(factors) > 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learns": "stacked"}, "frames: expected 2 with learns=stacked, got 4"),
        ({"pairs": "x"}, "frames: expected 2 with pairs"),
        ({"pairs": "x", "frames": 2, "pretraining_steps": 0}, "pairs: expected none without"),
        ({"learns": "fine_tuned", "pretraining_steps": 0}, "pretraining_steps: expected 1 or more"),
    ],
)
def test_variants_that_do_not_exist_are_named(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**changed)


def test_clips_without_flow_are_refused() -> None:
    with pytest.raises(ValueError, match="actionflownet training: expected flow of the clips"):
        fit_network(network(), tiny.sample(tiny.videos(6), LABELS), CROP)


def test_files_of_every_variant_bring_the_scores_back() -> None:
    for changed in ({}, {"learns": "stacked", "frames": 2}):
        net = network(**changed).eval()
        with torch.no_grad():
            for value in net.state_dict().values():
                value.add_(1 if value.dtype == torch.int64 else 0.01)
        again = network(**changed).load_files(net.files())
        given = clips(2, 4)
        assert torch.equal(again.outputs(given)[CLIP], net.outputs(given)[CLIP])
        assert torch.equal(again.flows(given), net.flows(given))


def test_clips_are_scored_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (video,) = network().eval(), tiny.videos(1, 9)
    places = [list(range(start, start + 4)) for start in range(5)]
    whole = clip_scores(net, video, places, "mirror", CROP)[CLIP]
    sizes, outputs = [], net.outputs
    monkeypatch.setattr(scoring, "FRAMES_AT_A_TIME", 8)
    monkeypatch.setattr(net, "outputs", lambda clips: sizes.append(len(clips)) or outputs(clips))
    parts = clip_scores(net, video, places, "mirror", CROP)[CLIP]
    assert sizes == [2, 2, 1] * 2
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
