"""The deep LSTM, by its equations (VU 3.3-3.7) and its training (VU 3.3.3)."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders.networks.base import Clips
from encoders.networks.over_time.head import IMAGE
from encoders.networks.over_time.lstm import READINGS, Lstm, gains, readings
from encoders.networks.over_time.peephole_lstm import PeepholeLstm
from tests.encoders.networks import tiny
from tests.encoders.networks.tiny import CROP, K

CELLS, INPUTS = 5, 7


@pytest.fixture
def layer() -> PeepholeLstm:
    draw = torch.Generator().manual_seed(1)
    layer = PeepholeLstm(INPUTS, CELLS, draw).double()
    with torch.no_grad():
        layer.peephole.copy_(torch.randn(3, CELLS, generator=draw))
        layer.bias.add_(torch.randn(4 * CELLS, generator=draw))
    return layer


@pytest.fixture
def inputs() -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(3, 6, INPUTS, generator=draw, dtype=torch.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_steps_are_the_equations(layer: PeepholeLstm, inputs: Tensor) -> None:
    w, u, b, p = (
        v.detach().numpy() for v in (layer.inputs, layer.recurrent, layer.bias, layer.peephole)
    )
    wi, wf, wc, wo = np.split(w, 4)
    ui, uf, uc, uo = np.split(u, 4)
    bi, bf, bc, bo = np.split(b, 4)
    expected = np.zeros((3, 6, CELLS))
    for clip in range(3):
        h = c = np.zeros(CELLS)
        for t, x in enumerate(inputs[clip].numpy()):
            i = sigmoid(wi @ x + ui @ h + p[0] * c + bi)
            f = sigmoid(wf @ x + uf @ h + p[1] * c + bf)
            c = f * c + i * np.tanh(wc @ x + uc @ h + bc)
            o = sigmoid(wo @ x + uo @ h + p[2] * c + bo)
            h = o * np.tanh(c)
            expected[clip, t] = h
    np.testing.assert_allclose(layer(inputs).detach().numpy(), expected, rtol=1e-12)


def test_without_peepholes_it_is_torchs(layer: PeepholeLstm, inputs: Tensor) -> None:
    theirs = nn.LSTM(INPUTS, CELLS, batch_first=True).double()
    with torch.no_grad():
        layer.peephole.zero_()
        theirs.weight_ih_l0.copy_(layer.inputs)
        theirs.weight_hh_l0.copy_(layer.recurrent)
        theirs.bias_ih_l0.copy_(layer.bias)
        theirs.bias_hh_l0.zero_()
    torch.testing.assert_close(layer(inputs), theirs(inputs)[0])


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_gradient_of_each_frame_is_that_of_its_loss_times_the_gain(multi_label: bool) -> None:
    network = tiny.network("lstm", "tiny_plain")
    assert isinstance(network, Lstm)
    clips, targets = tiny.videos(3, 4)[:, :, :CROP, :CROP], torch.eye(K)
    found = []

    def keep(module: nn.Module, inputs: tuple, scores: Tensor) -> None:
        scores.retain_grad()
        found.append(scores)

    network.head.register_forward_hook(keep)
    losses = network.losses(Clips(clips), targets, None, multi_label=multi_label)
    losses["total"].backward()
    (scores,) = found
    shares = scores.sigmoid() if multi_label else scores.softmax(2)
    of_frame = (shares - targets[:, None]) / (3 * 4)
    gain = torch.tensor([0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(scores.grad, gain[:, None] * of_frame)


def test_clips_are_read_in_four_ways() -> None:
    draw = torch.Generator().manual_seed(4)
    scores = torch.randn(2, 5, K, generator=draw, dtype=torch.float64)
    shares = scores.softmax(2)
    gain = torch.arange(1, 6) / 5
    expected = {
        "last": shares[:, 4],
        "max": shares.amax(1),
        "sum": shares.mean(1),
        "weighted": (gain[:, None] * shares).sum(1) / gain.sum(),
    }
    found = readings(scores)
    assert tuple(found) == READINGS
    for name, values in expected.items():
        torch.testing.assert_close(found[name].exp(), values)
    assert gains(4).tolist() == [0.25, 0.5, 0.75, 1]


def test_any_number_of_frames_is_read_and_only_what_came_before_counts() -> None:
    network = tiny.network("lstm", "tiny_plain").eval()
    assert isinstance(network, Lstm)
    clips = tiny.videos(2, 9)[:, :, :CROP, :CROP]
    with torch.inference_mode():
        scores = network.head_scores(network.maps(clips)[IMAGE], None)
        for count in (1, 4, 9):
            assert set(network.outputs(clips[:, :count])) == set(READINGS)
            maps = network.maps(clips[:, :count])[IMAGE]
            torch.testing.assert_close(network.head_scores(maps, None), scores[:, :count])
