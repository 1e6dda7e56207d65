import numpy as np
import pytest

from encoders.scores.fusion import TWO_STREAM, fuse

RGB = np.array([[1.0, -3.0], [2.0, 2.0]])
FLOW = np.array([[0.5, 1.5], [-1.0, 3.0]])


def test_plain_mean() -> None:
    np.testing.assert_allclose(fuse([RGB, FLOW]), [[0.75, -0.75], [0.5, 2.5]])
    np.testing.assert_allclose(fuse([RGB]), RGB)


def test_only_the_ratio_of_weights_counts() -> None:
    expected = [[0.7, -0.3], [0.2, 2.6]]  # (RGB + 1.5 FLOW) / 2.5
    np.testing.assert_allclose(fuse([RGB, FLOW], [1, 1.5]), expected)
    np.testing.assert_allclose(fuse([RGB, FLOW], [2, 3]), expected)
    np.testing.assert_allclose(fuse([RGB, FLOW], [0, 4]), FLOW)


def test_l1_normalised_scores_do_not_depend_on_a_streams_scale() -> None:
    expected = [[0.25, 0.15], [0.05, 0.65]]  # (RGB / [4, 4] + 1.5 FLOW / [2, 4]) / 2.5
    np.testing.assert_allclose(fuse([RGB, FLOW], [1, 1.5], l1_normalise=True), expected)
    np.testing.assert_allclose(fuse([900 * RGB, FLOW], [1, 1.5], l1_normalise=True), expected)


def test_l1_normalised_zero_stays_zero_and_inputs_stay_as_they_are() -> None:
    zero, rgb = np.zeros((2, 2), np.float32), RGB.astype(np.float32)
    fused = fuse([zero, rgb], l1_normalise=True)
    np.testing.assert_allclose(fused, RGB / 8)
    assert fused.dtype == np.float64
    np.testing.assert_array_equal(rgb, RGB)


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match=r"score arrays of one shape \[N, K\], got \[\]"):
        fuse([])
    with pytest.raises(ValueError, match=r"one shape \[N, K\], got \[\(1, 2\), \(2, 2\)\]"):
        fuse([RGB, FLOW[:1]])
    with pytest.raises(ValueError, match=r"one shape \[N, K\], got \[\(2,\)\]"):
        fuse([RGB[0], FLOW[0]])
    for weights in ([1], [1, -1], [0, 0], [1, np.nan], [1, np.inf]):
        with pytest.raises(ValueError, match="2 weights >= 0 that are not all zero"):
            fuse([RGB, FLOW], weights)


def test_rgb_and_flow_as_in_the_paper_by_hand() -> None:
    # RGB / 4 + 1.5 FLOW / [2, 4] over 2.5, as in VU 5.3.3.
    fused = fuse([RGB, FLOW], TWO_STREAM, l1_normalise=True)
    np.testing.assert_allclose(fused, [[0.25, 0.15], [0.05, 0.65]])
