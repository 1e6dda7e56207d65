"""What workers gather does not depend on how many there are."""

import pytest
import torch

from encoders.sample import FitSample
from tests.encoders import oracles

FRAMES = torch.arange(7 * 5 * 3, dtype=torch.float32).view(7, 5, 3)
VIDEO = torch.tensor([0, 0, 1, 2, 2, 2, 3])


def gather(num_workers: int, most: int, seed: int = 0) -> list[torch.Tensor]:
    def run(rank: int, all_reduce) -> torch.Tensor:
        own = VIDEO % num_workers == rank
        return FitSample(
            frames=FRAMES[own],
            video=VIDEO[own],
            seed=seed,
            rank=rank,
            world_size=num_workers,
            all_reduce=all_reduce,
        ).gather(most)

    return oracles.run_workers(num_workers, run)


@pytest.mark.parametrize("most", [11, 35, 100])
def test_any_number_of_workers_gathers_the_same(most: int) -> None:
    alone = gather(1, most)[0]
    assert alone.shape == (min(most, 35), 3)
    for num_workers in (2, 3, 5):
        for gathered in gather(num_workers, most):
            assert torch.equal(gathered, alone)


def test_gathered_rows_are_distinct_descriptors_of_all_cells() -> None:
    rows = gather(2, 20)[0]
    assert len(torch.unique(rows[:, 0])) == 20
    assert set((rows[:, 0] / 3 % 5).tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert not torch.equal(rows, gather(2, 20, seed=1)[0])


def test_everything_is_in_order_where_it_fits() -> None:
    assert torch.equal(gather(3, 35)[0], FRAMES.flatten(0, 1))
