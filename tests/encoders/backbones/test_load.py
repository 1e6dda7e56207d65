"""Networks by name, with real ImageNet weights on real photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import models

from encoders.backbones import load
from encoders.backbones.load import WeightsError


def photograph(path: Path) -> torch.Tensor:
    image = Image.open(path).convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
    return torch.from_numpy(np.array(image))[None]


@pytest.fixture(scope="module")
def packed(data: Path) -> dict[str, bytes]:
    names = ("squeezenet1_0", "mobilenet_v2")
    files = {name: data / "weights" / f"{name}.safetensors" for name in names}
    return {name: load.load_file(f.read_bytes(), f.name) for name, f in files.items()}


@pytest.mark.parametrize(
    ("network", "node"), [("squeezenet1_0", "features.12"), ("mobilenet_v2", "features.18")]
)
def test_a_cut_network_gives_the_whole_networks_maps(
    packed: dict[str, bytes], data: Path, network: str, node: str
) -> None:
    """The maps before the head, put through the head by hand, name what is in the picture."""
    whole = models.get_model(network, weights=None).eval()
    whole.load_state_dict(
        {
            k: v.float() if v.is_floating_point() else v
            for k, v in safetensors.torch.load(packed[network]).items()
        }
    )
    backbone = load.build(network, (node,), packed[network])
    files = sorted((data / "weights" / "check").glob("*.jpg"))
    categories = models.get_model_weights(network).DEFAULT.meta["categories"]
    found = []
    for file in files:
        maps = backbone.maps(photograph(file))[node]
        with torch.inference_mode():
            head = maps if network == "squeezenet1_0" else maps.mean((2, 3))
            scores = whole.classifier(head).flatten(1)
            pixels = (photograph(file).permute(0, 3, 1, 2).float() / 255).sub(
                torch.tensor(backbone.mean).view(3, 1, 1)
            ) / torch.tensor(backbone.std).view(3, 1, 1)
            expected = whole(pixels)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        found.append(categories[int(scores.argmax())])
    assert len(found) == 3
    assert {"macaw", "hotdog"} <= set(found)
    assert any("cat" in name or name == "tabby" for name in found)


@pytest.mark.parametrize(
    ("network", "nodes", "shapes"),
    [
        ("vgg19", ("pool5", "conv5_4"), {"pool5": (512, 7, 7), "conv5_4": (512, 14, 14)}),
        ("vgg16", ("pool5", "fc6"), {"pool5": (512, 7, 7), "fc6": (4096, 1, 1)}),
        ("vgg19", ("fc7",), {"fc7": (4096, 1, 1)}),
        ("resnet50", ("res5c", "pool5"), {"res5c": (2048, 7, 7), "pool5": (2048, 1, 1)}),
        ("resnet101", ("res5c", "pool5"), {"res5c": (2048, 7, 7), "pool5": (2048, 1, 1)}),
        ("resnet152", ("res5c", "pool5"), {"res5c": (2048, 7, 7), "pool5": (2048, 1, 1)}),
        ("alexnet", ("pool5", "fc7"), {"pool5": (256, 6, 6), "fc7": (4096, 1, 1)}),
        (
            "squeezenet1_0",
            ("features.12", "ga"),
            {"features.12": (512, 13, 13), "ga": (1000, 1, 1)},
        ),
        ("mobilenet_v2", ("features.18", "ga"), {"features.18": (1280, 7, 7), "ga": (1280, 1, 1)}),
        ("mobilenet_v3_small", ("ga",), {"ga": (576, 1, 1)}),
        ("densenet121", ("features",), {"features": (1024, 7, 7)}),
        (
            "vit_b_16",
            ("tokens", "conv_proj", "encoder.layers.encoder_layer_3"),
            dict.fromkeys(("tokens", "conv_proj", "encoder.layers.encoder_layer_3"), (768, 14, 14)),
        ),
        ("swin_t", ("features.1", "permute"), {"features.1": (96, 56, 56), "permute": (768, 7, 7)}),
    ],
)
def test_any_network_and_node_by_name(
    network: str, nodes: tuple[str, ...], shapes: dict[str, tuple[int, int, int]]
) -> None:
    assert load.node_shapes(network, nodes, 224) == shapes


VU_TABLE_2_1 = {
    "googlenet": {
        "pool1-norm1": (56, 64),
        "conv2-norm2": (28, 192),
        "inception 3a": (28, 256),
        "inception 3b": (28, 480),
        "inception 4a": (14, 512),
        "inception 4b": (14, 512),
        "inception 4c": (14, 512),
        "inception 4d": (14, 528),
        "inception 4e": (14, 832),
        "inception 5a": (7, 832),
        "inception 5b": (7, 1024),
    },
    "vgg16": {
        f"conv{block}_{layer}": size
        for block, layers, size in [
            (2, 2, (112, 128)),
            (3, 3, (56, 256)),
            (4, 3, (28, 512)),
            (5, 3, (14, 512)),
        ]
        for layer in range(1, layers + 1)
    },
}


@pytest.mark.parametrize("network", VU_TABLE_2_1)
def test_the_layers_of_vu_have_the_sizes_of_its_table(network: str) -> None:
    table = VU_TABLE_2_1[network]
    shapes = load.node_shapes(network, tuple(table), 224)
    assert shapes == {layer: (depth, side, side) for layer, (side, depth) in table.items()}


def test_the_layer_of_vus_table_that_vgg_16_does_not_have() -> None:
    with pytest.raises(WeightsError, match=r"got 'conv2_3'; known are .*conv2_2"):
        load.resolve_nodes("vgg16", ("conv2_3",))


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_the_layers_of_vgg_are_relus_and_pools_of_its_blocks(network: str) -> None:
    """Each alias against the module it names: the block by the widths, ReLU for convolutions."""
    with torch.device("meta"):
        features = models.get_model(network, weights=None).features
    blocks: list[list[str]] = [[]]
    for place, module in enumerate(features):
        if isinstance(module, torch.nn.ReLU):
            blocks[-1].append(f"features.{place}")
        if isinstance(module, torch.nn.MaxPool2d):
            pool = load.resolve_nodes(network, (f"pool{len(blocks)}",))
            assert list(pool.values()) == [f"features.{place}"]
            blocks.append([])
    for block, places in enumerate(blocks[:-1], start=1):
        names = tuple(f"conv{block}_{layer + 1}" for layer in range(len(places)))
        assert list(load.resolve_nodes(network, names).values()) == places


def test_conv5_4_at_448() -> None:
    assert load.node_shapes("vgg19", ("conv5_4",), 448) == {"conv5_4": (512, 28, 28)}


@pytest.mark.parametrize(
    ("px", "side"),
    [(227, 1), (322, 3), (454, 8), (643, 14), (908, 22), (1285, 34), (1816, 50)],
)
def test_convolutional_alexnet_has_the_activations_of_fk_table_1(px: int, side: int) -> None:
    assert load.node_shapes("alexnet_fcn", ("fc7",), px) == {"fc7": (4096, side, side)}


def test_convolutional_alexnet_is_alexnet_slid_over_the_image() -> None:
    """With torchvision's weights: at pool5 sides of 6 the fully connected layers, else one per
    window."""
    packed = load.random_filters("alexnet", 0)
    alexnet = load.load_model("alexnet", packed)
    pixels = torch.randint(256, (1, 259, 259, 3), generator=torch.Generator().manual_seed(1))
    backbone = load.build("alexnet_fcn", ("pool5", "fc6", "fc7"), packed)
    maps = backbone.maps(pixels.to(torch.uint8))
    assert maps["pool5"].shape == (1, 256, 7, 7)
    assert maps["fc7"].shape == (1, 4096, 2, 2)
    with torch.inference_mode():
        for row, column in ((0, 0), (1, 1), (0, 1)):
            window = maps["pool5"][:, :, row : row + 6, column : column + 6].flatten(1)
            fc6 = alexnet.classifier[:3](window)
            fc7 = alexnet.classifier[3:6](fc6)
            torch.testing.assert_close(maps["fc6"][:, :, row, column], fc6, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(maps["fc7"][:, :, row, column], fc7, rtol=1e-4, atol=1e-5)


def test_two_names_of_one_node_give_both() -> None:
    packed = load.random_filters("squeezenet1_0", 0)
    frames = torch.randint(256, (1, 64, 64, 3)).to(torch.uint8)
    maps = load.build("squeezenet1_0", ("ga", "classifier.3"), packed).maps(frames)
    assert torch.equal(maps["ga"], maps["classifier.3"])


def test_googlenet_turns_imagenets_normalisation_into_its_own() -> None:
    """Its published weights expect (x - 0.5) / 0.5."""
    packed = load.random_filters("googlenet", 0)
    frames = torch.randint(256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(2))
    maps = load.build("googlenet", ("conv1",), packed).maps(frames.to(torch.uint8))["conv1"]
    with torch.inference_mode():
        pixels = (frames.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        expected = load.load_model("googlenet", packed).conv1(pixels)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_random_filters_are_seeded_and_leave_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = (load.random_filters("squeezenet1_0", seed) for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_a_torch_file_is_read_without_unpickling(packed: dict[str, bytes]) -> None:
    state = safetensors.torch.load(packed["squeezenet1_0"])
    buffer = io.BytesIO()
    torch.save(state, buffer)
    assert load.load_file(buffer.getvalue(), "weights.pth") == packed["squeezenet1_0"]


class Hostile:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_hostile_pickle_is_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"x": Hostile()}, buffer)
    with pytest.raises(WeightsError, match="expected a safetensors or torch file"):
        load.load_file(buffer.getvalue(), "weights.pth")


@pytest.mark.parametrize(
    ("network", "nodes", "message"),
    [
        ("vgg91", ("pool5",), "expected a torchvision network .*got 'vgg91'; known are vgg19"),
        ("vgg19", ("pool6",), "expected nodes of vgg19, got 'pool6'; known are pool5"),
        ("vgg19", ("pool5", "flaten"), "expected nodes of vgg19, got 'flaten'; known are flatten"),
        ("hub:vgg19", ("pool5",), "expected NAME or timm:NAME, got 'hub:vgg19'"),
    ],
)
def test_wrong_names_list_near_ones(network: str, nodes: tuple[str, ...], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load.node_shapes(network, nodes, 224)


def test_weights_of_another_network_do_not_fit(packed: dict[str, bytes]) -> None:
    with pytest.raises(WeightsError, match="do not fit vgg19"):
        load.build("vgg19", ("pool5",), packed["mobilenet_v2"])


def test_unknown_published_weights_list_the_known() -> None:
    with pytest.raises(WeightsError, match=r"vgg19 has .'DEFAULT', 'IMAGENET1K_V1'"):
        load.published("vgg19", "IMAGENET")


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"could not be downloaded .*--set describe.weights=FILE"
    ):
        load.load_published("squeezenet1_0", "IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("network", "node", "px"), [("vit_b_16", "tokens", 64), ("alexnet_fcn", "fc7", 64)]
)
def test_a_size_that_the_network_does_not_take_names_the_setting(
    network: str, node: str, px: int
) -> None:
    with pytest.raises(WeightsError, match=f"picture.crop_px: {network} does not take 64 px"):
        load.node_shapes(network, (node,), px)


def test_outputs_that_are_no_maps_are_refused() -> None:
    """Within a ConvNeXt block maps are [f, h, w, C]; attention gives a pair."""
    with pytest.raises(WeightsError, match=r"got \[1, 56, 56, 96\] from convnext_tiny/"):
        load.node_shapes("convnext_tiny", ("features.1.0.block.2",), 224)
    attention = "encoder.layers.encoder_layer_0.self_attention"
    with pytest.raises(WeightsError, match=f"got a tuple from vit_b_16/{attention}"):
        load.node_shapes("vit_b_16", (attention,), 224)
