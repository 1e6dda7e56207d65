"""The temporal difference network, by its equations (VU 5.3)."""

import pytest
import torch

from encoders.backbones.family import WeightsError
from encoders.networks.body import layer_nodes
from encoders.networks.settings import TdnSettings
from tests.encoders.networks import tiny
from tests.encoders.networks.tiny import CROP


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return tiny.videos(count, 1, seed=seed)[:, 0, :CROP, :CROP]


@pytest.mark.parametrize("backbone", ["tiny", "tiny_plain"])
def test_equal_frames_have_difference_scores_that_do_not_depend_on_them(backbone: str) -> None:
    network = tiny.network("tdn", backbone).eval()
    clips = pictures(2)[:, None].expand(-1, 2, -1, -1, -1)
    outputs = network.outputs(clips)
    assert torch.equal(outputs["difference"][0], outputs["difference"][1])
    assert not torch.allclose(outputs["image"][0], outputs["image"][1], rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "times"), [(("input",), 1), (("input", "features.0"), 2), (("input", "stages"), 3)]
)
def test_linear_blocks_have_the_difference_in_closed_form(
    layers: tuple[str, ...], times: int
) -> None:
    """D^0 = v and D^l = block(D^(l-1)) + v^l, where all v^l are the same linear map of v."""
    network = tiny.network("tdn", "tiny_linear", layers=layers).eval()
    maps = network.maps(pictures(3)[None])
    image = maps["image"]
    expected = times * (image[:, 1:] - image[:, :-1])
    torch.testing.assert_close(maps["difference"], expected, rtol=1e-4, atol=1e-5)


def test_s_snippets_give_s_images_and_s_less_one_differences() -> None:
    network = tiny.network("tdn").eval()
    for count in (1, 2, 4):
        maps = network.maps(pictures(count)[None])
        assert maps["image"].shape[1] == count
        assert ("difference" in maps) == (count > 1)
        if count > 1:
            assert maps["difference"].shape[1] == count - 1
    clip = pictures(4)[None]
    scores = network.outputs(clip)
    pairs = [network.outputs(clip[:, i : i + 2])["difference"] for i in range(3)]
    torch.testing.assert_close(scores["difference"], torch.stack(pairs).mean(0))
    both = (scores["image"] + scores["difference"]) / 2
    torch.testing.assert_close(network.scores(scores), both)


def test_the_first_phase_leaves_the_image_convolutions_as_they_are() -> None:
    states = []
    of = tiny.sample(
        tiny.videos(6),
        torch.eye(3).repeat(2, 1),
        checkpoint=lambda state: states.append(state()["model"]),
    )
    start = tiny.network("tdn").state_dict()
    tiny.trained("tdn", of=of)
    image = [name for name in start if name.startswith("bodies.image.")]
    used = [name for name in image if "features" in name]
    others = [
        name for name in start if name.startswith(("bodies.difference.model.features", "class"))
    ]
    for state in states[:2]:
        assert all(torch.equal(state[name], start[name]) for name in image)
    assert all(
        not torch.equal(states[0][name], start[name]) for name in others if "norm" not in name
    )
    assert all(not torch.equal(states[3][name], start[name]) for name in used)


@pytest.mark.parametrize(("kind", "count"), [("fixed", 0), ("first", 1), ("all", 3)])
def test_batch_normalisations_that_see_the_batch(kind: str, count: int) -> None:
    network = tiny.network("tdn", batch_norm=kind)
    network.begin(1)
    for name in network.subnetworks:
        norms = network.body(name).batch_norms
        assert [norm.training for norm in norms] == [place < count for place in range(3)]
    assert len(network.buffers_in_training()) == 2 * 2 * count
    network.begin(0)
    assert not any(norm.training for norm in network.body("image").batch_norms)


