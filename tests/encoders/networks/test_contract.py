"""Every network of the registry: a new one is taken up by itself."""

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from encoders.backbones import load
from encoders.networks.base import CLASSIFIERS, Clips, Network
from encoders.networks.fit import fit_network
from encoders.networks.registry import NETWORKS, network_class
from encoders.networks.scoring import clip_scores
from encoders.tensor_files import save_tensors
from tests.encoders import oracles
from tests.encoders.networks import tiny
from tests.encoders.networks.tiny import CROP, K

pytestmark = pytest.mark.parametrize("name", NETWORKS)

BACKBONES = ("tiny", "tiny_plain")
STEADY = {"crops": "centre", "mirror": False, "batch_norm": "fixed"}
"""Settings without which results depend on draws, or on which clips are computed together."""

TARGETS = torch.eye(K).repeat(2, 1)


def state_of(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(network: Network, other: dict[str, Tensor], **tolerance: float) -> None:
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, other[name], **({"rtol": 0, "atol": 0} | tolerance))


def random_clips(count: int, frames: int = 3) -> Tensor:
    return tiny.videos(count, frames)[:, :, :CROP, :CROP]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("channels", [3, 10])
def test_outputs_are_scores_of_each_clip_alone(name: str, backbone: str, channels: int) -> None:
    network = tiny.network(name, backbone, channels=channels).eval()
    clips = tiny.videos(4, 3, channels=channels)[:, :, :CROP, :CROP]
    outputs = network.outputs(clips)
    assert set(outputs) == set(network.output_names)
    for subnetwork, scores in outputs.items():
        assert scores.shape == (4, K)
        assert scores.isfinite().all()
        alone = network.outputs(clips[2:3])[subnetwork]
        torch.testing.assert_close(scores[2:3], alone, rtol=1e-4, atol=1e-6)
    assert network.scores(outputs).shape == (4, K)


def test_the_order_of_frames_counts_where_the_network_says_so(name: str) -> None:
    network = tiny.network(name, "tiny_plain").eval()
    clips = random_clips(2)
    scores, turned = (network.scores(network.outputs(c)) for c in (clips, clips.flip(1)))
    is_same = torch.allclose(scores, turned, rtol=1e-5, atol=1e-8)
    assert is_same != network.sees_order


def test_one_frame_and_equal_frames_are_scored(name: str) -> None:
    network = tiny.network(name).eval()
    clip = random_clips(1, 1)
    for frames in (1, 2, 5):
        scores = network.scores(network.outputs(clip.expand(-1, frames, -1, -1, -1)))
        assert scores.shape == (1, K)
        assert scores.isfinite().all()


def test_each_trained_parameter_has_a_gradient_and_no_other(name: str) -> None:
    network = tiny.network(name)
    for phase, record in enumerate(network.phases()):
        network.begin(phase)
        losses = network.losses(Clips(random_clips(3)), torch.eye(K), None, multi_label=False)
        groups = [parameter for group in record.groups for parameter in group.parameters]
        assert len({id(parameter) for parameter in groups}) == len(groups)
        gradients = torch.autograd.grad(losses["total"], groups)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_last_phase_learns_the_training_clips(name: str, multi_label: bool) -> None:
    # Each class has its own colour.
    frames = tiny.videos(6) // 4
    for video, label in zip(frames, TARGETS.argmax(1).tolist(), strict=True):
        video[..., label] += 190
    losses = []
    of = tiny.sample(
        frames,
        TARGETS,
        multi_label=multi_label,
        log=lambda quantity, step, value: losses.append(value) if quantity == "total" else None,
    )
    steps = tiny.steps(name, 30)
    network = tiny.trained(name, "tiny_plain", of=of, num_steps=steps, rate_at=(), crops="centre")
    assert losses[-1] < 0.7 * losses[0]
    scores = torch.cat(
        [network.scores(clip_scores(network, v, [[0, 2, 4]], "centre", CROP)) for v in frames]
    )
    true = TARGETS.bool()
    assert scores[true].mean() > scores[~true].mean()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stopped_and_resumed_is_undisturbed(name: str, backbone: str) -> None:
    files = {}

    def keep(state) -> None:
        data = io.BytesIO()
        torch.save(state(), data)
        files[len(files) + 1] = data.getvalue()

    changed = {"dropout": 0.5, "crops": "corners", "colour_jitter": 0.4, "part_clips": 4}
    frames = tiny.videos(6)
    of = tiny.sample(frames, TARGETS, checkpoint=keep)
    undisturbed = state_of(tiny.trained(name, backbone, of=of, **changed))
    for step in range(1, 5):
        state = torch.load(io.BytesIO(files[step]), weights_only=True)
        more = tiny.sample(frames, TARGETS, state=state)
        assert_same(tiny.trained(name, backbone, of=more, **changed), undisturbed)


