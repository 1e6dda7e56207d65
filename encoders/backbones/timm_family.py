"""timm's networks (the optional extra `timm`); any module of a network is a node.

A network is named as timm prints it: `vit_small_patch16_224`, or with the tag of its weights,
`vit_small_patch16_224.augreg_in21k`. The tag is part of the network's name, because the mean and
the standard deviation of the pixels belong to it.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from encoders.backbones.family import Family, Layout, WeightsError, cannot_download, kept, near


class Timm(Family):
    """Networks by timm's names. `tokens` is the last normalised output of a vision transformer."""

    def model(self, network: str, device: str) -> nn.Module:
        timm = _timm()
        _config(network)
        with torch.device(device):
            return timm.create_model(network, pretrained=False).eval()

    def loadable(self, network: str) -> nn.Module:
        # Not on the meta device: some of the tensors are in no state dict.
        with torch.random.fork_rng(devices=[]):
            return self.model(network, "cpu")

    def nodes(self, network: str) -> list[str]:
        model = self.model(network, "meta")
        names = [name for name, _ in model.named_modules() if name]
        return [*(["tokens"] if _has_tokens(model) else []), *names]

    def cut(self, model: nn.Module, nodes: tuple[str, ...]) -> nn.Module:
        return _Cut(model, nodes)

    def layout(self, model: nn.Module) -> Layout:
        return Layout(
            num_prefix_tokens=getattr(model, "num_prefix_tokens", 0),
            # A transformer of any image size embeds its patches as [f, h, w, C].
            may_be_channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC"
            or getattr(model, "dynamic_img_size", False),
        )

    def preprocessing(self, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        config = _config(network)
        return tuple(config.mean), tuple(config.std)

    def published(self, network: str, weights: str) -> str:
        config = _config(network)
        tagged = [f"describe.backbone=timm:{name}" for name in _tags(network)]
        if weights != "pretrained" or not config.has_weights:
            raise WeightsError(
                f"describe.weights: of timm:{network} expected pretrained, a file or a URI, got "
                f"{weights!r}; the weights' tag is named with the network: "
                f"{', '.join(tagged) or 'there are none'}"
            )
        return f"timm {config.architecture}.{config.tag}"

    def download(self, network: str, weights: str) -> dict[str, Tensor]:
        self.published(network, weights)
        try:
            return _timm().create_model(network, pretrained=True).state_dict()
        except Exception as error:
            said = cannot_download(f"timm:{network}", weights, "Hugging Face", error)
            raise WeightsError(said) from error


class _Cut(nn.Module):
    """A network that runs until the last of `nodes` has its first output, by forward hooks."""

    def __init__(self, model: nn.Module, nodes: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.nodes = {node: "norm" if node == "tokens" else node for node in nodes}

    def forward(self, frames: Tensor) -> dict[str, object]:
        outputs: dict[str, object] = {}
        modules = set(self.nodes.values())

        def keep(name: str, output: object) -> None:
            # A module that runs again gives another output.
            outputs.setdefault(name, kept(output))
            if len(outputs) == len(modules):
                raise _Done

        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: keep(name, output)
            )
            for name in modules
        ]
        try:
            self.model(frames)
        except _Done:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if missing := sorted(modules - outputs.keys()):
            raise WeightsError(
                f"describe.nodes: expected modules that run for a frame, got {missing}; name others"
            )
        return {node: outputs[name] for node, name in self.nodes.items()}


class _Done(Exception):  # noqa: N818 - no error: all requested outputs are computed
    pass


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            "describe.backbone: networks of timm expect the package timm, which is not installed; "
            "install video-fisher[timm]"
        ) from error
    return timm


def _config(network: str) -> Any:
    """Return timm's `PretrainedCfg` of the network's default or tagged weights."""
    timm = _timm()
    architecture = network.partition(".")[0]
    known = timm.list_models()
    if architecture not in known:
        raise WeightsError(
            f"describe.backbone: expected a network of timm, got 'timm:{network}'; known are "
            f"{near(architecture, known)}"
        )
    tags = _tags(network)
    if "." in network and network not in tags:
        raise WeightsError(
            f"describe.backbone: {architecture} of timm has weights {', '.join(tags)}, got "
            f"'timm:{network}'; name one of these"
        )
    return timm.get_pretrained_cfg(network)


def _tags(network: str) -> list[str]:
    """Return the network's names with the tags of its published weights."""
    return _timm().list_pretrained(f"{network.partition('.')[0]}.*")


def _has_tokens(model: nn.Module) -> bool:
    return getattr(model, "num_prefix_tokens", None) is not None and hasattr(model, "norm")
