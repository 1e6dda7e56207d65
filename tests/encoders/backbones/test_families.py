"""One contract for the networks of every source, each on a small network of its own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from encoders.backbones import load
from encoders.backbones.family import Layout, WeightsError
from encoders.backbones.timm_family import Timm


@dataclass(frozen=True)
class Case:
    """A network, two of its nodes in the order of computation, and modules behind the first."""

    network: str
    nodes: tuple[str, str]
    behind: tuple[str, ...]
    px: int


VIT = Case("timm:test_vit", ("blocks.2", "tokens"), ("blocks.3", "norm", "head"), 160)
RESNET = Case("timm:test_resnet", ("layer1.0.bn1", "layer4"), ("layer2", "global_pool", "fc"), 96)
CASES = [
    Case("squeezenet1_1", ("features.0", "features.12"), ("features.3", "features.12"), 64),
    Case("mobilenet_v3_small", ("features.3", "ga"), ("features.4", "avgpool"), 64),
    VIT,
    RESNET,
    Case("timm:test_mambaout", ("stages.0", "stages.2"), ("stages.1", "stages.3", "head"), 96),
]


@pytest.fixture(params=CASES, ids=lambda case: case.network, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def packed(case: Case) -> bytes:
    return load.random_filters(case.network, 3)


def frames(case: Case, count: int = 2) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, case.px, case.px, 3), generator=draws).to(torch.uint8)


@contextmanager
def runs(network: nn.Module) -> Iterator[set[str]]:
    """The names of the modules that run, of those that are still in the network."""
    ran: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
        for name, module in network.named_modules()
    ]
    yield ran
    for hook in hooks:
        hook.remove()


def test_shapes_are_promised_without_weights_and_kept(case: Case, packed: bytes) -> None:
    promised = load.node_shapes(case.network, case.nodes, case.px)
    maps = load.build(case.network, case.nodes, packed).maps(frames(case))
    assert list(maps) == list(case.nodes)
    assert {node: tuple(value.shape) for node, value in maps.items()} == {
        node: (2, *shape) for node, shape in promised.items()
    }
    assert all(value.dtype == torch.float32 for value in maps.values())


def test_nothing_behind_the_deepest_node_is_run(case: Case, packed: bytes) -> None:
    backbone = load.build(case.network, case.nodes[:1], packed)
    with runs(backbone.network) as ran:
        backbone.maps(frames(case, 1))
    assert len(ran) > 1
    names = [name.removeprefix("model.") for name in ran]
    assert not [name for name in names for part in case.behind if f"{name}.".startswith(f"{part}.")]


def test_a_node_gives_the_same_alone_and_beside_others(case: Case, packed: bytes) -> None:
    together = load.build(case.network, case.nodes, packed).maps(frames(case))
    for node in case.nodes:
        alone = load.build(case.network, (node,), packed).maps(frames(case))[node]
        assert torch.equal(alone, together[node])


def test_frames_do_not_mix_and_the_same_frames_give_the_same(case: Case, packed: bytes) -> None:
    """In training mode batch statistics, dropout and stochastic depth would show here."""
    backbone = load.build(case.network, case.nodes, packed)
    both, again = (backbone.maps(frames(case)) for _ in range(2))
    one = backbone.maps(frames(case)[1:])
    for node in case.nodes:
        assert torch.equal(both[node], again[node])
        torch.testing.assert_close(one[node], both[node][1:], rtol=1e-4, atol=1e-5)
        assert not torch.equal(both[node][0], both[node][1])


SMALLEST = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
)
"""A small network of each of torchvision's families; the others of a family are built by the same
code."""


@pytest.mark.parametrize("network", SMALLEST)
def test_every_family_of_torchvision_is_built_without_memory(network: str) -> None:
    before = torch.get_rng_state()
    model = load.bare(network)
    assert torch.equal(torch.get_rng_state(), before)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    size = 75 if network == "inception_v3" else 224
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 1000)


def test_a_network_whose_builder_reads_tensors_takes_weights() -> None:
    """RegNet computes its layers' sizes with torch."""
    network = "regnet_y_400mf"
    packed = load.random_filters(network, 0)
    maps = load.build(network, ("trunk_output",), packed).maps(frames(RESNET))
    assert maps["trunk_output"].shape == (
        2,
        *load.node_shapes(network, ("trunk_output",), 96)["trunk_output"],
    )


def test_weights_come_back_as_they_went(case: Case, packed: bytes) -> None:
    state = load.load_model(case.network, packed).state_dict()
    assert load.pack(state) == packed
    assert load.load_file(packed, "weights.safetensors") == packed


