"""A layer of long short-term memory with diagonal peepholes (VU Eq. 3.3-3.7): torch's has none.

Letters: b clips, T frames, I inputs, H cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FORGET_BIAS = 1.0
"""At the start a cell keeps what it holds: without it, little comes through five layers."""


class PeepholeLstm(nn.Module):
    """Weights of the input gate, the forget gate, the cell and the output gate, in this order.

    The peepholes [3, H] of the gates read the cell's own value alone, and start as 0.
    """

    def __init__(self, inputs: int, cells: int, draw: torch.Generator) -> None:
        super().__init__()
        bound = cells**-0.5

        def drawn(columns: int) -> nn.Parameter:
            values = torch.rand(4 * cells, columns, generator=draw)
            return nn.Parameter(bound * (2 * values - 1))

        self.inputs, self.recurrent = drawn(inputs), drawn(cells)
        self.bias = nn.Parameter(torch.zeros(4 * cells))
        self.peephole = nn.Parameter(torch.zeros(3, cells))
        with torch.no_grad():
            self.bias[cells : 2 * cells] = FORGET_BIAS

    def forward(self, frames: Tensor) -> Tensor:
        """Return the hidden vectors [b, T, H] of inputs [b, T, I]."""
        hidden = cell = frames.new_zeros(len(frames), self.peephole.shape[1])
        to_input, to_forget, to_output = self.peephole
        found = []
        for of_frame in functional.linear(frames, self.inputs, self.bias).unbind(1):
            sums = of_frame + functional.linear(hidden, self.recurrent)
            i, f, c, o = sums.chunk(4, 1)
            i, f = (i + to_input * cell).sigmoid(), (f + to_forget * cell).sigmoid()
            cell = f * cell + i * c.tanh()
            hidden = (o + to_output * cell).sigmoid() * cell.tanh()
            found.append(hidden)
        return torch.stack(found, 1)
