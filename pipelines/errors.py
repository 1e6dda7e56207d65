"""Errors for users. Their message says where, what was expected, what was got and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting or an input that cannot be right.

    The message is meant for the user as it stands.
    """


class RunError(Exception):
    """A run that cannot go on because of its videos.

    The message is meant for the user as it stands.
    """


@contextmanager
def at_setting(settings: str) -> Iterator[None]:
    """Turn a ValueError inside into a ConfigError that names the settings."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set {settings}: {error}") from error
