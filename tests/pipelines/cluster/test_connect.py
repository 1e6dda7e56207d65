"""How the pools share what a cluster has."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.data import Dataset

from pipelines.cluster import connect, datasets
from pipelines.cluster import pools as cluster_pools
from pipelines.settings.config import Config
from pipelines.settings.sections import Cluster


@pytest.mark.parametrize("cpus", [0.5, 1, 2, 4, 8, 15, 16, 64, 500])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("placement", ["separate", "together"])
def test_pools_and_a_write_task_fit(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: int, placement: str
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": cpus, "GPU": float(gpus)})
    pools = cluster_pools.pools(Cluster(placement=placement))
    assert pools.together == (placement == "together")
    describing = (pools.describe,) if pools.together else (pools.decode, pools.describe)
    for used in ((pools.decode,), describing, (pools.encode,)):
        held = sum(pool.size * pool.num_cpus for pool in used) + pools.write_cpus
        assert held <= cpus + 1e-9
        assert sum(pool.size * pool.num_gpus for pool in used) <= gpus
        assert all(pool.size >= 1 and pool.num_cpus > 0 for pool in used)
    threads = pools.describe.size * pools.describe.num_threads
    if gpus:
        assert pools.describe.size == gpus
        assert pools.decode.size == max(1, int(cpus) - gpus)
    else:
        # Where describers have several threads, which must not wait for a core, decoders have cores
        # of their own.
        left = int(cpus) - (pools.decode.size if pools.describe.num_threads > 1 else 0)
        assert max(1, left - 3) <= threads <= max(1, left)


def test_few_segments_start_few_describers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    pools = cluster_pools.pools(Cluster())
    sizes = [pools.fitting(segments).describe.size for segments in (0, 15, 40, 10_000)]
    assert sizes == [1, 1, 2, 8]
    assert pools.fitting(1).decode == pools.decode


def test_few_cores_give_each_describer_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    pools = cluster_pools.pools(Cluster())
    assert (pools.describe.size, pools.describe.num_threads, pools.decode.size) == (2, 1, 1)
    assert cluster_pools.pools(Cluster(num_describers=1)).describe.num_threads == 1


@given(
    st.integers(1, 2000),
    st.integers(0, 64),
    st.sampled_from(["separate", "together"]),
    st.integers(0, 10**6),
)
def test_pools_of_a_growing_cluster_are_bounded_by_what_it_may_grow_to(
    cpus: int, gpus: int, placement: str, rows: int
) -> None:
    pools = cluster_pools.pools(Cluster(max_cpus=cpus, max_gpus=gpus, placement=placement))
    describing = (pools.describe,) if pools.together else (pools.decode, pools.describe)
    for used in ((pools.decode,), describing, (pools.encode,), (pools.read,)):
        assert sum(pool.size * pool.num_gpus for pool in used) <= gpus
        for pool in used:
            # All are asked for at once; one by one each would wait for the start of the node
            # before.
            compute = pool.options(8)["compute"]
            assert compute.min_size == compute.initial_size == compute.max_size == pool.size
            assert pool.num_gpus in (0, 1)
            assert pool.num_cpus in (0, 1)
            assert 1 <= pool.fitting(rows).size <= max(1, min(pool.size, rows // 64))
    assert pools.decode.size <= cpus
    assert pools.read.num_gpus == 0
    # What is held by one stage must never be what another one of the step waits for.
    assert pools.write_cpus == 0
    assert pools.together or (pools.decode.num_gpus, pools.describe.num_cpus) == (0, 0)
    if gpus:
        assert pools.describe.size == pools.encode.size == gpus
        assert pools.decode.size == max(1, cpus - gpus)


def test_sizes_that_were_chosen_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Cluster(max_cpus=8, max_gpus=4, num_decoders=3, num_describers=2, num_encoders=1)
    pools = cluster_pools.pools(chosen).fitting(1)
    assert (pools.decode.size, pools.describe.size, pools.encode.fitting(1).size) == (3, 2, 1)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    assert cluster_pools.pools(Cluster(num_describers=5)).fitting(1).describe.size == 5


def test_a_gpu_node_is_started_for_work_that_pays_for_it() -> None:
    pools = cluster_pools.pools(Cluster(max_cpus=64, max_gpus=8))
    sizes = [pools.fitting(segments).describe.size for segments in (10, 1024, 3000, 10**6)]
    assert sizes == [1, 1, 2, 8]
    assert pools.encode.fitting(3000).size == 2
    assert [pools.fitting(segments).decode.size for segments in (10, 640, 10**6)] == [1, 10, 56]


def test_what_a_step_may_count_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    assert cluster_pools.capacity(Cluster()) == {"CPU": 2.0}
    assert cluster_pools.capacity(Cluster(max_cpus=8, max_gpus=1)) == {"CPU": 8, "GPU": 1}


@pytest.mark.parametrize(
    ("nodes", "workers", "use_gpu", "share"),
    [
        ([(8, 0)], 1, False, 7),
        ([(8, 0)], 2, False, 3),
        ([(1, 0)], 1, False, 1),
        # 20 CPUs in all, of which no node has more than 16.
        ([(16, 0), (4, 0)], 1, False, 15),
        ([(16, 0), (16, 0)], 2, False, 15),
        # A third of 31 would leave the third worker without a place.
        ([(16, 0), (16, 0)], 3, False, 8),
        ([(64, 0), (8, 1)], 1, True, 8),
        ([(16, 1), (16, 1), (64, 0)], 2, True, 16),
        ([(96, 8)], 8, True, 11),
        ([(2, 0)], 5, False, 1),
    ],
)
def test_a_worker_has_what_its_node_can_give_it(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[int, int]],
    workers: int,
    use_gpu: bool,
    share: int,
) -> None:
    there = [
        {"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}
        for cpus, gpus in nodes
    ]
    gone = {"Alive": False, "Resources": {"CPU": 1000.0}}
    monkeypatch.setattr("ray.nodes", lambda: [gone, *there])
    assert cluster_pools.cpus_of_a_worker(workers, use_gpu) == share


@pytest.mark.ray
@pytest.mark.parametrize("placement", ["separate", "together"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_ray_data_takes_the_pools_of_either_placement(
    local_ray: None, gpus: int, placement: str
) -> None:
    class Stage:
        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows

    pools = cluster_pools.pools(Cluster(max_cpus=8, max_gpus=gpus, placement=placement))
    rows = pa.table({"segment_id": ["a", "b"]})
    data = datasets.describing(rows, Config(), pools, (Stage, ()), (Stage, ()))
    assert isinstance(data, Dataset)


def test_gpus_need_cpus() -> None:
    with pytest.raises(ValueError, match=r"max_gpus: expected 0 where cluster.max_cpus"):
        Cluster(max_gpus=2)


def test_a_stalled_step_says_how_long_it_waited_and_what_to_look_at() -> None:
    assert "cluster.no_progress_timeout_s = 600 s" in connect.stalled(Cluster())
    growing = connect.stalled(Cluster(max_cpus=4, node_wait_s=100, no_progress_timeout_s=20))
    assert "cluster.node_wait_s + cluster.no_progress_timeout_s = 120 s" in growing
    assert "`ray status`" in growing
