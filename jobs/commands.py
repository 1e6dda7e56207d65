"""The command `video-fisher`: every job is a subcommand, which is loaded when it is asked for."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path

import click
import rich_click

import pipelines
from jobs import command_line
from pipelines.errors import near

COMMANDS = {
    "run": "fcvid_encode",
    "plan": "plan",
    "predict": "predict",
    "compare": "compare",
    "search": "search",
    "confidence": "confidence",
    "retrieve": "retrieve",
    "correspond": "correspond",
    "export": "export",
    "doctor": "doctor",
    "clean": "clean",
    "settings": "settings",
    "sweep": "sweep",
    "train-network": "train_network",
    "benchmark-networks": "benchmark_networks",
    "flow-error": "flow_error",
    "finetune": "finetune",
    "compare-encoders": "compare_encoders",
    "fine-grained": "fine_grained",
    "average-splits": "average_splits",
    "submit": "submit",
    "demo": "demo",
}
"""{subcommand: its module in jobs/}, in the order of `--help`. The module has a click command
`command`, and its docstring's first line is the short help."""


class _Lazy(rich_click.RichGroup):
    """A group that imports the module of a subcommand when the subcommand runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a stand-in, which has the short help alone."""
        if cmd_name not in COMMANDS:
            return None
        text = Path(__file__).with_name(f"{COMMANDS[cmd_name]}.py").read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text)) or ""
        return click.Command(cmd_name, help=said.partition("\n")[0])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, *rest = args
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"{name}: no such command{near(name, COMMANDS)}", ctx)
        if name not in COMMANDS:
            return super().resolve_command(ctx, args)
        return name, importlib.import_module(f"jobs.{COMMANDS[name]}").command, rest


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pipelines.__version__, prog_name="video-fisher")
def group() -> None:
    """Turn a corpus of videos into Fisher vectors, classifiers and tables."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    return command_line.main(group, "video-fisher", argv)
