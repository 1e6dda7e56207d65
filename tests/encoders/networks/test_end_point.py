"""End-point errors against NumPy, with places whose truth is not known."""

import numpy as np
import torch

from encoders.networks.end_point import end_point_errors, flow_loss, resized, scaled

DRAW = np.random.default_rng(0)


def test_errors_are_numpys() -> None:
    flow, truth = DRAW.normal(size=(2, 3, 4, 5, 2))
    found = end_point_errors(torch.from_numpy(flow), torch.from_numpy(truth)).numpy()
    np.testing.assert_allclose(found, np.linalg.norm(flow - truth, axis=-1), atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_means_over_scales() -> None:
    truth = DRAW.normal(size=(2, 1, 8, 8, 2)) * 20
    truth[0, 0, 2:5, 1] = np.nan
    flows = [DRAW.normal(size=(2, 2, side, side)) for side in (2, 4, 8)]
    expected = 0
    for flow, weight in zip(flows, (0.5, 0.2, 0.1), strict=True):
        side = flow.shape[-1]
        cells = truth[:, 0].reshape(2, side, 8 // side, side, 8 // side, 2)
        known = np.isfinite(cells).all(-1, keepdims=True)
        sums, counts = np.nansum(cells, (2, 4)), known.sum((2, 4))
        target = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan) / 20
        errors = np.linalg.norm(flow.transpose(0, 2, 3, 1) - target, axis=-1)
        expected += weight * np.nanmean(errors)
    given = [torch.from_numpy(flow).float() for flow in flows]
    found = flow_loss(given, torch.from_numpy(truth).float(), (0.5, 0.2, 0.1))
    assert abs(found.item() - expected) < 1e-5


def test_unknown_places_have_no_gradient_and_none_is_nan() -> None:
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    truth = torch.zeros(1, 1, 4, 4, 2)
    truth[0, 0, 0, 0] = torch.nan
    (gradient,) = torch.autograd.grad(flow_loss([flow], truth, (1.0,)), flow)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(flow_loss([flow], truth + 30, (1.0,)), flow)
    assert (gradient[..., 0, 0] == 0).all()
    assert (gradient[..., 1, 1] != 0).all()
    unknown = torch.full_like(truth, torch.nan)
    assert flow_loss([flow], unknown, (1.0,)).item() == 0


def test_a_resized_flow_is_in_px_of_its_sides() -> None:
    flow = torch.tensor([4.0, -8.0]).expand(2, 8, 16, 2)
    assert torch.equal(resized(flow, (4, 4)), flow[:, :4, :4])
    assert torch.equal(scaled(flow, (4, 4)), torch.tensor([1.0, -4.0]).expand(2, 4, 4, 2))
    assert torch.equal(scaled(flow, (16, 16)), torch.tensor([4.0, -16.0]).expand(2, 16, 16, 2))
