"""When a pool that is too small is warned of, on made-up observations."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.pools import Growth, Pool

DESCRIBE = Pool(4, num_cpus=0, num_gpus=1)
DECODE = Pool(8, num_cpus=1)


def describers(warning_s: float = 300.0) -> Growth:
    return Growth({("describe",): DESCRIBE}, warning_s)


def test_a_pool_that_does_not_grow_is_warned_of_at_growing_intervals() -> None:
    growth = describers()
    said = [
        now_s
        for now_s in range(0, 5000, 5)
        # One actor, at work all the time.
        if growth.warnings(now_s, 960, {"describe": 1}, {"describe": float(now_s)})
    ]
    assert said == [300, 600, 1200, 2400, 4800]


def test_the_warning_says_what_is_wanted_what_is_there_and_what_to_look_at() -> None:
    growth = describers()
    growth.warnings(10.0, 960, {"describe": 1}, {"describe": 7.0})
    (text,) = growth.warnings(310.0, 900, {"describe": 1}, {"describe": 207.0})
    for part in ("describe has had 1 of 4 actors for 300 s", "900 rows", "needs 1 GPU."):
        assert part in text
    for part in ("`ray status`", "max_workers", "quota", "spot", "work goes on"):
        assert part in text


def test_without_any_actor_it_says_that_nothing_is_done() -> None:
    growth = Growth({("describe",): Pool(2, num_cpus=0.5, num_gpus=1)}, 5)
    growth.warnings(0.0, 9, {}, {})
    (text,) = growth.warnings(5.0, 9, {}, {})
    assert "0 of 2 actors" in text
    assert "needs 0.5 CPU and 1 GPU" in text
    assert "nothing is done until there is one" in text


def test_a_pool_that_grew_fell_short_and_grew_again_starts_anew() -> None:
    growth = describers()

    def says(now_s: float, number: int) -> bool:
        return bool(growth.warnings(now_s, 960, {"describe": number}, {"describe": 4 * now_s}))

    assert [says(0, 1), says(299, 1), says(299.5, 4), says(310, 3), says(600, 3)] == [False] * 5
    assert says(610, 3)


def test_actors_with_little_to_do_need_no_others() -> None:
    """The decoders are too slow for the describers: more describers would not help, more decoders
    would."""
    growth = Growth({("read", "decode"): DECODE, ("describe",): DESCRIBE}, 300)
    have = {"decode": 4, "describe": 2}
    said = []
    for now_s in range(0, 601, 5):
        busy_s = {"read": 1.9 * now_s, "decode": 1.9 * now_s, "describe": 0.6 * now_s}
        said += growth.warnings(now_s, 960, have, busy_s)
    assert len(said) == 2
    assert all("decode has had 4 of 8" in text for text in said)


@given(st.integers(0, 9))
def test_work_that_is_told_of_in_lumps_counts_whenever_it_comes(offset_s: int) -> None:
    """A call of a describer is counted when it ends: here 8 s of work every 10 s, looked at every 5
    s."""
    growth = describers(warning_s=4.0)
    said = [
        text
        for now_s in range(0, 100, 5)
        for text in growth.warnings(
            now_s, 960, {"describe": 1}, {"describe": 8.0 * ((now_s + offset_s) // 10)}
        )
    ]
    assert said


def test_a_describer_that_decodes_is_busy_with_both() -> None:
    growth = Growth({("read", "decode", "describe"): DESCRIBE}, 300)
    growth.warnings(0, 960, {"describe": 1}, {})
    assert growth.warnings(300, 960, {"describe": 1}, {"decode": 200.0, "describe": 90.0})


@given(st.integers(0, 12), st.integers(0, 50), st.floats(0, 1e5), st.floats(0, 1e5))
def test_no_work_or_a_full_pool_is_never_warned_of(
    number: int, left: int, now_s: float, busy_s: float
) -> None:
    growth = describers(warning_s=0.0)
    for later_s in (0.0, 1.0, 2.0):
        found = growth.warnings(now_s + later_s, left, {"describe": number}, {"describe": busy_s})
        assert not found or (left > 0 and number < DESCRIBE.size)