@pytest.mark.parametrize("backbone", ["tiny", "tiny_plain"])
def test_the_mean_of_an_activation_map_is_the_score(backbone: str) -> None:
    of = tiny.sample(tiny.videos(6), torch.eye(3).repeat(2, 1))
    network = tiny.trained("tdn", backbone, of=of)
    clips = tiny.videos(2, 3, seed=4)[:, :, :CROP, :CROP]
    outputs = network.outputs(clips)
    for name, maps in network.activation_maps(clips).items():
        assert maps.shape == (2, 3 - (name == "difference"), 3, 2, 2)
        torch.testing.assert_close(maps.mean((1, 3, 4)), outputs[name], rtol=0, atol=1e-5)


def test_the_layers_of_the_papers() -> None:
    names = ("input", "conv1", "res2", "res3", "res4")
    expected = ("input", "relu", "layer1", "layer2", "layer3")
    assert layer_nodes("resnet18", names, "layer4", 64) == expected
    # VU 5.3.2: 224, 56, 28 and 14, without conv1's 112.
    stages = layer_nodes("resnet18", ("input", "stages"), "layer4", 224)
    assert stages == ("input", "layer1", "layer2", "layer3")


def test_a_layer_that_is_not_before_the_maps_is_refused() -> None:
    with pytest.raises(WeightsError, match="nodes of resnet18 before layer3, got layer4"):
        layer_nodes("resnet18", ("input", "layer4"), "layer3", 64)
    with pytest.raises(WeightsError, match="got 'layer9'"):
        layer_nodes("resnet18", ("input", "layer9"), "layer4", 64)


def test_flow_has_settings_of_its_own() -> None:
    record = TdnSettings(
        flow_learning_rate=0.005, flow_num_steps=(5, 6), flow_dropout=0.7, flow_clip_norm=20
    )
    flow = record.on("flow")
    assert (flow.learning_rate, flow.num_steps, flow.dropout) == (0.005, (5, 6), 0.7)
    assert (flow.clip_norm, flow.rate_at) == (20, record.rate_at)
    assert record.on("rgb") == TdnSettings()
    assert (flow.flow_learning_rate, flow.flow_num_steps) == (0, ())
    faster = TdnSettings(flow_first_rate_factor=5.0)
    assert faster.on("flow").flow_first_rate_factor == 5
    assert faster.on("rgb").flow_first_rate_factor == 1


def test_parameters_have_the_rates_of_their_kinds() -> None:
    network = tiny.network(
        "tdn",
        channels=10,
        learning_rate=0.1,
        decay=0.01,
        bias_rate_factor=2.0,
        decay_biases=False,
        flow_first_rate_factor=5.0,
        joint_rate_factor=0.5,
    )
    names = {id(value): name for name, value in network.named_parameters()}
    first, both = network.phases()
    assert {group.learning_rate for group in first.groups} == {0.1, 0.2, 0.5}
    for group in both.groups:
        for parameter in group.parameters:
            name = names[id(parameter)]
            is_bias, is_first = name.endswith(".bias"), name.endswith("features.0.weight")
            assert group.learning_rate == pytest.approx(
                0.05 * (2 if is_bias else 5 if is_first else 1)
            )
            assert group.decay == (0 if is_bias else 0.01)


def test_a_new_classifier_may_learn_faster_than_the_backbone() -> None:
    network = tiny.network("tsn", channels=10, learning_rate=0.1, classifier_rate_factor=10.0)
    names = {id(value): name for name, value in network.named_parameters()}
    (phase,) = network.phases()
    rates = {names[id(p)]: group.learning_rate for group in phase.groups for p in group.parameters}
    assert {name.partition(".")[0] for name in rates} == {"bodies", "classifiers"}
    for name, rate in rates.items():
        assert rate == pytest.approx(1.0 if name.startswith("classifiers.") else 0.1)


def test_the_image_subnetwork_starts_from_a_tsn_of_flow() -> None:
    tsn, drawn = tiny.network("tsn", channels=10), tiny.network("tdn", channels=10).state_dict()
    with torch.no_grad():
        for value in tsn.parameters():
            value.add_(1)
    found = tiny.network("tdn", channels=10).start_from(tsn.files()).state_dict()
    for key, value in found.items():
        own = tsn.state_dict().get(key, drawn[key])
        assert torch.equal(value, own), key
