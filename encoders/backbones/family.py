"""Interface of a source of networks (torchvision, timm, our own), and outputs as maps.

Letters: f frames, C channels, h and w the map's height and width, N tokens of a transformer.
"""

import difflib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class WeightsError(ValueError):
    """Weights that are not available or do not fit; the message is for the user as it is."""


def cannot_download(network: str, weights: str, at: str, error: Exception) -> str:
    """Return what is said where weights cannot be downloaded, with the three ways to give them.

    Args:
        at: the URL, or whose library fetches them.
    """
    cache = torch.hub.get_dir()
    return (
        f"describe.weights: {network} {weights} could not be downloaded from {at} "
        f"({type(error).__name__}: {str(error)[:200]}). Three ways to give weights: a file or URI, "
        "--set describe.weights=FILE; the download put where its library looks, "
        f"{cache}/checkpoints for torchvision, HF_HOME for timm; random filters for a trial, whose "
        "accuracy is not the method's, --set describe.weights=random:0"
    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Arrangement of a network's outputs.

    Attributes:
        num_prefix_tokens: class and register tokens, which stand before the patch tokens.
        may_be_channels_last: some 4-D outputs are [f, h, w, C]; two equal sides show it.
    """

    num_prefix_tokens: int = 0
    may_be_channels_last: bool = False

    def as_maps(self, output: Tensor) -> Tensor:
        """Return float32 (float64 stays) maps [f, C, h, w] with the values of a node's output.

        [f, C, h, w] stays, [f, h, w, C] is turned, a vector [f, C] is a map of one position, and
        tokens [f, N, C] are a square map of the patches, without the class and register tokens.

        Raises:
            ValueError: an output of another form.
        """
        maps = self._arranged(output)
        if not maps.is_floating_point():
            raise ValueError(f"an output of {maps.dtype}")
        return maps if maps.element_size() == 8 else maps.float()

    def _arranged(self, output: Tensor) -> Tensor:
        if output.ndim == 2:
            return output[:, :, None, None]
        if output.ndim == 3:
            return self._patches(output)
        if output.ndim != 4:
            raise ValueError(f"an output of shape {list(output.shape)}")
        if not self.may_be_channels_last:
            return output
        first, middle, last = output.shape[1:]
        if (first == middle) == (middle == last):
            raise ValueError(
                f"an output of shape {list(output.shape)}, where the channels cannot be told"
            )
        return output.permute(0, 3, 1, 2) if first == middle else output

    def _patches(self, tokens: Tensor) -> Tensor:
        # Before a network adds its class token, as after its patch embedding, there is none to
        # drop.
        for num_prefix in (self.num_prefix_tokens, 0):
            patches = tokens[:, num_prefix:]
            side = math.isqrt(patches.shape[1])
            if side > 0 and side**2 == patches.shape[1]:
                return patches.transpose(1, 2).unflatten(2, (side, side))
        raise ValueError(f"tokens of shape {list(tokens.shape)}, no square of patches")


class Family(ABC):
    """Networks of one source, by name."""

    @abstractmethod
    def model(self, network: str, device: str) -> nn.Module:
        """Return the network in evaluation mode; on "meta" nothing is allocated or initialised.

        Elsewhere torch's global generator gives its weights.

        Raises:
            WeightsError: no such network; lists near names.
        """

    @abstractmethod
    def loadable(self, network: str) -> nn.Module:
        """Return the network, ready for `load_state_dict(assign=True)`; complete after it."""

    @abstractmethod
    def nodes(self, network: str) -> list[str]:
        """Return all names for `cut`, in the order of computation; prefixes name modules too."""

    @abstractmethod
    def cut(self, model: nn.Module, nodes: tuple[str, ...]) -> nn.Module:
        """Return a module from frames [f, 3, h, w] to {node: output}, up to the deepest node."""

    @abstractmethod
    def layout(self, model: nn.Module) -> Layout:
        """Return the arrangement of the network's outputs."""

    @abstractmethod
    def preprocessing(self, network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of RGB in 0..1 that belong to the weights."""

    @abstractmethod
    def published(self, network: str, weights: str) -> str:
        """Return the identity of published weights; nothing is downloaded.

        Raises:
            WeightsError: the network has no weights of that name.
        """

    @abstractmethod
    def download(self, network: str, weights: str) -> dict[str, Tensor]:
        """Return published weights, downloaded or from the library's cache.

        Raises:
            WeightsError: no such weights, or they cannot be downloaded.
        """

    def fitting(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict in the shapes of this family's network."""
        return state


def kept(output: object) -> object:
    """Return a copy of a node's output: later layers may work in place, as most ReLUs do."""
    return output.clone() if isinstance(output, Tensor) else output


def near(name: str, known: list[str]) -> str:
    """Return up to eight names like `name`, for an error message."""
    return ", ".join(difflib.get_close_matches(name, known, n=8, cutoff=0.3) or known[:8])
