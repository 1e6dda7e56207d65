"""URIs to filesystems. Imports fsspec alone: the decoder's child process uses it too."""

import os
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

REQUESTS = 4
"""Times that a client of object storage sends a request before it gives up."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URI and the path in it; it retries, and caches no listings.

    The path of a local file is absolute and without `..`, whatever folder it is named from. Links
    stay as they are named: they may be the stable name of a folder that moves.
    """
    protocol = uri.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        retries = {"mode": "standard", "total_max_attempts": REQUESTS}
        options = {"config_kwargs": {"retries": retries}}
    if protocol in ("s3", "s3a", "gs", "gcs", "abfs", "az"):
        options["use_listings_cache"] = False
    fs, path = fsspec.core.url_to_fs(uri, **options)
    return fs, os.path.normpath(path) if isinstance(fs, LocalFileSystem) else path
