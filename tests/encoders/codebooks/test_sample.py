"""What workers gather does not depend on how many there are."""

import pytest
import torch

from encoders.codebooks.sample import FitSample
from tests.encoders import oracles

FRAMES = torch.arange(7 * 5 * 3, dtype=torch.float32).view(7, 5, 3)
VIDEO = torch.tensor([0, 0, 1, 2, 2, 2, 3])


def run_workers(num_workers: int, function, seed: int = 0) -> list:
    """`function` of each worker's share of the frames."""

    def run(rank: int, all_reduce):
        own = VIDEO % num_workers == rank
        return function(
            FitSample(
                frames=FRAMES[own],
                video=VIDEO[own],
                seed=seed,
                rank=rank,
                world_size=num_workers,
                all_reduce=all_reduce,
            )
        )

    return oracles.run_workers(num_workers, run)


def gather(num_workers: int, most: int, seed: int = 0) -> list[torch.Tensor]:
    return run_workers(num_workers, lambda sample: sample.gather(most), seed)


def draw(num_workers: int, steps: int, size: int, seed: int = 0) -> list[torch.Tensor]:
    """The batches of the steps, of all workers together, in the order of the descriptors."""

    def work(sample: FitSample) -> list[torch.Tensor]:
        steps_per_pass, batch = sample.batches(size)
        assert steps_per_pass == -(-35 // size)
        return [batch(step) for step in range(steps)]

    parts = run_workers(num_workers, work, seed)
    batches = [torch.cat(of_workers) for of_workers in zip(*parts, strict=True)]
    return [batch[batch[:, 0].argsort()] for batch in batches]


@pytest.mark.parametrize("size", [1, 8, 35, 50])
def test_any_number_of_workers_draws_the_same_batches(size: int) -> None:
    alone = draw(1, 5, size)
    assert max(len(batch) for batch in alone) <= size
    for num_workers in (2, 3, 5):
        for batch, expected in zip(draw(num_workers, 5, size), alone, strict=True):
            assert torch.equal(batch, expected)


def test_a_pass_deals_out_each_descriptor_once_and_each_pass_anew() -> None:
    batches = draw(2, 10, 8)
    assert [len(batch) for batch in batches] == 2 * [7, 7, 7, 7, 7]
    for number in range(2):
        rows = torch.cat(batches[5 * number : 5 * number + 5])
        assert torch.equal(rows[rows[:, 0].argsort()], FRAMES.flatten(0, 1))
    for batch in batches:  # as many descriptors as frames: one of each
        assert sorted((batch[:, 0] // 15).tolist()) == [0, 1, 2, 3, 4, 5, 6]
    assert not torch.equal(batches[0], batches[5])
    assert not torch.equal(batches[0], draw(2, 1, 8, seed=1)[0])


@pytest.mark.parametrize("num_frames", [1, 4, 10])
def test_a_pass_is_whole_for_any_number_of_frames(num_frames: int) -> None:
    frames = torch.arange(num_frames * 5.0).view(num_frames, 5, 1)
    sample = FitSample(frames=frames, video=torch.zeros(num_frames, dtype=torch.int64))
    steps_per_pass, batch = sample.batches(3)
    rows = torch.cat([batch(step) for step in range(steps_per_pass)])
    assert rows.flatten().sort().values.tolist() == list(range(num_frames * 5))


def test_batches_take_every_cell_alike() -> None:
    rows = torch.cat(draw(1, 2000, 7)[::5])
    cells = torch.bincount((rows[:, 0] / 3 % 5).long(), minlength=5)
    # 560 of each; a count's standard deviation is 21.
    assert ((cells - 560).abs() < 5 * 21).all()


def test_descriptors_are_the_frames_themselves() -> None:
    frames = FRAMES.half()
    descriptors = FitSample(frames=frames, video=VIDEO).descriptors()
    assert (descriptors.shape, descriptors.dtype) == ((35, 3), torch.half)
    assert descriptors.data_ptr() == frames.data_ptr()


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


GROUP = torch.tensor([7, 7, 3, 5])


@pytest.mark.parametrize("seed", range(4))
def test_whole_groups_are_held_out_alike_on_all_workers(seed: int) -> None:
    sample = FitSample(frames=FRAMES, video=VIDEO, group=GROUP, seed=seed)
    held_out = sample.held_out(0.1)
    assert len(GROUP[held_out].unique()) == 1
    assert torch.equal(held_out, torch.isin(GROUP, GROUP[held_out]))
    assert torch.equal(held_out, sample.held_out(0.1))
    # However large the share, a group is left.
    assert len(GROUP[~sample.held_out(0.99)].unique()) == 1
    for of_worker in run_workers(2, lambda share: share.held_out(0.1), seed):
        assert of_worker.sum() == 1
        assert torch.equal(of_worker, run_workers(1, lambda share: share.held_out(0.1), seed)[0])


@pytest.mark.parametrize(
    ("sizes", "share", "held_out"),
    [
        ([7, 1], 0.1, {1}),  # never nearly all
        ([5, 5], 0.1, {5}),
        ([40, 3, 3, 3, 3, 3, 3, 2], 0.1, {6, 5}),  # of 60 about 6, without the large group
        ([1] * 40, 0.1, {4}),
    ],
)
def test_about_the_share_is_held_out(sizes: list[int], share: float, held_out: set[int]) -> None:
    video = torch.arange(sum(sizes))
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for seed in range(10):
        sample = FitSample(
            frames=torch.zeros(len(video), 1, 2), video=video, group=group, seed=seed
        )
        assert int(sample.held_out(share).sum()) in held_out


def test_videos_are_held_out_where_there_is_one_group() -> None:
    sample = FitSample(frames=FRAMES, video=VIDEO, group=torch.zeros(4, dtype=torch.int64))
    assert sample.held_out(0.5).sum() == 2
    with pytest.raises(ValueError, match="expected at least two videos to hold one out, got 1"):
        FitSample(frames=FRAMES, video=torch.zeros(7, dtype=torch.int64)).held_out(0.1)


def test_a_group_without_frames_is_not_held_out() -> None:
    """Videos 4 and 5 failed, and with them their group."""
    group = torch.tensor([1, 1, 2, 2, 0, 0])
    for seed in range(8):
        sample = FitSample(frames=FRAMES, video=VIDEO, group=group, seed=seed)
        held_out = sample.held_out(0.5)
        assert held_out.tolist() in (
            [True] * 2 + [False] * 4,
            [False] * 2 + [True] * 2 + [False] * 2,
        )
