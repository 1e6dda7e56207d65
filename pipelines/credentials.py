"""Credentials in URIs: found by the parts of a URI, and left out of all that is shown.

Errors of users and all logs pass through `redact`, so that no caller has to think of it.
"""

import re
from collections.abc import Iterator

_REST = re.compile(r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>(?:(?!\w+://)[^\s'"<>])*)""")
"""URIs in a text; one ends where the next begins, as in lists and in chains of fsspec."""

_PARAMETER = re.compile(r"""(?<=[?&;#])(?P<name>[\w.%~-]+)=(?P<value>[^&;#\s'"<>]+)""")
"""Parameters in a query, a fragment or a connection string."""

_SECRET_NAME = re.compile(
    r"\w*(?:key|token|secret|password|passwd|passphrase|pwd|signature|credentials?)(?:id)?"
    r"|\w*secret\w*|sig|sign|auth|authorization|oauth\w*|bearer|jwt|sas|pass"
)
"""Names of parameters that carry a secret, in small letters and without `-`, `_`, `.`."""

_CONTAINER_FIRST = {"abfs", "abfss", "wasb", "wasbs"}
"""Schemes of Azure whose URIs are `container@account`: the name before the @ is no secret."""

_WITH_PORTS = {"http", "https", "ray", "ftp", "sftp", "ssh", "hdfs", "webhdfs", "smb"}
"""Schemes whose first part is a host, which may have a port; that of the others is a bucket."""

_PORT = re.compile(r"[^:]*:\d{1,5}")


def redact(text: str) -> str:
    """Return `text` with *** in place of the credentials of the URIs in it."""
    out, end = [], 0
    for start, stop in sorted(_secrets(text)):
        if start >= end:
            out += [text[end:start], "***"]
        end = max(end, stop)
    return "".join([*out, text[end:]])


def has_credentials(uri: str) -> bool:
    """Return whether a URI has user information or a parameter whose name is that of a secret."""
    return "://" in uri and any(True for _ in _secrets(uri))


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of credentials in a text."""
    for match in _REST.finditer(text):
        if length := _user_information(match["scheme"].lower(), match["rest"]):
            yield match.start("rest"), match.start("rest") + length
    for match in _PARAMETER.finditer(text):
        if _SECRET_NAME.fullmatch(re.sub(r"[-_.]|%\w\w", "", match["name"]).lower()):
            yield match.span("value")


def _user_information(scheme: str, rest: str) -> int:
    """Return the length of the user information in front of the @; 0 where there is none.

    About half of AWS's secrets have a `/` in them, which ends the host for a parser of URIs: a
    `name:` that is no host with its port, in front of an @, is taken for the beginning of one.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at:
        return 0 if scheme in _CONTAINER_FIRST and ":" not in user else len(user)
    if ":" not in authority or "@" not in rest:
        return 0
    if scheme in _WITH_PORTS and _PORT.fullmatch(authority):
        return 0
    return rest.rindex("@")
