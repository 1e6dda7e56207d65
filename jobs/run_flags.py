"""The flags that the main job and its variants have in common, and what is done with them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from pipelines import flags, launch
from pipelines.errors import ConfigError
from pipelines.plan.prices import read_prices
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.settings.recipes import RECIPES
from pipelines.storage.uris import refuse_credentials

if TYPE_CHECKING:  # torch and Ray are loaded after the settings were checked
    from pipelines.prepare import Inputs
    from pipelines.run.job import Job

log = logging.getLogger("video_fisher")

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of a run as they were given; `configuration` checks them."""

    videos: str
    out: str
    labels: str | None = None
    recipe: str | None = None
    config: str | None = None
    settings: tuple[str, ...] = ()
    steps: str = "all"
    limit: int | None = None
    plan: bool = False
    retry_failed: str | None = None
    take_over: bool = False
    address: str | None = None
    verbose: bool = False
    default_recipe: str = "fcvid"

    @property
    def paths(self) -> dict[str, str | None]:
        """Return {flag: path or URI}."""
        return {f"--{name}": getattr(self, name) for name in ("videos", "labels", "out")}


def add_settings(default_recipe: str) -> Callable[[_Function], _Function]:
    """Return a decorator that adds --recipe, --config and --set."""
    return _added(
        click.option(
            "--recipe",
            metavar="NAME",
            help=f"The settings to start from: one of {', '.join(RECIPES)} "
            f"(default: {default_recipe}).",
        ),
        click.option(
            "--config",
            metavar="FILE",
            help="YAML or JSON of {section: {field: value}}, or a run.json, whose settings are "
            "then taken.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="SECTION.FIELD=VALUE",
            help="Change one setting, after --config; may be repeated; `video-fisher settings` "
            "lists them all.",
        ),
    )


def add(default_recipe: str = "fcvid") -> Callable[[Callable], Callable]:
    """Return a decorator that adds the main job's frozen flags; all else is
    `--set section.field=value`.

    The function gets them as its first argument, a `Flags`.
    """
    names = {field.name for field in dataclasses.fields(Flags)}

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def collected(**values: Any) -> Any:
            mine = {name: values.pop(name) for name in names & values.keys()}
            return function(Flags(**mine, default_recipe=default_recipe), **values)

        return _INPUTS(add_settings(default_recipe)(_WORK(collected)))

    return decorate


def _added(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Return a decorator that adds options, the first of them on top."""
    return lambda function: functools.reduce(
        lambda changed, option: option(changed), reversed(options), function
    )


_INPUTS = _added(
    click.option(
        "--videos",
        required=True,
        metavar="PATH",
        help="Folder, glob or single file, local or a URI, or a CSV or Parquet manifest: a column "
        "`path` that names the videos.",
    ),
    click.option(
        "--labels",
        metavar="FILE",
        help="CSV or Parquet: path,label[,group][,split], several rows for several labels; "
        "annotations of UCF101, HMDB51, Kinetics, ActivityNet or FCVID as they are published; or "
        "the word folders: each video lies in the folder of its class (docs/labels.md).",
    ),
    click.option(
        "--out",
        required=True,
        metavar="PATH",
        help="Folder or URI that the tables and the report are written to.",
    ),
)

_WORK = _added(
    click.option(
        "--steps",
        default="all",
        metavar="NAMES",
        help=f"Steps to run, joined by commas: {','.join(STEPS)} (default: all).",
    ),
    click.option(
        "--limit", type=int, metavar="N", help="Use N videos only, spread over the corpus."
    ),
    click.option(
        "--plan",
        is_flag=True,
        help="Say how long the run would take and what it would cost, from trials on a sample, and "
        "run nothing.",
    ),
    click.option(
        "--retry-failed",
        is_flag=False,
        flag_value="",
        type=click.Choice(("", "pyav", "decord")),
        metavar="[DECODER]",
        help="Try the failed segments again, with this decoder if one is named: pyav, or decord, "
        "whose codecs are of 2018 and which asks for --set decode.accept_old_codecs=true.",
    ),
    click.option(
        "--take-over",
        is_flag=True,
        help="Take the output folder's lock from another run; only if that run is surely dead.",
    ),
    click.option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to join (default: RAY_ADDRESS if it is set, else a cluster of its own on "
        "this machine).",
    ),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        help="Say more of each step: what is to do, which stages are busy, what is chosen and why.",
    ),
)


def parsed(command: click.Command, argv: Sequence[str], name: str) -> Flags:
    """Return the flags of a run that stand behind another command's `--`.

    Raises:
        click.UsageError: they are not those of the command.
    """
    values = command.make_context(name, list(argv)).params
    return Flags(**values)


def configuration(given: Flags, first: Sequence[str] = ()) -> Config:
    """Return the configuration that the flags give, and check the other plain flags.

    It needs neither torch nor Ray.

    Args:
        first: settings of a job's own, under those of the user.

    Raises:
        ConfigError: a flag that cannot be right.
    """
    for name in ("videos", "labels", "out", "config", "address"):
        refuse_credentials(f"--{name}", getattr(given, name) or "")
    flags.parse_steps(given.steps)
    flags.check_limit(given.limit)
    config = flags.configuration(
        given.recipe,
        given.config,
        given.settings,
        default_recipe=given.default_recipe,
        first=first,
    )
    if given.retry_failed == "decord" and not config.decode.accept_old_codecs:
        raise ConfigError(
            "--retry-failed decord: decord carries FFmpeg's codecs of 2018 (libavcodec 58.35), "
            "without the security fixes since then, and files that failed may be hostile; if you "
            "trust them, add --set decode.accept_old_codecs=true, otherwise use --retry-failed pyav"
        )
    return config


def inputs(given: Flags, config: Config, *, training_only: bool = False) -> Inputs:
    """Return the inputs of a run; see `run`."""
    from pipelines import prepare

    return prepare.Inputs(
        videos=given.videos,
        labels=given.labels,
        out=given.out,
        config=config,
        steps=flags.possible_steps(given.steps, given.videos, given.labels),
        limit=given.limit,
        training_only=training_only,
    )


def run(
    given: Flags,
    config: Config,
    *,
    training_only: bool = False,
    restore: bool = True,
    finish: Callable[[Job], None] = lambda job: None,
) -> int:
    """Run the steps that --steps names, or with --plan plan them; return the exit code.

    Args:
        training_only: see `prepare.Inputs`.
        restore: see `corpus.run`.
        finish: called at the end, before the exit code is decided.
    """
    address, submission = launch.before_ray(given.address, given.paths)
    if given.plan and config.plan.num_gpus:
        read_prices(config.plan.prices).gpu(config.plan.gpu)
    # torch and Ray take seconds to load: wrong settings are reported before.
    from pipelines import corpus, prepare
    from pipelines.plan import command as plan_command

    wanted = inputs(given, config, training_only=training_only)
    if given.plan:
        print(plan_command.run(prepare.prepare(wanted, plan=True), wanted.steps))
        return 0
    start = launch.Start(
        command=shlex.join(sys.argv),
        address=address,
        submission=submission,
        take_over=given.take_over,
        retry_failed=given.retry_failed,
        restore=restore,
    )
    job, outcome = launch.launch(wanted, start)
    for line in corpus.closing_lines(job, outcome, wanted.steps):
        log.info(line)
    finish(job)
    if reason := launch.too_many_failed(job, outcome):
        log.error(reason)
        return 3
    return 0
