"""A file that workers share, and errors of tasks that are meant for the user."""

from pathlib import Path

import pytest
import ray
from ray.exceptions import RayTaskError

from pipelines.cluster.broadcast import SharedFile, task_errors
from pipelines.errors import ConfigError, RunError
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


@ray.remote
def _length(file: SharedFile) -> int:
    return len(file())


@ray.remote
def _fails(error: Exception) -> None:
    raise error


@ray.remote
def _passes_on(value: object) -> None:
    raise AssertionError("its argument could not be made")


def test_a_shared_file_is_read_once(local_ray: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.publish("w", b"0123456789" * 100_000)
    file = SharedFile.of(store, "w")
    assert ray.get(_length.remote(file)) == 1_000_000
    store.delete("w")
    assert ray.get([_length.remote(file) for _ in range(4)]) == [1_000_000] * 4
    assert file() == b"0123456789" * 100_000


@pytest.mark.parametrize("is_passed_on", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RunError("a: expected b"), RunError, "a: expected b"),
        (StorageError("s3://x: cannot read it"), StorageError, "s3://x: cannot read it"),
        (ConfigError("x.y: expected d"), ConfigError, "x.y: expected d"),
        (ValueError("expected c"), RunError, "step: expected c"),
    ],
)
def test_errors_for_the_user_come_without_a_traceback(
    local_ray: None, error: Exception, kind: type[Exception], message: str, is_passed_on: bool
) -> None:
    task = _fails.remote(error)
    with pytest.raises(kind) as said, task_errors("step"):
        ray.get(_passes_on.remote(task) if is_passed_on else task)
    assert str(said.value) == message


def test_other_errors_stay_what_they_are(local_ray: None) -> None:
    with pytest.raises(RayTaskError, match="KeyError"), task_errors("step"):
        ray.get(_fails.remote(KeyError("x")))
