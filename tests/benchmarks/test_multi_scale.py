import pytest

from benchmarks import multi_scale
from benchmarks.harness import Options


@pytest.mark.nightly
def test_dense_passes_are_compared_with_as_many_crops_as_there_are_activations() -> None:
    rows = multi_scale.activations(Options(quick=True, threads=1))
    # FK Table 1.
    assert [row.detail["activations"] for row in rows] == [270, 270]
    assert [row.target for row in rows] == [22, 1]
    assert all(row.ratio > 1 for row in rows)
