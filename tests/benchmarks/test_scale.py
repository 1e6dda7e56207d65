"""The simulation of large runs: against closed forms, against a run that was measured, and what it
must conserve."""

import dataclasses
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale import costs, pages
from benchmarks.scale.cluster import Cluster, Kind, Rules
from benchmarks.scale.real import real_step
from benchmarks.scale.step import Step, StepResult, run
from benchmarks.scale.workload import FCVID, SEGMENT_S, SPORTS, Corpus, Setting, simulate

SURE = Rules(start_jitter=0.0)


def alone(step: Step, kind: Kind, number: int = 1, rules: Rules = SURE) -> StepResult:
    return run(Cluster({kind: number}, rules), step)


# --- closed forms ------------------------------------------------------------------------------


def test_slots_alone_take_work_over_slots() -> None:
    step = Step(name="index", units=960, units_per_task=8, slot_s=0.5)
    assert alone(step, Kind("node", slots=6), 2).wall_s == pytest.approx(960 * 0.5 / 12)


def test_devices_alone_take_work_over_devices() -> None:
    step = Step(name="encode", units=960, units_per_task=8, device_s=0.5)
    assert alone(step, Kind("node", slots=6, devices=2), 3).wall_s == pytest.approx(960 * 0.5 / 6)


def test_where_decoding_costs_nothing_the_gpus_count() -> None:
    step = Step(name="describe", units=4000, units_per_task=4, slot_s=1e-6, device_s=0.2)
    found = alone(step, Kind("node", slots=4, devices=1), 5)
    assert found.wall_s == pytest.approx(4000 * 0.2 / 5, rel=1e-3)
    assert found.limit == "GPU"


def test_a_device_that_is_fast_waits_for_the_slots() -> None:
    step = Step(name="describe", units=4000, units_per_task=4, slot_s=2.0, device_s=1e-6)
    found = alone(step, Kind("node", slots=4, devices=1), 5)
    assert found.wall_s == pytest.approx(4000 * 2.0 / 20, rel=1e-3)
    assert found.limit == "decode"


def test_more_slots_help_until_they_feed_the_device() -> None:
    """A device takes ten units a second, and so do twenty slots."""
    step = Step(name="describe", units=4000, units_per_task=2, slot_s=2.0, device_s=0.1)
    walls = {n: alone(step, Kind("node", slots=n, devices=1)).wall_s for n in (5, 10, 20, 40, 80)}
    for slots, wall_s in walls.items():
        assert wall_s == pytest.approx(4000 * max(0.1, 2.0 / slots), rel=0.03)


def test_the_driver_deals_out_one_task_after_the_other() -> None:
    step = Step(name="describe", units=1000, units_per_task=10, slot_s=0.1, driver_s=0.05)
    found = alone(step, Kind("node", slots=100))
    assert found.wall_s == pytest.approx(1000 * 0.05 + 10 * 0.1)
    assert found.driver_s == pytest.approx(50)
    assert found.limit == "driver"


def test_nodes_and_actors_have_to_start() -> None:
    step = Step(
        name="describe", units=1, slot_s=2.0, device_s=3.0, slot_start_s=5.0, device_start_s=20.0
    )
    found = alone(step, Kind("node", slots=1, devices=1, start_s=100.0))
    assert found.wall_s == pytest.approx(100 + 20 + 3), "decoded while the network loads"
    assert found.first_s == found.wall_s


def test_a_store_for_one_task_lets_nothing_go_on_side_by_side() -> None:
    step = Step(name="describe", units=10, slot_s=2.0, device_s=3.0, unit_bytes=100)
    tight = Kind("node", slots=4, devices=1, store_bytes=150)
    assert alone(step, tight).wall_s == pytest.approx(10 * (2 + 3))
    wide = dataclasses.replace(tight, store_bytes=math.inf)
    assert alone(step, wide).wall_s == pytest.approx(2 + 10 * 3)


def test_frames_of_other_nodes_pass_through_the_network() -> None:
    step = Step(name="describe", units=50, slot_s=0.001, device_s=0.001, unit_bytes=1000)
    decoding = Kind("CPU", slots=1, network_bytes_per_s=500.0)
    describing = Kind("GPU", slots=0, devices=1, network_bytes_per_s=1e9)
    found = run(Cluster({decoding: 1, describing: 1}, SURE), step)
    assert found.moved_bytes == 50_000
    assert found.wall_s == pytest.approx(50_000 / 500, rel=0.01)


