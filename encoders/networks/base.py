"""The contract of every network that writes SCORES.

A network says what it reads, how it is trained and what it scores; sampling, augmentation, the
training loop, checkpoints, tests of clips and crops, and tables are the same for all:

    reads        the kind of its frames: `pixels`, uint8 pictures or stacks of flow [b, n, h, w, c];
                 or `maps` of a frozen backbone, float [b, n, C, h, w]
    frames       n of a clip, in order of time, as `clip_places` draws them: by default one snippet
                 of `snippet_frames` consecutive frames out of each of `settings.segments` equal
                 parts of a video
    outputs      {name: scores [b, K] before the softmax}, by default one of each subnetwork;
                 `noise` for its dropout in training
    losses       means over the clips of a batch; `total` is minimised. By default the sum of the
                 class losses of all outputs
    scores       [b, K], of the outputs: by default their mean. They become SCORES
    training     phases of named parameter groups, with learning rates, schedules, decay, clipping
    flow         `num_flows` of a clip are given to `losses` where `settings.learns_flow`; in a
                 phase that `reads_pairs` the examples are pairs of frames with true flow
    files        what is written: {name: bytes}, backbones as `describe.weights` takes them
    maps         of each subnetwork's backbone, which its classifier reads: its outputs and class
                 activation maps follow

A network of other parts overrides `outputs`; without a backbone, such as one that reads maps, it
has no bodies and `subnetworks = ()`. Modules of its own are trained in every phase.

To add one: a file with a subclass of `Network`, a record of settings, one line in
`encoders.networks.registry`, and a field of its name in `pipelines.settings.config.Config`. The
contract suite tests/encoders/networks/test_contract.py takes it up by itself.

Letters: b clips, n frames of a clip, K classes, C channels, h and w sides of frames or maps.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.backbones import load
from encoders.backbones.flow_input import COLOURS
from encoders.networks import training
from encoders.networks.body import Body, Source
from encoders.networks.settings import NetworkSettings, SnippetSettings
from encoders.tensor_files import load_tensors, save_tensors

CLASSIFIERS = "classifiers.safetensors"
"""File of all that is not a backbone."""

INITIAL_STD = 0.001
"""Standard deviation of a new classifier's weights (TSN's code)."""


class Clips(NamedTuple):
    """A batch of clips.

    Attributes:
        frames: [b, n, ...] as `Network.reads` says.
        flow: float [b, t, h, w, 2], true flow of the first t frames in px, u to the right and v
            downwards, NaN where it is not known; for networks that learn to see it, else None.
    """

    frames: Tensor
    flow: Tensor | None = None


class Classifier(nn.Module):
    """A linear layer on the mean of maps [f, C, h, w] over their positions.

    Args:
        normalises: a LayerNorm stands before it, without which networks without batch normalisation
            diverge.
    """

    def __init__(
        self, channels: int, num_classes: int, dropout: float, *, normalises: bool, seed: int
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(channels) if normalises else None
        self.linear = nn.Linear(channels, num_classes)
        drawn = torch.randn(num_classes, channels, generator=training.generator("cpu", seed))
        with torch.no_grad():
            self.linear.weight.copy_(INITIAL_STD * drawn)
            self.linear.bias.zero_()

    def forward(self, maps: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return scores [f, K]; with noise a share of the values is dropped."""
        vectors = maps.mean((2, 3))
        if self.norm is not None:
            vectors = self.norm(vectors)
        return self.linear(dropped(vectors, self.dropout, noise))

    def activation_maps(self, maps: Tensor) -> Tensor:
        """Return class activation maps [f, K, h, w]: their mean over positions is the score.

        The LayerNorm divides by what it divides the mean vector by, so that it is linear here too.
        """
        if self.norm is not None:
            centred = maps - maps.mean(1, keepdim=True)
            variance = centred.mean((2, 3)).square().mean(1)
            centred = centred / (variance + self.norm.eps).sqrt()[:, None, None, None]
            weight, bias = (v.view(1, -1, 1, 1) for v in (self.norm.weight, self.norm.bias))
            maps = centred * weight + bias
        return functional.conv2d(maps, self.linear.weight[:, :, None, None], self.linear.bias)


def dropped(values: Tensor, share: float, noise: torch.Generator | None) -> Tensor:
    """Return the values with a share of them 0 and the others larger; as they are without noise."""
    if noise is None or not share:
        return values
    kept = torch.rand(values.shape, generator=noise, device=values.device) >= share
    return values * kept / (1 - share)


