"""A trial of a folder before work starts: all that a run will ask of its storage, asked once."""

import contextlib
import logging
import secrets

from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

_DATA = b"0123456789"


def try_out(store: Store) -> None:
    """Create a file, create it again, read a range of it, list its folder, and remove it.

    A second create that succeeds is warned of: `pipelines.run.lock` can do without its refusal.

    Raises:
        StorageError: one of these failed; it says which.
    """
    name, action = f".try.{secrets.token_hex(4)}.part", "a create"
    try:
        store.publish(name, _DATA)
        action = "a conditional create"
        with contextlib.suppress(FileExistsError):
            store.create(name, _DATA[::-1])
            log.warning(
                "%s: this storage creates a file that is there (no conditional writes): of two "
                "runs that start in the same moment, one stops a second later",
                store.root,
            )
            store.publish(name, _DATA)
        action = "a ranged read"
        if (got := store.read_range(name, 2, 5)) != _DATA[2:5]:
            raise StorageError(f"{store.uri(name)}: expected {_DATA[2:5]!r}, got {got[:20]!r}")
        action = "a list"
        store.folders("")
        action = "a delete"
        store.delete(name)
    except StorageError as error:
        with contextlib.suppress(StorageError):
            store.delete(name)
        raise StorageError(f"the trial of the storage: {action} failed: {error}") from (
            error.__cause__ or error
        )