def test_another_run_does_not_go_on_from_a_state(name: str) -> None:
    states = []
    of = tiny.sample(tiny.videos(6), TARGETS, checkpoint=lambda state: states.append(state()))
    tiny.trained(name, of=of)
    more = tiny.sample(tiny.videos(6), TARGETS, state=states[0])
    with pytest.raises(ValueError, match=rf"{name} training: expected a state with dropout = 0.5"):
        tiny.trained(name, of=more, dropout=0.5)


def test_two_workers_take_the_steps_of_one(name: str) -> None:
    # As many frames as segments: the same clips, whoever draws them.
    frames = tiny.videos(6, 3)
    alone = state_of(tiny.trained(name, of=tiny.sample(frames, TARGETS), **STEADY))

    # torch traces a network in one thread at a time.
    networks = [tiny.network(name, **STEADY) for _ in range(2)]

    def work(rank, all_reduce):
        share, network = slice(0, 4) if rank else slice(4, 6), networks[rank]
        of = tiny.sample(
            frames[share], TARGETS[share], rank=rank, world_size=2, all_reduce=all_reduce
        )
        # Uneven shares of the batch, each a worker's whole videos.
        network.settings = tiny.settings(name, **STEADY, batch_clips=8 if rank else 4)
        return state_of(fit_network(network, of, CROP))

    first, second = oracles.run_workers(2, work)
    start = state_of(tiny.network(name, **STEADY))
    for key, value in first.items():
        assert torch.equal(value, second[key])
        torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(start[key], value) for key, value in first.items())


