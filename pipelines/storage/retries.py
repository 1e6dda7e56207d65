"""Errors of object storage, and which of them may be gone at the next try."""

import errno

from pipelines.errors import RunError

_PASSING = (
    errno.EBUSY,
    errno.EIO,
    getattr(errno, "EREMOTEIO", errno.EIO),
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
)
"""Errors that may be gone at the next try: s3fs says EBUSY for 503, EREMOTEIO for 500, EIO for the
unknown.
"""


class StorageError(RunError, OSError):
    """An error of object storage; the message names object, error and number of tries."""


def may_pass(error: Exception) -> bool:
    """Return whether an error of object storage may be gone at the next try."""
    if isinstance(error, (TimeoutError, ConnectionError)) or _code(error) == "NoSuchUpload":
        # An upload in parts is not known once its end or its abort was carried out and the answer
        # lost.
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING
    # Imported here, because local runs need neither.
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    return isinstance(error, (ClientError, NoConnection, HTTPClientError, ResponseParserError))


def _code(error: Exception) -> str:
    """Return the error code that S3 gave, empty where there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code", "")
