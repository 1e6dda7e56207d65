"""Networks by name, with real ImageNet weights on real photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import models

from encoders import backbones
from encoders.backbones import WeightsError


def photograph(path: Path) -> torch.Tensor:
    image = Image.open(path).convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
    return torch.from_numpy(np.array(image))[None]


@pytest.fixture(scope="module")
def packed(data: Path) -> dict[str, bytes]:
    names = ("squeezenet1_0", "mobilenet_v2")
    files = {name: data / "weights" / f"{name}.safetensors" for name in names}
    return {name: backbones.load_file(f.read_bytes(), f.name) for name, f in files.items()}


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
    backbone = backbones.build(network, (node,), packed[network])
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
    ("network", "nodes", "channels"),
    [
        ("vgg19", ("pool5",), {"pool5": 512}),
        ("vgg19", ("conv5_4", "pool5"), {"pool5": 512, "conv5_4": 512}),
        ("resnet152", ("res5c",), {"res5c": 2048}),
        ("squeezenet1_0", ("features.12",), {"features.12": 512}),
        ("mobilenet_v2", ("features.18",), {"features.18": 1280}),
        ("densenet121", ("features",), {"features": 1024}),
    ],
)
def test_any_network_and_node_by_name(
    network: str, nodes: tuple[str, ...], channels: dict[str, int]
) -> None:
    assert backbones.num_channels(network, nodes, 224) == channels


def test_the_papers_layers_have_the_papers_sizes() -> None:
    packed = backbones.random_filters("vgg19", 0)
    frames = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    maps = backbones.build("vgg19", ("pool5", "conv5_4"), packed).maps(frames)
    assert {node: tuple(m.shape) for node, m in maps.items()} == {
        "pool5": (1, 512, 7, 7),
        "conv5_4": (1, 512, 14, 14),
    }


def test_random_filters_are_seeded_and_leave_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = (backbones.random_filters("squeezenet1_0", seed) for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_a_torch_file_is_read_without_unpickling(packed: dict[str, bytes]) -> None:
    state = safetensors.torch.load(packed["squeezenet1_0"])
    buffer = io.BytesIO()
    torch.save(state, buffer)
    assert backbones.load_file(buffer.getvalue(), "weights.pth") == packed["squeezenet1_0"]


class Hostile:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_hostile_pickle_is_refused() -> None:
    buffer = io.BytesIO()
    torch.save({"x": Hostile()}, buffer)
    with pytest.raises(WeightsError, match="expected a safetensors or torch file"):
        backbones.load_file(buffer.getvalue(), "weights.pth")


@pytest.mark.parametrize(
    ("network", "nodes", "message"),
    [
        ("vgg91", ("pool5",), "expected a torchvision network, got 'vgg91'; known are vgg19"),
        ("vgg19", ("pool6",), "expected nodes of vgg19, got 'pool6'; known are pool5"),
        ("vgg19", ("classifier.3",), "expected a node with maps"),
        ("vit_b_16", ("encoder",), "expected a node with maps"),
    ],
)
def test_wrong_names_list_near_ones(network: str, nodes: tuple[str, ...], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        backbones.num_channels(network, nodes, 224)


def test_weights_of_another_network_do_not_fit(packed: dict[str, bytes]) -> None:
    with pytest.raises(WeightsError, match="do not fit vgg19"):
        backbones.build("vgg19", ("pool5",), packed["mobilenet_v2"])


def test_unknown_published_weights_list_the_known() -> None:
    with pytest.raises(WeightsError, match=r"vgg19 has .'DEFAULT', 'IMAGENET1K_V1'"):
        backbones.published("vgg19", "IMAGENET")


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"could not be downloaded .*--set describe.weights=FILE"
    ):
        backbones.load_published("squeezenet1_0", "IMAGENET1K_V1")
