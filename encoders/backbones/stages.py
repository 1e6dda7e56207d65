"""The nodes of a network before each loss of resolution (VU 5.3.2), found by its shapes alone.

The network is run once on torch's meta device while its functions are watched. A module's output
counts if all that the network computes later depends on the frame through it alone: inside a
residual block a branch goes past it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from encoders.backbones.family import Layout
from encoders.stream_specs import INPUT


@dataclass(frozen=True)
class _Output:
    """A module's output, and the number of the call that computed it."""

    name: str
    calls: int
    tensor: Tensor


def stages(model: nn.Module, layout: Layout, crop_px: int) -> list[str]:
    """Return the last node before each loss of resolution, in order; `INPUT` is one of them.

    A resolution at which no layer (convolution or linear map) reads its input is no stage: a
    pooling behind a convolution with a stride is one loss together with it. So VU's ResNet-50 has
    the input at 224, and 56, 28 and 14. The loss to a single position at the end does not count,
    nor does what comes behind the last one, nor the few positions at the edge that a convolution
    without padding leaves out. First layers that keep the input's resolution (VGG) take its place;
    a network that branches at its input (CrossViT) has the input alone.
    """
    watch = _Watch(layout)
    frame = torch.zeros(1, 3, crop_px, crop_px, device="meta")
    with torch.inference_mode(), _hooks(model, watch.note):
        watch.begin(frame)
        with watch:
            model(frame)
    last = {crop_px: INPUT}
    for output in sorted(watch.outputs, key=lambda output: output.calls):
        side, first = watch.side(output.tensor), min(last)
        if watch.is_bottleneck(output.calls) and 1 < side <= first:
            last[first if _is_same(side, first) else side] = output.name
    sides = sorted(last, reverse=True)
    if last != {crop_px: INPUT}:
        sides.pop()
    return [last[side] for side in sides if any(_is_same(s, side) for s in watch.read_sides)]


def _is_same(side: int, first: int) -> bool:
    """Return True if a map of this side has the resolution of a stage that begins with `first`."""
    return 0.75 * first < side <= first


class _Watch(TorchFunctionMode):
    """Record of the calls of functions, and of the last call that reads each one's values.

    Attributes:
        read_sides: sides of the maps that layers read.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.read_sides: set[int] = set()
        self.call_of: dict[int, int] = {}
        self.last_read: list[int] = []
        self.kept: list[Tensor] = []
        self.named: dict[str, list[_Output]] = {}

    def begin(self, frame: Tensor) -> None:
        """Note the frame as the output of the first call."""
        self._note_call(frame)

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if outputs:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.call_of]
            for tensor in read:
                self.last_read[self.call_of[id(tensor)]] = len(self.last_read)
            if getattr(func, "__name__", "") in ("conv2d", "linear") and read:
                self.read_sides.add(self.side(read[0]))
            self._note_call(*outputs)
        return result

    def note(self, name: str, output: object) -> None:
        """Note a module's output."""
        if isinstance(output, Tensor) and id(output) in self.call_of:
            record = _Output(name, self.call_of[id(output)], output)
            self.named.setdefault(name, []).append(record)

    @property
    def outputs(self) -> list[_Output]:
        """Outputs of modules that run once; of modules with the same value the outermost."""
        once = [records[0] for records in self.named.values() if len(records) == 1]
        # An outer module returns after those inside it.
        return list({output.calls: output for output in once}.values())

    def is_bottleneck(self, call: int) -> bool:
        """Return True if no value from before `call` is read after it."""
        return all(read <= call for read in self.last_read[:call])

    def side(self, tensor: Tensor) -> int:
        """Return the side of a square map; 0 for other tensors."""
        try:
            height, width = self.layout.as_maps(tensor).shape[2:]
        except ValueError:
            return 0
        return height if height == width else 0

    def _note_call(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self.call_of[id(tensor)] = len(self.last_read)
        self.last_read.append(0)
        # Kept alive, because another tensor could get the same id.
        self.kept += tensors


@contextmanager
def _hooks(model: nn.Module, note: Callable[[str, object], None]) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
