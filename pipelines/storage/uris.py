"""URIs of folders and files: made absolute, and kept free of credentials."""

import os

from pipelines.credentials import has_credentials
from pipelines.errors import ConfigError


def absolute_uri(uri: str) -> str:
    """Make a local path absolute and without `..`, as workers run in other folders; keep other
    URIs.
    """
    scheme, _, path = uri.rpartition("://")
    refuse_empty("--out", path.strip("/") if scheme else uri)
    refuse_memory("--out", uri)
    refuse_credentials("--out", uri)
    if "://" not in uri:
        return os.path.abspath(os.path.expanduser(uri))
    return uri.rstrip("/")


def refuse_empty(where: str, uri: str) -> None:
    """Refuse an empty name, which would mean the current folder.

    Raises:
        ConfigError: it is empty.
    """
    if not uri.strip():
        raise ConfigError(
            f"{where}: expected a path or URI, got an empty one; is a variable of the shell not "
            "set?"
        )


def refuse_memory(where: str, uri: str) -> None:
    """Refuse storage in the memory of one process, which the others of a run do not see.

    Raises:
        ConfigError: it is such.
    """
    if uri.startswith("memory:"):
        raise ConfigError(
            f"{where} {uri}: expected a folder, s3://, gs:// or az://, which all processes of a "
            "run see; got the memory of one of them"
        )


def refuse_credentials(where: str, uri: str) -> None:
    """Refuse a URI that holds credentials: it would be written into tables and logs.

    Raises:
        ConfigError: it does.
    """
    if has_credentials(uri):
        raise ConfigError(
            f"{where} {uri}: expected a URI without credentials, got some; give them by "
            "the environment or the configuration of the client (such as AWS_ACCESS_KEY_ID, "
            "AWS_PROFILE or the role of the machine; RAY_AUTH_TOKEN for a cluster)"
        )
