"""The head that a run joins is there, or one message says that it is not."""

import socket
import time

import pytest

from pipelines.cluster.connect import require_answer
from pipelines.errors import RunError


def test_a_dead_address_is_one_message_in_time() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"--address ray://127.0.0.1:{port}: expected the head of"):
        require_answer(f"ray://127.0.0.1:{port}", patience_s=0.2)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "127.0.0.1:99999"])
def test_an_address_that_cannot_be(address: str) -> None:
    with pytest.raises(RunError, match="got no answer"):
        require_answer(address, patience_s=0.1)


def test_a_head_that_listens_is_joined() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_answer(f"127.0.0.1:{server.getsockname()[1]}")
    require_answer("auto")
