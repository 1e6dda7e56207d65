"""The arithmetic of a plan on worked cases: numbers so round that each can be done in the head."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster import pools as cluster_pools
from pipelines.plan.estimate import UNSURE, Counts, Overheads, StepPlan, plan, total
from pipelines.plan.networks import Networks, NetworkTrial
from pipelines.plan.prices import Gpu, Machine, Prices, Range, Shape, gpu_hours, offers
from pipelines.plan.probe import Decoded, Headers
from pipelines.plan.trials import FitTrial, Rates, Trials
from pipelines.settings.config import Config

COUNTS = Counts(videos=1000, labelled=1000, training=500, tested=500, classes=10, num_folds=1)
STREAM = "a_appearance"
VLAD = FitTrial(
    name="vlad", stream=STREAM, copies=1, frames=100, cells=50, num_bytes=10, once_s=1.0
)
TRIALS = Trials(
    # Of 100 videos 10 are lost: 900 of 1000 are readable, with 2 segments each.
    headers=Headers(
        looked=100,
        missing=6,
        failed=4,
        reasons=(("empty_file", 4),),
        header_s=0.01,
        mean_segments=2.0,
        relative_error=0.05,
        mean_duration_s=10.0,
        mean_bytes=20 * 2**20,
    ),
    # Of 1800 segments nine tenths are described: 1620, with 50 frames each.
    segments=Decoded(tried=10, failed=1, decode_s=0.5, frames=50.0, decoder_bytes=10**8),
    rates=Rates(
        describe_s=0.1,
        flops=4e9,
        frame_bytes=1e5,
        sample_s=0.0001,
        sample_bytes={STREAM: 1e4},
        encode_s=0.0004,
        attention_bytes=20.0,
        publish_s=0.01,
        vector_bytes=1e5,
        product_s=1e-9,
        double_s=1e-9,
        evaluate_s=0.005,
    ),
    fits=(
        VLAD,
        dataclasses.replace(VLAD, name="gmm_fv", once_s=0.5, step_s=0.2),
        dataclasses.replace(VLAD, name="fv_vae", once_s=0.5, step_s=0.1),
    ),
    codebooks=3,
    dims={f"{name} {STREAM}": 1000 for name in ("vlad", "gmm_fv", "fv_vae")},
    held_bytes={"describe": 10**9},
    seconds=10.0,
)
CONFIG = Config().with_settings(
    [
        "encode.encoders=vlad,gmm_fv,fv_vae",
        "fit.num_frames=1000",
        "vlad.num_centroids=10",
        "gmm_fv.max_iterations=10",
        "fv_vae.num_steps=100",
        "fv_vae.lambda3=0",
        "classify.fusions=",
    ]
)
FREE = Overheads(job_s=0, pool_s=0, torch_pool_s=0, train_s=0, task_s=0, report_s=0)
GPU = Gpu(name="g1", float32_tflops=1.0, share=(0.25, 1.0))


def planned(
    shape: Shape, trials: Trials = TRIALS, fixed: Overheads = FREE, counts: Counts = COUNTS
) -> dict[str, StepPlan]:
    resources = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)}
    pools = cluster_pools.pools(CONFIG.cluster, resources)
    return {step.name: step for step in plan(counts, trials, CONFIG, pools, shape, fixed)}


def test_units_are_what_the_run_will_count() -> None:
    steps = planned(Shape(8))
    assert {name: (step.units, step.unit) for name, step in steps.items()} == {
        "index": (1000, "videos"),
        # Videos without a header have one failed segment each.
        "describe": (1800 + 100, "segments"),
        "fit": (3, "codebooks"),
        "encode": (3000, "encodings"),
        "classify": (1500, "scored videos"),
        "evaluate": (3 + 1, "results"),  # their mean
        "final": (1, "models"),
    }


def test_networks_are_planned_by_their_steps_and_clips() -> None:
    trial = NetworkTrial(
        name="tdn", stream="rgb", copies=3, train_s=1000.0, clip_s=0.2, num_bytes=10**6
    )
    trials = dataclasses.replace(TRIALS, networks=Networks((trial,), decode_s=0.4, clip_bytes=1e6))
    steps, without = planned(Shape(8), trials), planned(Shape(8))
    train = steps["train"]
    assert (train.units, train.unit) == (3, "networks")
    assert train.core_s == pytest.approx(COUNTS.labelled * 0.4 + 3 * 1000.0)
    # One network a core, each on one worker: all three at once; two decoders beside each other.
    assert train.wall_s.value == pytest.approx(1000.0 + COUNTS.labelled * 0.4 / 2)
    assert train.tables == {"CLIPS": COUNTS.labelled * 1e6, "networks": 3e6}
    more = steps["classify"].core_s - without["classify"].core_s
    assert more == pytest.approx(COUNTS.tested * CONFIG.network.test_clips * 0.2)
    assert steps["classify"].units - without["classify"].units == COUNTS.tested
    assert list(steps) == ["index", "describe", "fit", "encode", "train", *list(steps)[5:]]
    on_gpus = planned(Shape(8, 2), trials)["train"]
    assert on_gpus.core_s == pytest.approx(COUNTS.labelled * 0.4)
    # Three networks on two GPUs: the second round leaves one idle.
    assert on_gpus.gpu_s.value == pytest.approx(3000.0)
    # With describers on GPUs six of the eight cores decode.
    assert on_gpus.wall_s.value == pytest.approx(2000.0 + COUNTS.labelled * 0.4 / 6)


def test_describing_takes_the_slowest_of_what_goes_on_together() -> None:
    describe = planned(Shape(8))["describe"]
    frames = 1620 * 50
    assert describe.core_s == pytest.approx(1800 * 0.5 + frames * 0.1)
    # Eight describers of one thread, beside decoders that share their cores.
    assert describe.wall_s.value == pytest.approx(describe.core_s / 8)
    slow = dataclasses.replace(TRIALS, segments=dataclasses.replace(TRIALS.segments, decode_s=60.0))
    decoded_s = 1800 * 60.0
    assert planned(Shape(8), slow)["describe"].wall_s.value == pytest.approx(decoded_s / 2)
    # Describers that decode for themselves do one after the other.
    together = CONFIG.with_settings(["cluster.placement=together"])
    pools = cluster_pools.pools(together.cluster, {"CPU": 8.0})
    own = {s.name: s for s in plan(COUNTS, slow, together, pools, Shape(8), FREE)}["describe"]
    assert own.wall_s.value == pytest.approx((decoded_s + frames * 0.1) / 8)
    # Six decoders beside two GPUs.
    beside = planned(Shape(8, 2, GPU), slow)["describe"].wall_s.value
    assert beside == pytest.approx(decoded_s / 6)
    assert describe.tables["DESCRIPTORS"] == pytest.approx(1620 * 50 * 1e5)
    assert describe.peak_bytes > 10**9


def test_gpus_take_the_network_off_the_cores() -> None:
    describe = planned(Shape(8, 2, GPU))["describe"]
    flops = 1620 * 50 * 4e9
    assert describe.flops == pytest.approx(flops)
    # At half of the peak; a quarter and all of it are the ends.
    assert describe.gpu_s.value == pytest.approx(flops / 0.5e12)
    assert describe.gpu_s.low == pytest.approx(flops / 1e12)
    assert describe.gpu_s.high == pytest.approx(flops / 0.25e12)
    assert describe.core_s == pytest.approx(1800 * 0.5)
    assert describe.wall_s.value == pytest.approx(flops / 0.5e12 / 2)


def test_codebooks_grow_with_the_sample_or_with_training_steps() -> None:
    """1000 frames against the trial's 100: k-means is capped, EM reads all, training has its own
    steps."""
    fit = planned(Shape(8))["fit"]
    # 1024 x 10 descriptors are 204.8 frames of 50.
    vlad = 1.0 * 204.8 / 100
    gmm = 0.5 * 10 + 10 * 0.2 * 10
    vae = 0.5 * 10 + 100 * 0.1
    sample = 1620 * 50 * 0.0001
    assert fit.core_s == pytest.approx(vlad + gmm + vae + sample)
    assert fit.wall_s.value == pytest.approx(vlad + gmm + vae + sample / 4)
    # Samples of 100 MB: all three at once, the longest decides; or two.
    rates = dataclasses.replace(TRIALS.rates, sample_bytes={STREAM: 1e5})
    large = dataclasses.replace(TRIALS, rates=rates)
    wall_s = {n: planned(Shape(n), large)["fit"].wall_s.value for n in (2, 8)}
    assert wall_s[8] == pytest.approx(gmm + sample / 4)
    assert wall_s[2] == pytest.approx(max(gmm, (vlad + gmm + vae) / 2) + sample)
    assert fit.tables == pytest.approx({"SAMPLES": 1000 * 1e4, "codebooks": 3 * 10})


def test_a_codebook_is_fitted_as_often_as_the_job_has_it() -> None:
    """Such as one for each fold, where it learns from labels."""
    *others, vae = TRIALS.fits
    fits = (*others, dataclasses.replace(vae, copies=5))
    steps = planned(Shape(8), dataclasses.replace(TRIALS, fits=fits, codebooks=7))
    assert steps["fit"].units == 2 + 5
    assert steps["encode"].units == 7000
    once, often = planned(Shape(8))["fit"], steps["fit"]
    assert often.core_s - once.core_s == pytest.approx(4 * (0.5 * 10 + 100 * 0.1))
    assert often.tables["codebooks"] == 7 * 10


def test_svms_are_counted_in_operations() -> None:
    classify = planned(Shape(8))["classify"]
    training = 500 * 810 / 1000  # 1620 segments are 810 videos
    products = 3 * training**2 * 1000
    double = 3 * 10 * training * (200 * 2 * training + 4 * 1000)
    assert classify.wall_s.value == pytest.approx((products + double) / 1e9 / 8)
    assert classify.tables["classifiers"] == pytest.approx(4 * 3 * 1000 * 10)
    files = 3 * 4000
    assert classify.tables["SCORES"] == pytest.approx(files + 10 * 500 * 10 * 3)
    few = planned(Shape(8), fixed=dataclasses.replace(FREE, torch_pool_s=7.0))["classify"]
    assert few.wall_s.value == pytest.approx(classify.wall_s.value + 7.0)


def test_combinations_are_results_too() -> None:
    config = CONFIG.with_settings(["classify.fusions=kernel_sum,late_weighted"])
    pools = cluster_pools.pools(config.cluster, {"CPU": 8.0})
    steps = {s.name: s for s in plan(COUNTS, TRIALS, config, pools, Shape(8), FREE)}
    alone = planned(Shape(8))
    assert steps["classify"].units == 500 * (3 + 2)
    assert steps["evaluate"].units == 3 + 1 + 2
    # Weights of the sum are as long as those of its parts together; mean scores have none.
    weights = alone["classify"].tables["classifiers"]
    assert steps["classify"].tables["classifiers"] == pytest.approx(2 * weights)
    assert steps["classify"].wall_s.value > alone["classify"].wall_s.value


def test_late_rules_share_what_they_choose_by() -> None:
    """Inner folds of a part are solved once, whatever the number of groups."""
    pools = cluster_pools.pools(CONFIG.cluster, {"CPU": 8.0})
    seconds = []
    for rule, groups in (
        ("kernel_sum", "all"),
        ("late_weighted", "all"),
        ("late_weighted", "all,a=*"),
    ):
        settings = [f"classify.fusions={rule}", f"classify.fusion_groups={groups}"]
        config = CONFIG.with_settings(settings)
        # Start-up of tasks costs nothing here.
        steps = {s.name: s for s in plan(COUNTS, TRIALS, config, pools, Shape(8), FREE)}
        seconds.append(steps["classify"].core_s)
    assert seconds[1] > 1.2 * seconds[0]
    assert seconds[2] == pytest.approx(seconds[1])


def test_the_default_rule_is_planned_where_there_is_a_gram_matrix() -> None:
    config = CONFIG.with_settings(["classify.fusions=auto"])
    pools = cluster_pools.pools(config.cluster, {"CPU": 8.0})
    for training, results in ((500, 4 + 1), (500_000, 4)):
        counts = dataclasses.replace(COUNTS, videos=2 * training, training=training)
        steps = {s.name: s for s in plan(counts, TRIALS, config, pools, Shape(8), FREE)}
        assert steps["evaluate"].units == results


def test_metrics_are_made_side_by_side() -> None:
    """A task for each of four results; half a round of them takes as long as a whole one."""
    seconds = {cpus: planned(Shape(cpus))["evaluate"].wall_s.value for cpus in (1, 2, 3, 4, 64)}
    core_s = planned(Shape(1))["evaluate"].core_s
    expected = {1: core_s, 2: core_s / 2, 3: core_s / 2, 4: core_s / 4, 64: core_s / 4}
    assert core_s == pytest.approx(4 * 0.005 * 500 * 810 / 1000)
    assert seconds == pytest.approx(expected)


def test_without_labels_nothing_is_classified() -> None:
    counts = Counts(videos=1000, labelled=0, training=0, tested=0, classes=0, num_folds=0)
    assert list(planned(Shape(8), counts=counts)) == ["index", "describe", "fit", "encode"]


def test_start_up_is_added_once_to_each_step() -> None:
    fixed = Overheads(job_s=1, pool_s=2, torch_pool_s=4, train_s=8, task_s=0, report_s=16)
    free, paid = planned(Shape(8)), planned(Shape(8), fixed=fixed)
    more = {name: paid[name].wall_s.value - free[name].wall_s.value for name in free}
    assert more == pytest.approx(
        {"index": 2, "describe": 4, "fit": 2 + 8, "encode": 4, "classify": 4, "evaluate": 16}
        | {"final": 4}
    )
    wall = total(list(paid.values()), fixed)
    assert wall.value == pytest.approx(1 + sum(step.wall_s.value for step in paid.values()))


def test_a_range_holds_what_the_sample_leaves_open() -> None:
    index = planned(Shape(8))["index"].wall_s
    assert index.high == pytest.approx(index.value * (1 + UNSURE + 2 * 0.05))
    assert index.low == pytest.approx(index.value * (1 - UNSURE - 2 * 0.05))


@given(
    cpus=st.integers(1, 512),
    gpus=st.integers(0, 16),
    videos=st.integers(1, 10**8),
    missing=st.integers(0, 99),
)
def test_a_plan_of_anything_is_ordered_and_finite(
    cpus: int, gpus: int, videos: int, missing: int
) -> None:
    counts = dataclasses.replace(COUNTS, videos=videos, labelled=videos, training=videos)
    headers = dataclasses.replace(TRIALS.headers, missing=missing, failed=0)
    steps = planned(
        Shape(cpus, gpus, GPU if gpus else None),
        dataclasses.replace(TRIALS, headers=headers),
        Overheads(),
        counts,
    )
    for step in steps.values():
        assert 0 < step.wall_s.low <= step.wall_s.value <= step.wall_s.high < float("inf")
        assert step.gpu_s.low <= step.gpu_s.value <= step.gpu_s.high
        assert (step.gpu_s.value > 0) == bool(gpus and step.flops)
        assert min(step.core_s, step.reads, step.writes, *step.tables.values()) >= 0
        assert step.peak_bytes > 0


def test_more_nodes_are_never_slower() -> None:
    walls = [total(list(planned(Shape(cpus)).values()), Overheads()).value for cpus in (8, 32, 128)]
    assert walls == sorted(walls, reverse=True)


PRICES = Prices(
    "USD",
    (GPU, Gpu(name="g2", float32_tflops=4.0, share=(0.25, 1.0))),
    (
        Machine(name="plain", cpus=16, gpus=0, on_demand=0.5, spot=0.2),
        Machine(name="one", cpus=8, gpus=1, gpu="g1", on_demand=2.0, spot=1.0),
        Machine(name="eight", cpus=96, gpus=8, gpu="g1", on_demand=12.0, spot=6.0),
        Machine(name="other", cpus=8, gpus=1, gpu="g2", on_demand=1.0, spot=0.1),
    ),
)


def test_offers_are_machines_enough_for_cpus_and_gpus() -> None:
    wall = Range(3600.0, 1800.0, 7200.0)
    one, eight = offers(Shape(20, 2, GPU), wall, PRICES)
    assert (one.machine.name, one.number) == ("one", 3), "three for the CPUs"
    assert (one.price.value, one.price.low, one.price.high) == (6.0, 1.5, 12.0)
    assert (eight.machine.name, eight.number, eight.price.value) == ("eight", 1, 12.0)
    (plain,) = offers(Shape(20), wall, PRICES)
    assert (plain.machine.name, plain.number) == ("plain", 2)
    assert offers(Shape(8, 1), wall, PRICES) == [], "GPUs of this machine, whatever they are"
    assert (
        offers(Shape(8, 1, Gpu(name="g3", float32_tflops=1.0, share=(0.5, 0.5))), wall, PRICES)
        == []
    )


def test_gpu_hours_are_of_every_kind_whatever_the_cluster_has() -> None:
    hours = gpu_hours(sum(step.flops for step in planned(Shape(8)).values()), PRICES)
    flops = sum(step.flops for step in planned(Shape(8)).values())
    assert hours["g1"].value == pytest.approx(flops / 0.5e12 / 3600)
    assert hours["g2"].value == pytest.approx(hours["g1"].value / 4)
