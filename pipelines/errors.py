"""Errors for users. Their message says where, what was expected, what was got and what to do."""

import difflib
from collections.abc import Iterable, Iterator
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


def user_error(error: Exception) -> ConfigError | RunError | None:
    """Return the error for the user that another one comes of, None where there is none.

    Ray hands on what its tasks, Ray Data and Ray Train raise inside errors of its own, whose
    message is the traceback of a worker.
    """
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, Exception):
            continue
        inner = [getattr(found, name, None) for name in ("cause", "controller_failure")]
        # Ray's own are of the class of their cause too.
        if isinstance(found, (ConfigError, RunError)) and inner[0] is None:
            return found
        failures = getattr(found, "worker_failures", {})
        waiting += [*inner, *failures.values(), found.__cause__, found.__context__]
    return None


def shown(error: ConfigError | RunError) -> str:
    """Return the message of an error without the advice that Ray Data adds: how it could be told
    to try again, which a step would not outlive.
    """
    return str(error).partition("\nFailed to ")[0]


def near(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return the end of a message about an unknown name: similar names, else `otherwise`, or all
    names.
    """
    similar = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if similar:
        return f"; did you mean {' or '.join(similar)}?"
    return f"; there are {', '.join(known) or 'none'}" if otherwise is None else otherwise


@contextmanager
def at_setting(settings: str) -> Iterator[None]:
    """Turn a ValueError inside into a ConfigError that names the settings."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--set {settings}: {error}") from error
