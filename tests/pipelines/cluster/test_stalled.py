"""A step that cannot go on ends with words, on the one local cluster of this test process."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray
from ray.data import DataContext

from pipelines.cluster import datasets, progress
from pipelines.cluster.device import device
from pipelines.cluster.meter import Meter
from pipelines.cluster.pools import Growth, Pool
from pipelines.cluster.progress import ProgressLine
from pipelines.errors import RunError
from pipelines.settings.config import Config
from pipelines.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.2)
    before = DataContext.get_current()
    context = before.copy()
    context.execution_no_progress_timeout_s = 6
    DataContext._set_current(context)
    yield
    DataContext._set_current(before)


def written(line: ProgressLine, stage: type, arguments: tuple, pool: Pool, folder: Path) -> None:
    """Runs one stage into no table."""
    job = SimpleNamespace(store=Store(str(folder)), config=Config())
    data = datasets.dataset(pa.table({"video_id": ["a", "b"]}), 1)
    data = data.map_batches(stage, fn_constructor_args=arguments, **pool.options(1))
    datasets.write_tables(job, line, data, [], rows_per_file=1)


def test_a_pool_that_never_gets_an_actor_is_warned_of_and_ends(
    impatient: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Same:
        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows

    pool = Pool(2, num_cpus=0, num_gpus=1)
    line = ProgressLine("describe", 2, Growth({("describe",): pool}, warning_s=0.5))
    message = "describe: nothing was done for cluster.no_progress_timeout_s"
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match=message):
        written(line, Same, (), pool, tmp_path)
    warnings = [
        record.getMessage() for record in caplog.records if record.name == progress.__name__
    ]
    assert warnings
    assert warnings[0].startswith("describe: the pool of describe has had 0 of 2 actors")
    # Once, and then at growing intervals.
    assert len(warnings) <= 5


def test_a_broken_gpu_ends_the_step_and_names_the_node(tmp_path: Path) -> None:
    class Broken:
        def __init__(self, meter: Meter) -> None:
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
            device(meter, allow_missing_gpu=False)

        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows

    line = ProgressLine("describe", 2)
    with pytest.raises(RunError, match=r"describe: .* has the GPU 0 by Ray's account"):
        written(line, Broken, (line.meter,), Pool(1, num_cpus=0.5), tmp_path)


def test_actors_count_from_their_start_until_their_node_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Joining:
        def __init__(self, meter: Meter) -> None:
            meter.joined("probe")

        def __call__(self, rows: pa.Table) -> pa.Table:
            return rows

    line = ProgressLine("index", 2)
    written(line, Joining, (line.meter,), Pool(2, num_cpus=0.5), tmp_path)
    present = ray.get(line.counter.tell("present"))
    number = progress._alive(present)["probe"]
    # Two blocks may be done before the second actor has started.
    assert number in (1, 2)
    lost = [{"NodeManagerHostname": socket.gethostname(), "Alive": False}]
    monkeypatch.setattr("ray.nodes", lambda: lost)
    assert progress._alive(present) == {"probe": 0}
    # Another node of that machine, or one that came back.
    monkeypatch.setattr("ray.nodes", lambda: [*lost, lost[0] | {"Alive": True}])
    assert progress._alive(present) == {"probe": number}
