"""How the pools share what a cluster has."""

import pytest

from pipelines import cluster
from pipelines.config import Cluster


@pytest.mark.parametrize("cpus", [0.5, 1, 2, 4, 8, 15, 16, 64, 500])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("placement", ["separate", "together"])
def test_pools_and_a_write_task_fit(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: int, placement: str
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": cpus, "GPU": float(gpus)})
    pools = cluster.pools(Cluster(placement=placement))
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
        # Where describers have several threads, which must not wait for a core, decoders have cores of their own.
        left = int(cpus) - (pools.decode.size if pools.describe.num_threads > 1 else 0)
        assert max(1, left - 3) <= threads <= max(1, left)


def test_few_segments_start_few_describers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    pools = cluster.pools(Cluster())
    sizes = [pools.fitting(segments).describe.size for segments in (0, 15, 40, 10_000)]
    assert sizes == [1, 1, 2, 8]
    assert pools.fitting(1).decode == pools.decode


def test_few_cores_give_each_describer_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    pools = cluster.pools(Cluster())
    assert (pools.describe.size, pools.describe.num_threads, pools.decode.size) == (2, 1, 1)
    assert cluster.pools(Cluster(num_describers=1)).describe.num_threads == 1
