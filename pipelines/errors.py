"""The errors that a user reads: their message says where, what was expected, what was got and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting or an input that cannot be right; the message is meant for the user as it stands."""


class RunError(Exception):
    """A run that cannot go on because of what the videos hold; meant for the user as it stands."""


@contextmanager
def at_setting(settings: str) -> Iterator[None]:
    """Of a ValueError, says which settings it is about, and makes it a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set {settings}: {error}") from error