def test_writing_comes_after_the_device() -> None:
    step = Step(name="encode", units=10, device_s=1.0, write_s=7.0)
    assert alone(step, Kind("node", slots=0, devices=1)).wall_s == pytest.approx(10 + 7)


def test_tasks_that_are_simulated_together_take_as_long() -> None:
    step = Step(
        name="describe",
        units=64_000,
        units_per_task=4,
        slot_s=1.9,
        device_s=0.1,
        unit_bytes=10,
        spread=0.6,
    )
    node = Kind("node", slots=20, devices=1, store_bytes=3000)
    fine, coarse = (alone(dataclasses.replace(step, coarse=n), node, 2) for n in (1, 8))
    assert coarse.wall_s == pytest.approx(fine.wall_s, rel=0.03)


# --- the autoscaler ----------------------------------------------------------------------------


@pytest.mark.parametrize(("speed", "expected"), [(1.0, [5, 5, 10, 20, 20]), (20.0, [20, 40])])
def test_nodes_come_in_rounds(speed: float, expected: list[int]) -> None:
    """Of 60 nodes that take 99 s: five or `speed`, then `speed` times as many as run."""
    rules = Rules(start_jitter=0.0, upscaling_speed=speed, update_s=1.0)
    cluster = Cluster({Kind("node", slots=1, start_s=99.0): 60}, rules)
    run(cluster, Step(name="index", units=60, slot_s=10_000.0))
    launches = [node.launched_s for node in cluster.nodes]
    assert [launches.count(at) for at in sorted(set(launches))] == expected


def test_the_autoscaler_sees_a_thousand_waiting_actors() -> None:
    node = Kind("node", slots=100)
    cluster = Cluster({node: 60}, Rules(upscaling_speed=1000, start_jitter=0.0))
    assert cluster.num_to_launch(node, 60) == 10
    for _ in range(10):
        cluster.launch(node)
    assert cluster.num_to_launch(node, 60) == 10, "those run, and fifty are wanted still"


def test_idle_nodes_are_paid_until_they_end() -> None:
    """Nodes without a GPU go during the training, and come again for nothing that needs them
    not."""
    cpu, gpu = Kind("CPU", slots=4, start_s=60.0), Kind("GPU", slots=0, devices=1, start_s=60.0)
    cluster = Cluster({cpu: 2, gpu: 3}, Rules(start_jitter=0.0, idle_timeout_s=300.0))
    run(cluster, Step(name="describe", units=1, slot_s=40.0, device_s=100.0))
    assert cluster.now_s == pytest.approx(200)
    run(cluster, Step(name="fit", units=1, device_s=1000.0, most_devices=1))
    cluster.finish()
    hours = cluster.node_hours()
    assert hours[cpu] == pytest.approx(2 * (200 + 300) / 3600)
    assert hours[gpu] == pytest.approx((2 * (200 + 300) + 1200 + 300) / 3600)


def test_nodes_that_were_let_go_start_again() -> None:
    gpu = Kind("GPU", slots=0, devices=1, start_s=60.0)
    cluster = Cluster({gpu: 2}, Rules(start_jitter=0.0, idle_timeout_s=300.0))
    step = Step(name="encode", units=2, device_s=100.0)
    assert run(cluster, step).wall_s == pytest.approx(160)
    cluster.wait(299.0)
    assert run(cluster, step).wall_s == pytest.approx(100), "still there"
    cluster.wait(301.0)
    assert run(cluster, step).wall_s == pytest.approx(160), "gone"


