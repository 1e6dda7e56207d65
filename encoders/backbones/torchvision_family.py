"""Torchvision's classification networks; any node of the traced graph can be named."""

import urllib.error
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from encoders.backbones.family import Family, Layout, WeightsError, cannot_download, kept, near

# Their published weights expect pixels in -1..1: this switch maps ImageNet's normalisation to it.
_TRANSFORM_INPUT = ("googlenet", "inception_v3")


class _ParametersOnMeta(TorchFunctionMode):
    """Mode in which parameters are made on the meta device, and other tensors have values."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        # Layers make their parameters by this function.
        device = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **device})


class Torchvision(Family):
    """Networks by torchvision's names."""

    def model(self, network: str, device: str) -> nn.Module:
        known = models.list_models(module=models)
        if network not in known:
            raise WeightsError(
                "describe.backbone: expected a torchvision network (or timm:NAME, alexnet_fcn), "
                f"got {network!r}; known are {near(network, known)}"
            )
        switches = {"transform_input": True, "init_weights": False}
        options: dict[str, Any] = switches if network in _TRANSFORM_INPUT else {}
        # RegNet reads sizes of layers from tensors as it is built, and meta tensors have no values.
        on_meta = device == "meta" and network.startswith("regnet")
        with _ParametersOnMeta() if on_meta else torch.device(device):
            return models.get_model(network, weights=None, **options).eval().to(device)

    def loadable(self, network: str) -> nn.Module:
        return self.model(network, "meta")

    def nodes(self, network: str) -> list[str]:
        return get_graph_node_names(self.model(network, "meta"), suppress_diff_warning=True)[1]

    def cut(self, model: nn.Module, nodes: tuple[str, ...]) -> nn.Module:
        names = {node: node for node in nodes}
        cut = create_feature_extractor(model, return_nodes=names, suppress_diff_warning=True)
        *_, output = cut.graph.nodes
        for node in output.all_input_nodes:
            if len(node.users) > 1:
                with cut.graph.inserting_after(node):
                    copy = cut.graph.call_function(kept, (node,))
                output.replace_input_with(node, copy)
        cut.recompile()
        return cut

    def layout(self, model: nn.Module) -> Layout:
        return Layout(
            num_prefix_tokens=int(hasattr(model, "class_token")),
            may_be_channels_last=isinstance(model, models.SwinTransformer),
        )

    def preprocessing(self, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # DEFAULT is a member of each such enum, but not of their base class.
        transforms = models.get_model_weights(network)["DEFAULT"].transforms()
        return tuple(transforms.mean), tuple(transforms.std)

    def published(self, network: str, weights: str) -> str:
        return _record(network, weights).url.rpartition("/")[2]

    def download(self, network: str, weights: str) -> dict[str, Tensor]:
        record = _record(network, weights)
        try:
            return record.get_state_dict(progress=False, check_hash=True)
        except (urllib.error.URLError, OSError) as error:
            raise WeightsError(cannot_download(network, weights, record.url, error)) from error


def _record(network: str, weights: str) -> models.WeightsEnum:
    known = models.get_model_weights(network).__members__
    if weights not in known:
        raise WeightsError(
            f"describe.weights: {network} has {sorted(known)}, got {weights!r}; name one of these, "
            "or a file or URI of a state dict"
        )
    return known[weights]
