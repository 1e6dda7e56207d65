"""Fixtures of all tests: the data folder, and the one local Ray cluster of this test process."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipelines.cluster import doors

# Read by Ray when it is imported.
doors.close()
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

# Tests are many and small: threads cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# This machine's load must not decide whether a property holds; CI tries the same examples each time.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


SECRET = "a-secret-that-nothing-repeats"
"""The key of the S3 server of the tests."""


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real videos, weights and oracles; `VIDEO_FISHER_DATA` names another one."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("VIDEO_FISHER_DATA", default)).resolve()
    if not (folder / "README.md").exists():
        pytest.fail(f"no test data at {folder}: set VIDEO_FISHER_DATA to the data folder")
    return folder


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """A bucket on a moto server in this process, which the environment names as the S3 endpoint."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def local_ray(s3_bucket: str) -> Iterator[None]:
    """An embedded Ray cluster; every test of the process that wants one joins it.

    Its workers inherit the environment, and with it the S3 endpoint.
    """
    import ray

    from pipelines.cluster import connect
    from pipelines.settings.sections import Cluster

    connect.connect(None, Cluster(no_progress_timeout_s=120))
    yield
    ray.shutdown()
