"""The command line of every job: its command, wrong flags, signals and exit codes.

Nothing here takes long to load.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

import rich_click as click
from click import get_current_context

from pipelines import logs
from pipelines.errors import ConfigError, near, shown, user_error

STOPPED = "stopped: what is finished is kept, and the same command goes on from there"


def command(docstring: str | None) -> Callable[[Callable], click.RichCommand]:
    """Return a decorator that makes a function the command of its job.

    Args:
        docstring: the docstring of the job, whose first line is shown.
    """
    return click.command(
        help=docstring.splitlines()[0] if docstring else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(command: click.Command, name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; wrong flags become one message.

    Args:
        name: of the program, as it is typed.
        argv: its flags; None: those of the process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return command.main(words, prog_name=name, standalone_mode=False, obj=tuple(words)) or 0
    except click.UsageError as error:
        about = f"; `{error.ctx.command_path} --help` says more" if error.ctx else ""
        print(f"error: {_said(error)}{about}", file=sys.stderr)
        return error.exit_code
    except click.Abort:
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGINT


def typed() -> str:
    """Return the command that runs, as the user may type it again."""
    context = get_current_context()
    words = context.obj
    if context.parent:
        words = words[words.index(context.info_name) + 1 :]
    return f"{context.command_path} {shlex.join(words)}"


def _said(error: click.UsageError) -> str:
    """Return the message about a wrong flag in the form of all others."""
    if isinstance(error, click.NoSuchOption):
        known = [name for p in error.ctx.command.params for name in p.opts] if error.ctx else []
        return f"{error.option_name}: no such flag{near(error.option_name, known, '')}"
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: {error.message.rstrip('.')}"
    if isinstance(error, click.MissingParameter) and error.param:
        return f"{error.param.opts[0]}: expected a value, got none"
    if isinstance(error, click.BadParameter) and error.param:
        return f"{error.param.opts[0]}: {error.message.rstrip('.')}"
    return error.format_message().rstrip(".")


def guarded(job: Callable[[], int]) -> int:
    """Run a job and return its exit code; a user's error becomes one message.

    A signal that ends the job unwinds it, so that the lock of the output folder is given back.
    """
    context = get_current_context(silent=True)
    logs.configure(verbose=bool(context and context.params.get("verbose")))
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Ignored under nohup, which is to outlive the terminal.
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        return job()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGINT
    except _HungUp:
        # The terminal, and with it the error stream, may be gone.
        with contextlib.suppress(OSError):
            print(STOPPED, file=sys.stderr, flush=True)
        return 128 + signal.SIGHUP
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        print(f"error: {shown(known)}", file=sys.stderr)
        return 2 if isinstance(known, ConfigError) else 1


class _HungUp(SystemExit):
    """The terminal of the job has gone (SIGHUP)."""


def _hang_up(*_: object) -> None:
    raise _HungUp


def _terminate(*_: object) -> None:
    # Ray's own handler, which replaces this one when Ray starts, does the same.
    sys.exit(signal.SIGTERM)
