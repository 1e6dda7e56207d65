"""Networks by name: which nodes give the descriptors, and the preprocessing that belongs to the weights.

Any torchvision classification network and any of its graph nodes can be named. `ALIASES` adds the
papers' names for the layers they use. Weights and preprocessing travel together in `Backbone`.
"""

import difflib
import io
import urllib.error
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

ALIASES: dict[tuple[str, str], str] = {
    ("vgg16", "pool5"): "features.30",
    ("vgg19", "pool5"): "features.36",
    ("vgg19", "conv5_4"): "features.35",
    ("resnet50", "res5c"): "layer4",
    ("resnet152", "res5c"): "layer4",
    ("alexnet", "pool5"): "features.12",
}
"""(network, the papers' layer name) -> torchvision's node. conv5_4 and res5c are taken after ReLU."""


class WeightsError(ValueError):
    """Weights that cannot be had or do not fit; the message is meant for the user as it stands."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network cut at its deepest requested node, ready for inference.

    Attributes:
        network: maps normalised frames [f, 3, h, w] to {node: maps [f, C, h', w']}.
        mean, std: the preprocessing that goes with the network's weights, for RGB in 0..1.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        """{requested node: float32 maps [f, C, h', w']} of RGB frames uint8 [f, height, width, 3]."""
        weight = next(self.network.parameters())
        like = {"dtype": weight.dtype, "device": weight.device}
        pixels = frames.to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 255
        mean, std = (torch.tensor(values, **like).view(3, 1, 1) for values in (self.mean, self.std))
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        return {node: maps.float() for node, maps in self.network(pixels).items()}


def resolve_nodes(network: str, nodes: tuple[str, ...]) -> dict[str, str]:
    """{torchvision's node name: the requested name}, for `create_feature_extractor`.

    Raises:
        WeightsError: no such network or node; the message lists near names.
    """
    known = models.list_models(module=models)
    if network not in known:
        raise WeightsError(
            f"describe.backbone: expected a torchvision network, got {network!r}; known are "
            f"{_near(network, known)}"
        )
    graph = get_graph_node_names(_bare(network), suppress_diff_warning=True)[1]
    resolved = {}
    for requested in nodes:
        node = ALIASES.get((network, requested), requested)
        if not any(name == node or name.startswith(f"{node}.") for name in graph):
            aliases = [alias for owner, alias in ALIASES if owner == network]
            raise WeightsError(
                f"describe.nodes: expected nodes of {network}, got {requested!r}; known are "
                f"{_near(requested, aliases + graph)}"
            )
        resolved[node] = requested
    return resolved


def num_channels(network: str, nodes: tuple[str, ...], crop_px: int) -> dict[str, int]:
    """{requested node: C}, found on torch's meta device, without weights or computation.

    Raises:
        WeightsError: unknown names, or a node whose output is no map [f, C, h, w] at this size.
    """
    resolved = resolve_nodes(network, nodes)
    cut = create_feature_extractor(
        _bare(network), return_nodes=resolved, suppress_diff_warning=True
    )
    with torch.inference_mode():
        maps = cut(torch.zeros(1, 3, crop_px, crop_px, device="meta"))
    for node, value in maps.items():
        if value.ndim != 4:
            raise WeightsError(
                f"describe.nodes: expected a node with maps [f, C, h, w], got {list(value.shape)} "
                f"from {network}/{node}; name an earlier, spatial node"
            )
    return {node: value.shape[1] for node, value in maps.items()}


def published(network: str, weights: str) -> models.WeightsEnum:
    """Torchvision's record of published weights, by name such as IMAGENET1K_V1; nothing is downloaded.

    Raises:
        WeightsError: the network has no weights of that name.
    """
    known = models.get_model_weights(network).__members__
    if weights not in known:
        raise WeightsError(
            f"describe.weights: {network} has {sorted(known)}, got {weights!r}; name one of these, "
            "or a file or URI of a state dict"
        )
    return known[weights]


def load_published(network: str, weights: str) -> bytes:
    """Published weights, downloaded or from torch's cache, as safetensors bytes.

    Raises:
        WeightsError: no such weights, or they cannot be downloaded.
    """
    record = published(network, weights)
    try:
        return _pack(record.get_state_dict(progress=False, check_hash=True))
    except (urllib.error.URLError, OSError) as error:
        raise WeightsError(
            f"describe.weights: {network} {weights} could not be downloaded from {record.url} "
            f"({error}); give the weights as a file or URI instead: --set describe.weights=FILE"
        ) from error


def load_file(data: bytes, name: str) -> bytes:
    """A state dict in a safetensors or a torch file, as safetensors bytes. Nothing is unpickled.

    Raises:
        WeightsError: the file holds no state dict.
    """
    try:
        if name.endswith(".safetensors"):
            return _pack(safetensors.torch.load(data))
        return _pack(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:
        raise WeightsError(
            f"describe.weights: expected a safetensors or torch file with a state dict, got {name} "
            f"({type(error).__name__}: {error})"
        ) from error


def random_filters(network: str, seed: int) -> bytes:
    """A seeded random initialisation, for demonstrations where no weights can be had."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _pack(models.get_model(network, weights=None).state_dict())


def build(network: str, nodes: tuple[str, ...], weights: bytes, device: str = "cpu") -> Backbone:
    """The network with packed weights; only what the deepest requested node needs is run.

    Raises:
        WeightsError: unknown names, or weights of another network.
    """
    model = _bare(network)
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in safetensors.torch.load(weights).items()
    }
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"describe.weights: the weights do not fit {network}: {str(error)[:300]}"
        ) from error
    cut = create_feature_extractor(
        model, return_nodes=resolve_nodes(network, nodes), suppress_diff_warning=True
    )
    preprocessing = models.get_model_weights(network).DEFAULT.transforms()
    return Backbone(
        network=cut.to(device=device, memory_format=torch.channels_last),
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
    )


def _bare(network: str) -> nn.Module:
    # On the meta device nothing is allocated or initialised; the weights are assigned later.
    with torch.device("meta"):
        return models.get_model(network, weights=None).eval()


def _pack(state: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({key: value.contiguous() for key, value in state.items()})


def _near(name: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, known, n=8, cutoff=0.3) or known[:8])
