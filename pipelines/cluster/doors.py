"""The doors of a Ray cluster that is started here: its addresses, and access to them.

Ray reads these variables when it is imported, so nothing here imports it.
"""

import os
import secrets

MADE = "VIDEO_FISHER_OWN_TOKEN"
"""Names the token that this module made, so that child processes of a run keep it."""


def close() -> None:
    """Keep a cluster of one's own to this machine and this run; call it before Ray is imported.

    Ray 2.60 listens on all addresses of the machine even where the node's address is 127.0.0.1: it
    replaces that one by an address that others reach. Without clusters of several machines, which
    Ray forbids by this variable where they are not supported, it keeps 127.0.0.1 and listens there
    alone. Other users of the machine are kept out by a random token, which is nowhere but in the
    environment of the run's own processes.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    if not os.environ.get(MADE) or os.environ.get(MADE) != os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_TOKEN"] = os.environ[MADE] = secrets.token_hex(32)


def are_closed() -> bool:
    """Return whether `close` was called in this process or the one that started it."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    return bool(token) and token == os.environ.get(MADE)