class Network(nn.Module, ABC):
    """A network that writes SCORES.

    Attributes:
        name: the registry key.
        reads: see above.
        reads_pairs: the phase under way learns from pairs of frames with true flow.
        num_flows: flows of a clip that the network learns, from its first frame on.
        snippet_frames: consecutive frames of a snippet.
        sees_order: a clip from its end to its beginning has other scores.
        subnetworks: names of its backbones.
        bodies: {subnetwork: backbone}; none where it reads maps.
        classifiers: {subnetwork: what scores its maps}.
    """

    name: ClassVar[str]
    reads: Literal["pixels", "maps"] = "pixels"
    reads_pairs: bool = False
    num_flows: int = 0
    snippet_frames: ClassVar[int] = 1
    sees_order: ClassVar[bool] = False
    subnetworks: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        bodies: dict[str, Body],
        settings: NetworkSettings,
        num_classes: int,
        seed: int,
        classifiers: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.num_classes = settings, num_classes
        self.bodies = nn.ModuleDict(bodies)
        self.classifiers = nn.ModuleDict(
            classifiers
            if classifiers is not None
            else {
                name: Classifier(
                    body.channels,
                    num_classes,
                    settings.dropout,
                    normalises=not body.batch_norms,
                    seed=seed + place,
                )
                for place, (name, body) in enumerate(bodies.items())
            }
        )

    @classmethod
    @abstractmethod
    def build(
        cls, source: Source, settings: NetworkSettings, num_classes: int, seed: int = 0
    ) -> Self:
        """Return the network with the backbone's weights, and new classifiers.

        Raises:
            WeightsError: the backbone does not fit the network.
        """

    @abstractmethod
    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        """Return {subnetwork: maps [b, m, C, h, w]} of frames [b, n, ...]; none where m is 0."""

    def body(self, name: str) -> Body:
        """Return a subnetwork's backbone."""
        body = self.bodies[name]
        assert isinstance(body, Body)
        return body

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs."""
        return self.subnetworks

    def clip_places(self, num_runs: int, run_frames: int, draw: torch.Generator) -> Sequence[int]:
        """Draw the frames of a clip, as places among the kept frames of a video: `num_runs` runs of
        `run_frames` consecutive ones."""
        assert isinstance(self.settings, SnippetSettings)
        return snippet_places(
            num_runs, run_frames, self.settings.segments, self.snippet_frames, draw
        )

    def outputs(self, frames: Tensor, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return {subnetwork: scores [b, K]}, the mean over the clip before the softmax."""
        return {
            name: self.classifiers[name](maps.flatten(0, 1), noise)
            .unflatten(0, maps.shape[:2])
            .mean(1)
            for name, maps in self.maps(frames).items()
        }

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the scores [b, K] of the outputs: their mean."""
        return torch.stack(list(outputs.values())).mean(0)

    def losses(
        self, clips: Clips, targets: Tensor, noise: torch.Generator | None, *, multi_label: bool
    ) -> dict[str, Tensor]:
        """Return mean losses over a batch of clips with targets [b, K] of 0 and 1."""
        parts = {
            name: class_loss(scores, targets, multi_label=multi_label)
            for name, scores in self.outputs(clips.frames, noise).items()
        }
        return {"total": torch.stack(list(parts.values())).sum(), **parts}

    @torch.no_grad()
    def activation_maps(self, frames: Tensor) -> dict[str, Tensor]:
        """Return {subnetwork: class activation maps [b, m, K, h, w]} (VU 5.4.5)."""
        found = {}
        for name, maps in self.maps(frames).items():
            classifier = self.classifiers[name]
            assert isinstance(classifier, Classifier)
            found[name] = classifier.activation_maps(maps.flatten(0, 1)).unflatten(
                0, maps.shape[:2]
            )
        return found

    # --- training -----------------------------------------------------------------------------

    def trained(self, phase: int) -> tuple[str, ...]:
        """Return the subnetworks whose backbone is trained in a phase; classifiers always are."""
        return self.subnetworks

    def rate_factor(self, phase: int) -> float:
        """Return the factor of a phase's learning rates."""
        return 1.0

    def phases(self) -> list[training.Phase]:
        """Return the phases of the training."""
        settings = self.settings
        return [
            training.Phase(
                num_steps=num_steps,
                groups=tuple(self._groups(phase)),
                optimiser=_optimiser(settings),
                rate=_rate(settings),
                clip_norm=settings.clip_norm,
                begin=partial(self.begin, phase),
            )
            for phase, num_steps in enumerate(settings.steps)
        ]

    def begin(self, phase: int) -> None:
        """Set which batch normalisations use the statistics of the batch in a phase."""
        self.eval()
        self.current = self.trained(phase)
        for name in self.current:
            norms = self.body(name).batch_norms
            count = {"fixed": 0, "first": 1, "all": len(norms)}[self.settings.batch_norm]
            for norm in norms[:count]:
                norm.train()

    current: tuple[str, ...] = ()
    """Subnetworks whose backbone is being trained: the others need no gradients."""

    def buffers_in_training(self) -> list[Tensor]:
        """Return the statistics that a training step changes."""
        norms = [norm for name in self.current for norm in self.body(name).batch_norms]
        return [
            buffer
            for norm in norms
            if norm.training
            for buffer in norm.buffers()
            if buffer.is_floating_point()
        ]

    def own_parameters(self, phase: int) -> dict[str, nn.Parameter]:
        """Return what a phase trains beside the backbones: all that is no part of one."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("bodies.")}

    def _groups(self, phase: int) -> Iterable[training.Group]:
        settings, named = self.settings, self.own_parameters(phase)
        new = set(named) if settings.classifier_rate_factor != 1 else set()
        first = set()
        for name in self.trained(phase):
            own = self.body(name).trainable()
            named |= {f"{name}.{key}": value for key, value in own.items()}
            first |= {f"{name}.{key}" for key in self.body(name).first_of_flow}
        for is_bias, is_first, is_new in itertools.product((False, True), repeat=3):
            chosen = tuple(
                value
                for key, value in named.items()
                if (key.endswith(".bias"), key in first, key in new) == (is_bias, is_first, is_new)
            )
            rate = settings.learning_rate * self.rate_factor(phase)
            rate *= settings.bias_rate_factor if is_bias else 1
            rate *= settings.flow_first_rate_factor if is_first else 1
            rate *= settings.classifier_rate_factor if is_new else 1
            decay = 0.0 if is_bias and not settings.decay_biases else settings.decay
            if chosen:
                yield training.Group(parameters=chosen, learning_rate=rate, decay=decay)

    # --- files --------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Return the network: each backbone as `describe.weights` takes it, and the rest."""
        rest = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("bodies.")
        }
        backbones = {f"{name}.safetensors": self.body(name).model for name in self.bodies}
        return {
            **{name: load.pack(model.cpu().state_dict()) for name, model in backbones.items()},
            CLASSIFIERS: save_tensors(rest, "network", {"name": self.name}),
        }

    def tensors_of(self, files: dict[str, bytes]) -> dict[str, Tensor]:
        """Return the tensors that `files` wrote, by their names in the network; a backbone that is
        not there has none."""
        found = load_tensors(files[CLASSIFIERS])
        for name in self.bodies:
            if data := files.get(f"{name}.safetensors"):
                found |= {f"bodies.{name}.model.{k}": v for k, v in load_tensors(data).items()}
        return found

    def load_files(self, files: dict[str, bytes]) -> Self:
        """Return the network with the tensors that `files` wrote."""
        self.load_state_dict(self.tensors_of(files))
        return self.eval()

    def start_from(self, files: dict[str, bytes]) -> Self:
        """Return the network with the weights of another one, which `files` wrote.

        Scores of other classes stay as they were drawn, as do parts that the other one has not. A
        network of stacks of flow takes the mean over colours from one of pictures.

        Raises:
            ValueError: a tensor of another shape, or none that this network has.
        """
        own, taken = self.state_dict(), {}
        for name, value in self.tensors_of(files).items():
            if name not in own:
                continue
            shape = own[name].shape
            if value.ndim == 4 and value.shape[1] == COLOURS != shape[1]:
                value = value.mean(1, keepdim=True).repeat(1, shape[1], 1, 1)
            others = [size for size, its in zip(shape, value.shape, strict=False) if size != its]
            is_of_classes = name.startswith("classifiers.") and others == [self.num_classes]
            if value.shape == shape:
                taken[name] = value
            elif not is_of_classes or value.ndim != len(shape):
                raise ValueError(
                    f"{self.name}.start: expected {name} {list(shape)}, got {list(value.shape)}; "
                    "start from a network with the same settings and backbone"
                )
        if not taken:
            raise ValueError(
                f"{self.name}.start: expected tensors of a network {self.name}, got none"
            )
        self.load_state_dict(taken, strict=False)
        return self


