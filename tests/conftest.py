"""Fixtures of all tests: the data folder, and the one local Ray cluster of this test process."""

import os
import socket
import subprocess
import sys
import time
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

# This machine's load must not decide whether a property holds; CI tries the same examples each
# time.
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
    """A bucket on a moto server, which the environment names as the S3 endpoint.

    The server is a process of its own: other tests of moto empty all buckets of their process.
    """
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            break
        except OSError:
            assert server.poll() is None, "the moto server has ended"
            assert time.monotonic() < deadline, "the moto server does not answer"
            time.sleep(0.1)
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
    server.terminate()
    server.wait()
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