def test_gradients_reach_the_parameters_before_the_node_alone(case: Case, packed: bytes) -> None:
    backbone = load.build(case.network, case.nodes[:1], packed)
    maps = backbone.differentiable_maps(frames(case))[case.nodes[0]]
    parameters = dict(backbone.network.named_parameters())
    gradients = torch.autograd.grad(
        maps.square().sum(), list(parameters.values()), allow_unused=True
    )
    reached = {
        name.removeprefix("model.")
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    }
    assert reached
    assert not [name for name in reached for part in case.behind if name.startswith(f"{part}.")]


def test_seeded_weights_leave_the_global_generator_alone(case: Case, packed: bytes) -> None:
    before = torch.get_rng_state()
    assert load.random_filters(case.network, 3) == packed
    load.build(case.network, case.nodes, packed)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_node_lists_near_ones(case: Case) -> None:
    wrong = f"{case.nodes[0]}x"
    with pytest.raises(WeightsError, match=f"nodes of {case.network}, got '{wrong}'; known are"):
        load.node_shapes(case.network, (wrong,), case.px)


def test_weights_of_another_network_are_refused(case: Case) -> None:
    other = safetensors.torch.save({"x": torch.zeros(1)})
    with pytest.raises(WeightsError, match=f"the weights do not fit {case.network}"):
        load.build(case.network, case.nodes, other)


def test_maps_with_the_channels_last_are_turned() -> None:
    """torchvision's Swin computes [f, h, w, C] and turns it itself behind its last norm."""
    packed = load.random_filters("swin_t", 0)
    maps = load.build("swin_t", ("norm", "permute"), packed).maps(frames(CASES[0]))
    assert load.node_shapes("swin_t", ("norm",), 64) == {"norm": (768, 2, 2)}
    assert torch.equal(maps["norm"], maps["permute"])


def pixels(model: nn.Module, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images.permute(0, 3, 1, 2) / 255 - mean) / std


def test_patch_tokens_are_the_map_of_the_patches() -> None:
    """Token p of the features that timm gives, behind the class token, is row p // 10, column p %
    10."""
    packed = load.random_filters("timm:test_vit", 0)
    images = frames(VIT)
    model = timm.create_model("test_vit").eval()
    model.load_state_dict(safetensors.torch.load(packed))
    with torch.inference_mode():
        tokens = model.forward_features(pixels(model, images))
    maps = load.build("timm:test_vit", ("tokens", "patch_embed"), packed).maps(images)
    assert maps["patch_embed"].shape == maps["tokens"].shape == (2, 64, 10, 10)
    for place in (0, 7, 38, 99):
        torch.testing.assert_close(
            maps["tokens"][:, :, place // 10, place % 10],
            tokens[:, 1 + place],
            rtol=1e-4,
            atol=1e-5,
        )


TOWERS = [
    ("vit_small_patch14_dinov2.lvd142m", 518, (384, 37, 37), 0.485),
    ("vit_small_patch16_dinov3.lvd1689m", 256, (384, 16, 16), 0.485),
    ("vit_base_patch16_siglip_224.webli", 224, (768, 14, 14), 0.5),
    ("vit_base_patch16_clip_224.openai", 224, (768, 14, 14), 0.48145466),
]
"""Image towers of today: name in timm, side of the picture, maps, mean of red."""


@pytest.mark.parametrize(("network", "size_px", "shape", "mean"), TOWERS)
def test_image_towers_give_their_patches_as_maps(
    network: str, size_px: int, shape: tuple[int, int, int], mean: float
) -> None:
    assert load.node_shapes(f"timm:{network}", ("tokens",), size_px) == {"tokens": shape}
    assert load.FAMILIES["timm"].preprocessing(network)[0][0] == mean


@pytest.mark.slow
@pytest.mark.parametrize(("network", "size_px", "shape", "mean"), TOWERS[1:3])
def test_patches_of_a_tower_are_those_that_timm_gives(
    network: str, size_px: int, shape: tuple[int, int, int], mean: float
) -> None:
    packed = load.random_filters(f"timm:{network}", 0)
    model = timm.create_model(network).eval()
    model.load_state_dict(safetensors.torch.load(packed))
    images = torch.randint(0, 256, (1, size_px, size_px, 3), dtype=torch.uint8)
    with torch.inference_mode():
        tokens = model.forward_features(pixels(model, images))[:, model.num_prefix_tokens :]
    maps = load.build(f"timm:{network}", ("tokens",), packed).maps(images)["tokens"]
    assert tokens.shape[1] == shape[1] * shape[2]
    expected = tokens.transpose(1, 2).reshape(1, *shape)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)


