"""Which errors of storage may be gone at the next try."""

import errno

import pytest
from aiohttp import ClientOSError, ClientPayloadError, ServerDisconnectedError
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)

from pipelines.storage.retries import may_pass

URL = {"endpoint_url": "http://storage"}


@pytest.mark.parametrize(
    "error",
    [
        # Both are an OSError too, without a number.
        ConnectTimeoutError(**URL),
        ReadTimeoutError(**URL),
        EndpointConnectionError(**URL),
        ConnectionClosedError(**URL),
        ClientOSError(errno.ECONNRESET, "reset"),
        ClientPayloadError(),
        ServerDisconnectedError(),
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.EBUSY, "SlowDown"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_storage_that_does_not_answer_is_asked_again(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "gone"),
        PermissionError(errno.EACCES, "refused"),
        NoCredentialsError(),
        ParamValidationError(report="wrong"),
        ValueError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_refused_is_not_asked_again(error: Exception) -> None:
    assert not may_pass(error)
