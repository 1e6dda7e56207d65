"""ActionFlowNet (VU 4): one network of a clip's pictures that scores classes and estimates optical
flow.

An encoder's deepest maps are averaged and classified; a decoder turns the maps of all stages into
flow. Flow is learned in training alone: outputs need the encoder and the classifier, unless the
classes are read from the flow itself (`stacked`).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from encoders.backbones.flow_input import COLOURS
from encoders.backbones.resnet_18 import ClipResNet, FlowResNet, PairResNet
from encoders.networks import training
from encoders.networks.base import CLASSIFIERS, Classifier, Clips, Network, class_loss
from encoders.networks.body import Source
from encoders.networks.end_point import DIVISOR_PX, flow_loss
from encoders.networks.flow.decoder import Decoder
from encoders.networks.settings import PAIR, ActionFlowSettings, NetworkSettings
from encoders.tensor_files import load_tensors, metadata_of, save_tensors

CLIP = "clip"
"""The one output: scores of a whole clip."""

ENCODER = "encoder.safetensors"
"""File of the encoder, which a stream of clips takes as its weights."""

FILES = (ENCODER, CLASSIFIERS)

HEADER = "network"
"""Entry of a file's metadata that says which network it is of."""

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
"""Of colours in 0..1: those of torchvision's r3d_18, whose weights fit the encoder of clips."""