def test_a_node_of_a_residual_network_of_timm() -> None:
    packed = load.random_filters("timm:test_resnet", 0)
    images = frames(RESNET)
    model = timm.create_model("test_resnet").eval()
    model.load_state_dict(safetensors.torch.load(packed))
    with torch.inference_mode():
        expected = model.forward_features(pixels(model, images))
    found = load.build("timm:test_resnet", ("layer4",), packed).maps(images)["layer4"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_register_tokens_are_dropped_too() -> None:
    assert load.node_shapes("timm:vit_small_patch14_reg4_dinov2", ("blocks.3",), 518) == {
        "blocks.3": (384, 37, 37)
    }


@given(
    st.integers(1, 3), st.integers(0, 5), st.integers(1, 4), st.integers(2, 5), st.integers(0, 9)
)
def test_layouts_move_values_and_change_none(
    count: int, prefix: int, channels: int, side: int, seed: int
) -> None:
    maps = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([torch.ones(count, prefix, channels), maps.flatten(2).mT], dim=1)
    assert torch.equal(Layout(num_prefix_tokens=prefix).as_maps(tokens), maps)
    assert torch.equal(Layout().as_maps(maps), maps)
    assert torch.equal(Layout().as_maps(maps[..., 0, 0]), maps[..., :1, :1])
    if channels != side:
        turning = Layout(may_be_channels_last=True)
        assert torch.equal(turning.as_maps(maps.permute(0, 2, 3, 1)), maps)
        assert torch.equal(turning.as_maps(maps), maps)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(), (2, 5, 3)),
        (Layout(), (2, 0, 3)),
        (Layout(), (2, 3, 4, 4, 4)),
        (Layout(), (2,)),
        (Layout(may_be_channels_last=True), (2, 4, 4, 4)),
        (Layout(may_be_channels_last=True), (2, 3, 4, 5)),
    ],
)
def test_outputs_of_no_known_form(layout: Layout, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^(an output|tokens) of shape \[2"):
        layout.as_maps(torch.zeros(shape))


def test_a_size_that_a_transformer_does_not_take_names_the_setting() -> None:
    network = "timm:vit_tiny_patch16_224"
    with pytest.raises(WeightsError, match=f"picture.crop_px: {network} does not take 64 px"):
        load.node_shapes(network, ("blocks.2",), 64)


def test_wrong_names_of_timm() -> None:
    with pytest.raises(WeightsError, match=r"got 'timm:vit_smal_patch16'; known are .*vit_small"):
        load.node_shapes("timm:vit_smal_patch16", ("blocks.2",), 224)
    with pytest.raises(WeightsError, match=r"resnet18 of timm has weights resnet18.a1_in1k,.*name"):
        load.node_shapes("timm:resnet18.a3", ("layer4",), 224)


def test_a_module_that_never_runs_is_no_node() -> None:
    model = nn.ModuleDict({"used": nn.Identity(), "idle": nn.Identity()})
    model.forward = model["used"].__call__
    assert torch.equal(Timm().cut(model, ("used",))(torch.ones(1))["used"], torch.ones(1))
    with pytest.raises(WeightsError, match=r"modules that run for a frame, got \['idle'\]"):
        Timm().cut(model, ("used", "idle"))(torch.ones(1))


def test_preprocessing_is_that_of_the_weights_named() -> None:
    family, augreg = load.FAMILIES["timm"], "vit_small_patch16_224.augreg_in21k"
    assert family.preprocessing(augreg) == ((0.5,) * 3, (0.5,) * 3)
    assert family.preprocessing("resnet18.a1_in1k")[0] == (0.485, 0.456, 0.406)


def test_published_weights_of_timm_are_named_with_the_network() -> None:
    assert load.published("timm:resnet18.a1_in1k", "pretrained") == "timm resnet18.a1_in1k"
    with pytest.raises(
        WeightsError,
        match=r"got 'a1_in1k'; .*named with the network: describe.backbone=timm:resnet18.a1",
    ):
        load.published("timm:resnet18", "a1_in1k")


def test_published_weights_of_timm_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(
        WeightsError, match=r"no route to the hub\)\. .*--set describe.weights=FILE"
    ):
        load.load_published("timm:resnet18.a1_in1k", "pretrained")


def test_published_weights_of_timm_are_what_its_hub_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = load.random_filters("timm:test_resnet", 5)
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda *_, **__: safetensors.torch.load(packed),
    )
    assert load.load_published("timm:test_resnet", "pretrained") == packed


def test_without_timm_its_networks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match=r"install video-fisher\[timm\]"):
        load.node_shapes("timm:test_vit", ("blocks.2",), 160)


@pytest.mark.parametrize(
    ("network", "node", "shape"),
    [("resnet18", "layer1", (64, 16, 16)), ("swin_t", "features.1", (96, 16, 16))],
)
def test_a_part_of_random_filters_gives_finite_maps(
    network: str, node: str, shape: tuple[int, ...]
) -> None:
    """Batch normalisation, and tables of places that must not be random, are in them."""
    made = load.random_part(network, (node,), "cpu")
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    maps = made.maps(pictures)[node]
    assert maps.shape == (2, *shape)
    assert maps.isfinite().all()
    assert maps.std() > 0