def test_parts_of_a_batch_are_the_whole(name: str) -> None:
    frames = tiny.videos(6)
    whole = state_of(tiny.trained(name, of=tiny.sample(frames, TARGETS), **STEADY))
    parts = tiny.trained(name, of=tiny.sample(frames, TARGETS), part_clips=4, **STEADY)
    assert_same(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_files_bring_the_same_scores_back(name: str, backbone: str) -> None:
    network = tiny.trained(name, backbone, of=tiny.sample(tiny.videos(6), TARGETS))
    files = network.files()
    again = tiny.network(name, backbone, num_steps=network.settings.num_steps).load_files(files)
    clips = random_clips(3)
    for subnetwork, scores in network.outputs(clips).items():
        assert torch.equal(again.outputs(clips)[subnetwork], scores)
    assert again.files() == files
    # Backbones are what describe.weights takes.
    for subnetwork in network.bodies:
        model = load.load_model(backbone, files[f"{subnetwork}.safetensors"])
        for key, value in network.body(subnetwork).model.state_dict().items():
            assert torch.equal(model.state_dict()[key], value)


def test_clips_and_crops_are_a_mean_of_a_loop(name: str) -> None:
    network = tiny.trained(name, of=tiny.sample(tiny.videos(6), TARGETS))
    (video,) = tiny.videos(1, 6, seed=9)
    places = [[0, 2, 4], [1, 3, 5], [0, 0, 5]]
    found = clip_scores(network, video, places, "ten", CROP)
    margin = tiny.SIDE - CROP
    corners = [(margin // 2, margin // 2), *((i, j) for i in (0, margin) for j in (0, margin))]
    for subnetwork in network.output_names:
        for place, scores in zip(places, found[subnetwork], strict=True):
            views = []
            for top, left in corners:
                crop = video[place, top : top + CROP, left : left + CROP]
                views += [network.outputs(v[None])[subnetwork] for v in (crop, crop.flip(2))]
            assert len(views) == 10
            expected = torch.stack(views).mean(0)[0]
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_step_and_what_to_do(name: str) -> None:
    network = tiny.network(name, "tiny_plain")
    of = tiny.sample(tiny.videos(6), TARGETS)
    with torch.no_grad():
        next(network.parameters()).flatten()[0] = torch.nan
    with pytest.raises(
        ValueError, match=rf"{name} training, step 0: expected finite .* lower {name}.learning_rate"
    ):
        fit_network(network, of, CROP)


def test_random_labels_give_chance(name: str) -> None:
    draw = torch.Generator().manual_seed(3)
    targets = torch.eye(K)[torch.randint(K, (24,), generator=draw)]
    steps = tiny.steps(name, 20)
    network = tiny.trained(
        name, "tiny_plain", of=tiny.sample(tiny.videos(24, 3), targets), num_steps=steps, rate_at=()
    )
    tested = tiny.videos(90, 3, seed=7)[:, :, :CROP, :CROP]
    truth = torch.randint(K, (90,), generator=draw)
    with torch.inference_mode():
        scores = network.scores(network.outputs(tested))
    accuracy = (scores.argmax(1) == truth).double().mean().item()
    # Five standard deviations of 90 guesses.
    assert abs(accuracy - 1 / K) < 5 * (1 / K * (1 - 1 / K) / 90) ** 0.5


def test_the_phases_are_the_settings(name: str) -> None:
    network = tiny.network(name, rate_at=(), rate_every=10, rate_factor=0.5, clip_norm=2)
    phases = network.phases()
    assert [phase.num_steps for phase in phases] == list(network.settings.num_steps)
    for phase in phases:
        assert phase.clip_norm == 2
        rates = [phase.rate(step) for step in (0, 10, 20)]
        assert rates == [1, 0.5, 0.25]
        assert all(later < sooner for sooner, later in pairwise(rates))


def test_streamed_videos_train_to_the_same_bits_also_after_a_stop(name: str) -> None:
    frames, kept = tiny.videos(4), []
    asked: list[list[int]] = []

    def stream(numbers: Iterator[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
        asked.append(list(numbers))
        return ((frames[number], None) for number in asked[-1])

    stored = tiny.sample(frames, TARGETS[:4])
    expected = state_of(tiny.trained(name, of=stored))
    streamed = replace(
        stored, frames=frames[:0, 0], stream=stream, checkpoint=lambda state: kept.append(state())
    )
    assert_same(tiny.trained(name, of=streamed), expected)
    # The batches are those of four steps, two of which are left after the stop.
    assert_same(tiny.trained(name, of=replace(streamed, state=kept[1])), expected)
    assert [len(numbers) for numbers in asked] == [4 * 6, 2 * 6]
    assert asked[0][2 * 6 :] == asked[1]


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_class_that_a_video_does_not_count_for_has_no_part_in_its_loss(
    name: str, multi_label: bool
) -> None:
    network, targets = tiny.network(name, "tiny_plain").eval(), torch.eye(K)
    targets[0, 1] = -1
    clips = random_clips(K)
    losses = [
        network.losses(Clips(clips), t, None, multi_label=multi_label)["total"]
        for t in (targets, targets.clamp(min=0))
    ]
    assert losses[0] < losses[1]
    alone = network.losses(Clips(clips[:1]), targets[:1], None, multi_label=multi_label)["total"]
    bias = [p for n, p in network.named_parameters() if n.startswith("class") and p.shape == (K,)]
    (gradient,) = torch.autograd.grad(alone, bias[-1])
    assert gradient[1] == 0
    assert gradient[0] != 0


def test_a_network_starts_from_one_of_other_classes(name: str) -> None:
    kind, record = network_class(name), tiny.settings(name)
    before, files = tiny.network(name), tiny.network(name).files()
    drawn = kind.build(tiny.source("tiny", seed=5), record, K + 2, seed=9)
    own = state_of(drawn)
    started = drawn.start_from(files).state_dict()
    for key, value in before.state_dict().items():
        if value.shape == own[key].shape:
            assert torch.equal(started[key], value)
        else:
            # New classes' scores stay as they were drawn.
            assert K in value.shape
            assert torch.equal(started[key], own[key])
    other = kind.build(tiny.source("tiny", seed=5), record, K, seed=9)
    assert_same(other.start_from(files), state_of(before))


def test_a_network_of_flow_starts_from_one_of_pictures(name: str) -> None:
    files = tiny.network(name).files()
    of_flow = tiny.network(name, channels=10)
    if not of_flow.bodies:
        return
    started, stacks = of_flow.start_from(files).state_dict(), 0
    for key, value in tiny.network(name).state_dict().items():
        if value.shape == started[key].shape:
            assert torch.equal(started[key], value)
        else:
            stacks += 1
            mean = value.mean(1, keepdim=True).expand_as(started[key])
            torch.testing.assert_close(started[key], mean)
    assert stacks == len(of_flow.bodies)


def test_a_network_of_another_shape_is_no_start(name: str) -> None:
    changed = {"width": 5} if name == "actionflownet" else {}
    other = tiny.network(name, "tiny", **changed)
    files = other.files()
    if not changed:
        weights = {k: torch.zeros(2, *v.shape) for k, v in other.state_dict().items()}
        files = {CLASSIFIERS: save_tensors(weights, "network", {})}
    with pytest.raises(ValueError, match=f"{name}.start: expected .* got .*same settings"):
        tiny.network(name).start_from(files)