class ActionFlowNet(Network):
    """An encoder of 16 frames or of two, a classifier of its deepest maps, and a decoder of flow.

    Attributes:
        encoder, decoder: the decoder is None where no flow is learned.
        on_flow: the network that reads the flow, of `stacked`; else None.
        task: what the phase under way learns: flow, classes, or both.
    """

    name = "actionflownet"
    sees_order = True
    subnetworks = ()

    def __init__(
        self, channels: int, settings: ActionFlowSettings, num_classes: int, seed: int
    ) -> None:
        width, dims = settings.width, 3 if settings.frames > PAIR else 2
        with _seeded(seed):
            encoder = ClipResNet(channels, width) if dims == 3 else PairResNet(2 * channels, width)
            decoder, on_flow = None, None
            if settings.learns_flow:
                widths = encoder.widths[::-1]
                decoder = Decoder(widths, dims, has_all_scales=dims == 2)
            if settings.learns == "stacked":
                on_flow = FlowResNet(width)
        classifier = Classifier(
            encoder.widths[-1], num_classes, settings.dropout, normalises=False, seed=seed
        )
        super().__init__({}, settings, num_classes, seed, {CLIP: classifier})
        self.channels = channels
        self.own, self.encoder, self.decoder, self.on_flow = settings, encoder, decoder, on_flow
        self.task = settings.tasks[-1]
        self.num_flows = 0
        if settings.learns_flow:
            self.num_flows = settings.frames if dims == 3 else 1

    @classmethod
    def build(
        cls, source: Source, settings: NetworkSettings, num_classes: int, seed: int = 0
    ) -> Self:
        """Return the network with drawn weights: its encoder is none of the backbones."""
        assert isinstance(settings, ActionFlowSettings)
        return cls(source.channels, settings, num_classes, seed)

    @property
    def output_names(self) -> tuple[str, ...]:
        return (CLIP,)

    def maps(self, frames: Tensor) -> dict[str, Tensor]:
        """Return none: positions and times are joined before the scores."""
        return {}

    def activation_maps(self, frames: Tensor) -> dict[str, Tensor]:
        return {}

    def clip_places(self, num_runs: int, run_frames: int, draw: torch.Generator) -> Sequence[int]:
        """Draw consecutive frames out of a random run, so that their flows are there too; where
        frames are kept one by one, consecutive ones from a random one on."""
        needed, count = self.own.run_frames, num_runs * run_frames
        if run_frames < needed:
            size = self.own.frames
            end = count - size + 1 if count >= size else count
            start = int(torch.randint(end, (), generator=draw))
            return [(start + place) % count for place in range(size)]
        run = int(torch.randint(num_runs, (), generator=draw))
        first = int(torch.randint(run_frames - needed + 1, (), generator=draw))
        return [run * run_frames + first + place for place in range(self.own.frames)]

    def pixels(self, frames: Tensor) -> Tensor:
        """Return the encoder's input: [b, c, t, h, w] of uint8 [b, n, h, w, c], at most the first
        `frames`; or the first two frames side by side as channels [b, 2c, h, w]."""
        weight = next(self.encoder.parameters())
        chosen = frames[:, : self.own.frames].to(weight.device, weight.dtype) / 255
        if frames.shape[-1] == COLOURS:
            chosen = (chosen - chosen.new_tensor(MEAN)) / chosen.new_tensor(STD)
        else:
            chosen = (chosen - 0.5) / (sum(STD) / COLOURS)
        if self.own.frames > PAIR:
            return chosen.permute(0, 4, 1, 2, 3).contiguous()
        pair = chosen if chosen.shape[1] == PAIR else chosen.expand(-1, PAIR, -1, -1, -1)
        return pair.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def stages(self, frames: Tensor) -> list[Tensor]:
        """Return the maps that are classified, and of those before them, the deepest first."""
        maps = self.encoder(self.pixels(frames))
        if self.on_flow is None:
            return maps
        return self.on_flow(self._decode(maps)[-1].detach())

    def outputs(self, frames: Tensor, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        return {CLIP: self._scores(self.stages(frames)[0], noise)}

    def _scores(self, deepest: Tensor, noise: torch.Generator | None) -> Tensor:
        return self.classifiers[CLIP](deepest.flatten(2).unsqueeze(3), noise)

    def _decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        assert self.decoder is not None
        return self.decoder(maps)

    @torch.no_grad()
    def flows(self, frames: Tensor) -> Tensor:
        """Return estimated flow [b, t, h, w, 2] of frames [b, n, ...] at a quarter of their side,
        in px of the frames; the last of several is extrapolated."""
        flow = self._decode(self.encoder(self.pixels(frames)))[-1]
        flow = flow if flow.ndim == 5 else flow.unsqueeze(2)
        return flow.permute(0, 2, 3, 4, 1).float() * DIVISOR_PX

    def losses(
        self, clips: Clips, targets: Tensor, noise: torch.Generator | None, *, multi_label: bool
    ) -> dict[str, Tensor]:
        """Return the losses of the phase's task (Eq. 4.2, 4.4)."""
        parts: dict[str, Tensor] = {}
        if self.task == "classes":
            scores = self.outputs(clips.frames, noise)[CLIP]
            parts["classes"] = class_loss(scores, targets, multi_label=multi_label)
            return {"total": parts["classes"], **parts}
        assert clips.flow is not None
        maps = self.encoder(self.pixels(clips.frames))
        alphas = self.own.alphas if self.own.frames == PAIR else (1.0,)
        parts["flow"] = flow_loss(self._decode(maps), clips.flow, alphas)
        total = parts["flow"]
        if self.task == "both":
            scores = self._scores(maps[0], noise)
            parts["classes"] = class_loss(scores, targets, multi_label=multi_label)
            total = parts["classes"] + self.own.epe_weight * parts["flow"]
        return {"total": total, **parts}

    # --- training -----------------------------------------------------------------------------

    def _learning(self, phase: int) -> dict[str, nn.Module]:
        """Return the parts that a phase trains."""
        task = self.own.tasks[phase]
        if task == "classes" and self.on_flow is not None:
            return {"on_flow": self.on_flow, "classifiers": self.classifiers}
        parts: dict[str, nn.Module] = {"encoder": self.encoder}
        if task != "classes" and self.decoder is not None:
            parts["decoder"] = self.decoder
        if task != "flow":
            parts["classifiers"] = self.classifiers
        return parts

    def own_parameters(self, phase: int) -> dict[str, nn.Parameter]:
        parts = tuple(f"{name}." for name in self._learning(phase))
        return {n: p for n, p in self.named_parameters() if n.startswith(parts)}

    def begin(self, phase: int) -> None:
        self.eval()
        self.task = self.own.tasks[phase]
        self.reads_pairs = bool(self.own.pairs) and self.task == "flow"
        norms = [m for part in self._learning(phase).values() for m in _norms(part)]
        count = {"fixed": 0, "first": 1, "all": len(norms)}[self.own.batch_norm]
        for norm in norms[:count]:
            norm.train()

    def buffers_in_training(self) -> list[Tensor]:
        return [
            buffer
            for norm in _norms(self)
            if norm.training
            for buffer in norm.buffers()
            if buffer.is_floating_point()
        ]

    def files(self) -> dict[str, bytes]:
        """Return the encoder in a file of its own, and the rest."""
        state = self.state_dict()
        rest = {n: value for n, value in state.items() if not n.startswith("encoder.")}
        own = {name: getattr(self.own, name) for name in ("frames", "width", "learns")}
        header: dict[str, object] = {"name": self.name, "channels": self.channels, **own}
        whole = header | {"num_classes": self.num_classes}
        return {
            ENCODER: save_tensors(self.encoder.state_dict(), HEADER, header),
            CLASSIFIERS: save_tensors(rest, HEADER, whole),
        }

    @classmethod
    def read(cls, files: dict[str, bytes]) -> Self:
        """Return the network that `files` wrote, with what its files say of it.

        Raises:
            ValueError: files of another network.
        """
        header = json.loads(metadata_of(files[CLASSIFIERS]).get(HEADER, "{}"))
        if header.get("name") != cls.name:
            raise ValueError(f"expected a network {cls.name}, got {header.get('name')!r}")
        settings = ActionFlowSettings(**{n: header[n] for n in ("frames", "width", "learns")})
        made = cls(header["channels"], settings, header["num_classes"], 0)
        return made.load_files(files)

    def tensors_of(self, files: dict[str, bytes]) -> dict[str, Tensor]:
        encoder = load_tensors(files[ENCODER])
        return super().tensors_of(files) | {f"encoder.{k}": v for k, v in encoder.items()}


def _norms(part: nn.Module) -> list[nn.Module]:
    return [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw torch's default weights by a seed, and leave its generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(training.generator("cpu", seed).get_state())
        yield
