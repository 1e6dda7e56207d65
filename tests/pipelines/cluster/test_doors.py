"""A cluster of a run's own answers this machine and this run, and nobody else."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import doors

ROOT = Path(__file__).parents[3]

RUN = """
import json, sys
from pipelines.cluster import doors
doors.close()
from pipelines.cluster import connect
from pipelines.settings.sections import Cluster
connect.connect(None, Cluster())
import ray
import psutil

@ray.remote
def work():
    return 1

assert ray.get(work.remote()) == 1
me = psutil.Process()
listening = [
    (process.name(), *connection.laddr)
    for process in [me, *me.children(recursive=True)]
    for connection in process.net_connections(kind="inet")
    if connection.status == psutil.CONN_LISTEN
]
gcs = ray.get_runtime_context().gcs_address
print(json.dumps({"gcs": gcs, "listening": listening}), flush=True)
sys.stdin.read()
"""

CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR")
print(ray.get(ray.remote(lambda: "inside").remote()))
"""


def outside(**changes: str | None) -> dict[str, str]:
    """Return the environment of another program: without what the run keeps for itself."""
    made = (doors.MADE, "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    kept = {name: value for name, value in os.environ.items() if name not in made}
    return kept | {name: value for name, value in changes.items() if value is not None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """{"gcs": address, "listening": (process, address, port)} of a run that works while the tests
    do."""
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        env=outside(HOME=str(home)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = json.loads(process.stdout.readline())
    yield said | {"home": home}
    process.communicate("")


def other_addresses() -> list[str]:
    """Return this machine's addresses besides loopback."""
    import ray  # noqa: F401 (which brings psutil)

    # isort: split
    import psutil

    found = [one for every in psutil.net_if_addrs().values() for one in every]
    return [
        one.address
        for one in found
        if one.family == socket.AF_INET and not one.address.startswith("127.")
    ]


@pytest.mark.slow
def test_every_process_of_a_run_listens_on_loopback_alone(run: dict) -> None:
    names = {name for name, _, _ in run["listening"]}
    assert {"gcs_server", "raylet"} <= names, "the test must see Ray's own processes"
    local = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert [one for one in run["listening"] if one[1] not in local] == []


@pytest.mark.slow
def test_other_addresses_of_the_machine_refuse(run: dict) -> None:
    if not (addresses := other_addresses()):
        pytest.skip("this machine has no address besides loopback")
    for address in addresses:
        for _, _, port in run["listening"]:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5).close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}], ids=["none", "wrong"]
)
def test_a_client_without_the_token_is_refused(run: dict, token: dict, tmp_path: Path) -> None:
    # On this machine, as anything else cannot even connect.
    local = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    environment = outside(HOME=str(tmp_path), **(local | token))
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, run["gcs"]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode != 0
    assert "inside" not in done.stdout
    assert "token" in done.stderr.lower()


@pytest.mark.slow
def test_the_token_is_in_no_file(run: dict) -> None:
    assert list(run["home"].rglob("*auth_token*")) == []


def test_each_run_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = set()
    for _ in range(2):
        monkeypatch.delenv(doors.MADE, raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "somebody's")
        assert not doors.are_closed()
        doors.close()
        assert doors.are_closed()
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
        doors.close()
        assert os.environ["RAY_AUTH_TOKEN"] in tokens, "a second call keeps it"
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


def test_a_cluster_with_open_doors_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cluster import connect
    from pipelines.settings.sections import Cluster

    monkeypatch.delenv(doors.MADE, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("a cluster was started"))
    with pytest.raises(RuntimeError, match=r"expected pipelines\.cluster\.doors\.close"):
        connect.connect(None, Cluster())