def class_loss(scores: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Return the mean cross-entropy of scores [b, K]: of the softmax, or of each class."""
    return class_losses(scores, targets, multi_label=multi_label).mean()


def class_losses(scores: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Return the cross-entropy [b] of each row of scores [b, K], over the classes that count."""
    scores, targets = training.counted(scores, targets)
    if multi_label:
        loss = functional.binary_cross_entropy_with_logits
        return loss(scores, targets, reduction="none").sum(1)
    return functional.cross_entropy(scores, targets, reduction="none")


def _optimiser(settings: NetworkSettings) -> partial[torch.optim.Optimizer]:
    if settings.optimiser == "adam":
        return partial(torch.optim.Adam)
    return partial(torch.optim.SGD, momentum=settings.momentum, lr=settings.learning_rate)


def _rate(settings: NetworkSettings) -> training.Rate:
    if settings.rate_every:
        return training.decays(settings.rate_every, settings.rate_factor)
    return training.falls_at(settings.rate_at, settings.rate_factor)


def snippet_places(
    num_runs: int, run_frames: int, segments: int, snippet: int, draw: torch.Generator
) -> Sequence[int]:
    """Draw the frames of a clip: a random snippet out of each of equal parts of a video.

    Args:
        num_runs: runs of `run_frames` consecutive frames that are kept of the video, in order.
        snippet: consecutive frames of a snippet, at most `run_frames`.

    Returns:
        [segments * snippet] places among the kept frames, ascending; a short video's are repeated.
    """
    parts = torch.arange(segments) + torch.rand(segments, generator=draw, dtype=torch.float64)
    run = (parts * num_runs / segments).long().clamp(max=num_runs - 1)
    offset = torch.randint(run_frames - snippet + 1, (segments,), generator=draw)
    places = (run * run_frames + offset)[:, None] + torch.arange(snippet)
    return places.flatten().tolist()
