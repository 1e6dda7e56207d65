"""Errors for users. Their message says where, what was expected, what was got and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.credentials import redact


class _UserError(Exception):
    """An error whose message is meant for the user as it stands; credentials are left out of it."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ConfigError(_UserError, ValueError):
    """A setting or an input that cannot be right."""


class RunError(_UserError):
    """A run that cannot go on because of its videos."""


@contextmanager
def at_setting(settings: str) -> Iterator[None]:
    """Turn a ValueError inside into a ConfigError that names the settings."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set {settings}: {error}") from error