# --- losses ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    losses=st.sampled_from([0.0, 2.0, 60.0]),
    units=st.integers(1, 700),
    step=st.sampled_from(
        [
            Step(
                name="a",
                units=1,
                units_per_task=7,
                slot_s=3.0,
                device_s=0.5,
                unit_bytes=30,
                write_s=0.3,
            ),
            Step(name="b", units=1, units_per_task=5, device_s=2.0, driver_s=0.01),
            Step(name="c", units=1, units_per_task=3, slot_s=2.0, driver_s=0.02, slot_start_s=4.0),
            Step(name="d", units=1, device_s=4.0, most_devices=2),
        ]
    ),
)
def test_every_unit_is_finished_once(seed: int, losses: float, units: int, step: Step) -> None:
    """Work that was done, less what was lost, is the work that there was."""
    step = dataclasses.replace(step, units=units)
    cpu = Kind("CPU", 8, 0, store_bytes=1000, network_bytes_per_s=90.0, start_s=20.0)
    gpu = Kind("GPU", 3, 2, store_bytes=2000, network_bytes_per_s=200.0, start_s=40.0)
    rules = Rules(losses_per_hour=losses)
    found = run(Cluster({gpu: 4, cpu: 3}, rules, seed), step)
    assert found.finished == units
    assert found.slot_s - found.lost_slot_s == pytest.approx(units * step.slot_s)
    assert found.device_s - found.lost_device_s == pytest.approx(units * step.device_s)
    assert found.driver_s == pytest.approx((units + found.retried) * step.driver_s)
    assert min(found.lost_slot_s, found.lost_device_s, found.retried) >= 0
    for part, seconds in found.parts().items():
        # Work that was lost may have been shared by more nodes than were wanted at a time.
        assert found.wall_s >= seconds * (1 - 1e-9) or found.retried, part
    assert found == run(Cluster({gpu: 4, cpu: 3}, rules, seed), step), "seeded"


def test_losses_cost_time_and_are_counted() -> None:
    step = Step(name="describe", units=2000, units_per_task=4, slot_s=2.0, device_s=0.2)
    node = Kind("node", slots=8, devices=1, start_s=30.0)
    sure, unsure = (
        run(cluster, step).wall_s if rate == 0 else run(cluster, step)
        for rate in (0, 40)
        for cluster in [Cluster({node: 4}, Rules(losses_per_hour=rate), 1)]
    )
    assert unsure.retried > 0
    assert unsure.lost_slot_s > 0
    assert unsure.wall_s > sure


# --- a run that was measured -------------------------------------------------------------------


def test_the_measured_step_is_met() -> None:
    simulated_s, measured_s = real_step()
    assert simulated_s == pytest.approx(measured_s, rel=0.2)


# --- corpora -----------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", [FCVID, SPORTS])
def test_segments_of_exponential_videos(corpus: Corpus) -> None:
    """Against videos that are drawn."""
    lengths_s = np.random.default_rng(0).exponential(corpus.duration_s, 400_000)
    segments = np.ceil(lengths_s / SEGMENT_S)
    assert corpus.segments_per_video == pytest.approx(segments.mean(), rel=0.01)
    assert corpus.frames_per_video(3.0) == pytest.approx(np.ceil(lengths_s / 3).mean(), rel=0.01)
    assert corpus.copied_s == pytest.approx((lengths_s * segments).sum() / segments.sum(), rel=0.01)
    last_s = lengths_s - (segments - 1) * SEGMENT_S
    parts_s = np.concatenate([np.full(int((segments - 1).sum()), SEGMENT_S), last_s])
    assert corpus.spread == pytest.approx(parts_s.std() / parts_s.mean(), rel=0.01)


# --- the page ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads(pages.RESULTS.read_text(encoding="utf-8"))


def test_the_page_says_what_the_results_say(rows: list[dict]) -> None:
    page = pages.PAGE.read_text(encoding="utf-8")
    assert pages.filled(page, rows) == page, "python -m benchmarks.scale --docs writes it again"


def test_the_results_are_what_the_simulation_gives(rows: list[dict]) -> None:
    known = costs.saved("FCVID", rows)
    for ratio in (16, 32):
        point = pages.grids(rows)["FCVID"][ratio][3]
        found = simulate(Setting(FCVID, point["gpu_nodes"], ratio), *known)
        assert found.wall_s / 3600 == pytest.approx(point["wall_h"])
        assert found.price_on_demand == pytest.approx(point["price_on_demand"])
        assert found.describe.limit == point["limit"]


def test_a_page_without_a_place_for_a_table_is_refused(rows: list[dict]) -> None:
    with pytest.raises(ValueError, match=r"scale\.md: expected the lines <!-- FCVID clusters -->"):
        pages.filled("# A page", rows)


def test_pictures_are_the_same_each_time_and_name_all_lines(rows: list[dict]) -> None:
    made = pages.pictures(rows)
    assert made == pages.pictures(rows)
    for name, svg in made.items():
        words = " ".join(ElementTree.fromstring(svg).itertext())
        committed = ElementTree.fromstring((pages.PICTURES / name).read_text(encoding="utf-8"))
        assert " ".join(committed.itertext()).split() == words.split()
        for word in ("FCVID", "Sports-1M", "128 CPUs a GPU"):
            assert word in words
