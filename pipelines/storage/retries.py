"""Errors of storage: which of them may be gone at the next try, and words for those that stay."""

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

_DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch")
"""Codes by which S3 says that what arrived is not what was sent."""

_PASSING_CODES = ("NoSuchUpload", *_DAMAGED)
"""An upload in parts is not known once its end or its abort was carried out and the answer lost."""

_CHECKSUM_ERRORS = ("FlexibleChecksumError", "ChecksumError")
"""Classes by which the clients of S3 and of Google say that what came is not what was stored."""

_TO_DO = {
    errno.ENOSPC: "the disk is full: make room, or take another --out",
    errno.EDQUOT: "the quota of this user is used up: make room, or take another --out",
    errno.EROFS: "it cannot be written to: mount it for writing, or take another --out",
    errno.EACCES: "this user lacks the right: give it, or take another --out",
    errno.EPERM: "this user lacks the right: give it, or take another --out",
    errno.EIO: "the disk or its mount has failed: see `dmesg`, mount it again",
    errno.ENOTCONN: "its mount is lost: mount it again",
    errno.ESTALE: "its mount is lost: mount it again",
    errno.ENODEV: "its mount is lost: mount it again",
    errno.ENOTDIR: "a file is where a folder is to be: take another --out",
}
"""Words for errors of a disk."""


class StorageError(RunError, OSError):
    """An error of storage; the message names file, error and what to do."""


def may_pass(error: Exception) -> bool:
    """Return whether an error of object storage may be gone at the next try."""
    if isinstance(error, (TimeoutError, ConnectionError)) or is_damage(error):
        return True
    if code(error) in _PASSING_CODES:
        return True
    if type(error).__module__.startswith("azure."):
        # Of requests without an answer it has none.
        status = getattr(error, "status_code", None)
        return status in (None, 408, 429) or status >= 500
    # A timeout of botocore's is an OSError too, without a number.
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    # Imported here, because local runs need neither.
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from botocore.parsers import ResponseParserError

    passing = (ClientError, NoConnection, HTTPClientError, IncompleteReadError, ResponseParserError)
    return isinstance(error, passing)


def is_damage(error: Exception) -> bool:
    """Return whether a checksum says that bytes were damaged on their way, or where they lie."""
    return type(error).__name__ in _CHECKSUM_ERRORS or code(error) in _DAMAGED


def to_do(error: Exception, *, on_disk: bool) -> str:
    """Return what to do about an error that stays."""
    if is_damage(error):
        return (
            "what came has not the checksum that was given with it: the object or the line is "
            "damaged; or the storage gives wrong checksums, which it is not asked for with "
            "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    if on_disk and isinstance(error, OSError) and error.errno in _TO_DO:
        return _TO_DO[error.errno]
    return "check the name, the rights and the credentials"


def code(error: Exception) -> str:
    """Return the error code that S3 gave, empty where there is none."""
    response = getattr(error.__cause__ or error, "response", None)
    return response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
