"""Results in words, and chance beside them."""

import pytest

from pipelines.evaluate.names import result_words
from pipelines.evaluate.results import chance_level


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (("vlad", "features_12_difference"), "VLAD on differences of features_12"),
        (("ave", "pool5_appearance"), "AVE on appearance of pool5"),
        (("ga", "fc7_global"), "GA on whole frames of fc7"),
        (
            ("gmm_fv@num_components=8", "c_flow_gap0_08s"),
            "GMM-FV (num_components=8) on optical flow of c (gap0_08s)",
        ),
        (("fv_vae", "late_weighted", "late_weighted"), "FV-VAE on every stream (weights learned)"),
        (
            ("ave+vlad", "a_appearance+a_difference", "given"),
            "AVE + VLAD on appearance and differences (scores added)",
        ),
        (("idt", "external_global"), "idt on vectors that were given"),
        (("toy", "of_elsewhere"), "toy on of_elsewhere"),
    ],
)
def test_results_are_named_as_people_would(key: tuple[str, ...], words: str) -> None:
    assert result_words(*key) == words


def test_chance_is_the_most_frequent_class_or_the_mean_share() -> None:
    assert chance_level([0.5, 0.25, 0.25], False) == 0.5
    assert chance_level([1.0, 0.5], True) == pytest.approx(0.75)
