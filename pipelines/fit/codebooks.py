"""All codebooks of a recipe in one Ray Train run: its fixed cost of some 20 s is paid once.

Teams of workers (`pipelines.cluster.teams`) keep a sample's frames in memory and fit one codebook
after another. What is finished is published at once, and a run that is started again skips it; a
codebook that was under way goes on from its last checkpoint.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train.torch
import torch
from ray.actor import ActorHandle

from encoders.codebooks.sample import FitSample
from encoders.descriptors.pyramid import num_cells
from encoders.descriptors.streams import Stream
from encoders.registry import fit_encoder
from pipelines.cluster import pools
from pipelines.cluster.checkpoints import Checkpoints
from pipelines.cluster.meter import StepCounter
from pipelines.cluster.teams import Dealer, Team, teams_at_once
from pipelines.cluster.training import run_training
from pipelines.errors import RunError
from pipelines.index.labels import target_matrix
from pipelines.ledger.accounts import Spent
from pipelines.ledger.marks import Contents, find, holds, publish_mark
from pipelines.run.codebook import Codebook, Fitted
from pipelines.settings.config import Config
from pipelines.storage.columns import Table, descriptors_from_arrow
from pipelines.storage.store import DONE, Store
from pipelines.storage.tables import CURVES

log = logging.getLogger(__name__)


T = TypeVar("T")

FEW_DESCRIPTORS = 100
"""Least descriptors for each centroid, component or latent: one with fewer is fitted to noise."""


@dataclass(frozen=True)
class Task:
    """A codebook to fit: its sample, the videos of it that it may see, and their labels.

    labels: {video_id: its labels}, empty where the codebook uses none. videos: those it is fitted
    on. groups: {video_id: its group}, empty where no groups are held out. ignored: {video_id:
    classes that it does not count for}.
    """

    codebook: Codebook
    sample: str
    videos: frozenset[str]
    labels: dict[str, list[str]]
    footer: dict[str, str]
    groups: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)


class Fit(Protocol):
    """What a fit read: the folder of its sample, the videos of it, and the footer of its files."""

    @property
    def sample(self) -> str: ...
    @property
    def videos(self) -> frozenset[str]: ...
    @property
    def footer(self) -> dict[str, str]: ...


def fit_codebooks(
    tasks: list[Task], store: Store, config: Config, streams: dict[str, Stream], name: str
) -> Spent:
    """Fit and publish every task's codebook; return where the time went.

    Raises:
        RunError: the descriptors do not suffice for a codebook; says which and what to do.
    """
    for line in scarcities(tasks, store, config, streams):
        log.warning("fit: %s", line)
    teams = num_teams(tasks, store, config)
    log.debug("fit: %d codebooks, %d at once", len(tasks), teams)
    dealer = None
    if teams > 1:
        on_this_node = Dealer.options(scheduling_strategy=pools.here())
        dealer = on_this_node.remote([task.sample for task in tasks])
    # One CPU each: codebooks are the same bits for the same number of threads only.
    return run_training(
        _worker,
        {"tasks": tasks, "store": store, "config": config, "streams": streams, "dealer": dealer},
        name=name,
        step="fit",
        total=len(tasks),
        workers=teams * config.fit.num_workers,
        threads=1,
    )


def publish_unfitted(
    tasks: list[Task], store: Store, config: Config, streams: dict[str, Stream]
) -> None:
    """Publish the codebooks of encoders that learn nothing: these need only the descriptors' shape.

    Raises:
        RunError: an encoder's settings do not go with the descriptors.
    """
    for task in tasks:
        book, stream = task.codebook, streams[task.codebook.stream]
        sample = FitSample(
            frames=torch.zeros(0, stream.cells, stream.width),
            video=torch.zeros(0, dtype=torch.int64),
            levels=config.describe.spp_levels,
            scales=stream.scales,
        )
        try:
            encoder = fit_encoder(book.base, sample, book.settings, book.normalisation)
        except ValueError as error:
            raise RunError(f"fit {book.name}: {error}") from error
        publish(store, book.folder, task, encoder.files(), [], 0.0)


def num_teams(tasks: list[Task], store: Store, config: Config) -> int:
    """Return the number of codebooks fitted at once on today's cluster: no node is started for more
    than one.
    """
    there = ray.cluster_resources()
    sizes = {
        name: sum(map(store.size_bytes, store.files(name))) for name in {t.sample for t in tasks}
    }
    places = there.get("GPU", 0) or there.get("CPU", 1)
    sample_bytes = [sizes[task.sample] for task in tasks]
    return teams_at_once(config.fit, sample_bytes, places, there.get("memory", 0))


def scarcities(
    tasks: list[Task], store: Store, config: Config, streams: dict[str, Stream]
) -> list[str]:
    """Return a line for each codebook with few descriptors for its size, and what to set; one for
    all folds of an encoder.
    """
    samples = {
        name: store.read_table(name, ["video_id"])["video_id"] for name in {t.sample for t in tasks}
    }
    lines = {}
    for task in tasks:
        book = task.codebook
        field_name = book.settings.size
        if not field_name:
            continue
        stream = streams[book.stream]
        size, cells = getattr(book.settings, field_name), stream.cells
        if book.settings.is_spatial:
            levels = config.describe.spp_levels
            used = book.settings.levels or levels
            # The coarsest level has the fewest.
            counted = (min(used),) if book.settings.per_level else used
            cells = cells * num_cells(counted) // num_cells(levels)
        if book.settings.sides:
            own_rows = (s.rows for s in stream.scales if s.side_px in book.settings.sides)
            cells = sum(own_rows)
        own = pc.is_in(samples[task.sample], pa.array(sorted(task.videos), pa.string()))
        number = stream.views * cells * (pc.sum(own).as_py() or 0)
        if number < FEW_DESCRIPTORS * size:
            lines[book.encoder, book.stream] = (
                f"{book.encoder} on {book.stream}: {number:,} descriptors for "
                f"{book.base}.{field_name} = {size}, less than {FEW_DESCRIPTORS} each; raise "
                f"fit.num_frames (now {config.fit.num_frames or 'auto'}) where videos have more "
                "frames, or "
                f"lower {book.base}.{field_name}"
            )
    return list(lines.values())


@contextmanager
def stopping_others(dealer: ActorHandle | None) -> Iterator[None]:
    """Let the other teams begin nothing any more once a fit inside fails for good."""
    try:
        yield
    except ValueError:
        if dealer:
            ray.get(dealer.stop.remote())
        raise


def _worker(setting: dict) -> None:
    """Fit codebooks on a worker."""
    with stopping_others(setting["dealer"]):
        _fit_all(setting)


def _fit_all(setting: dict) -> None:
    store, config, meter = setting["store"], setting["config"], setting["meter"]
    team = Team.of(config.fit.num_workers)
    kept = Checkpoints(store, config.fit.checkpoint_s, team)
    frames: dict[str, tuple[torch.Tensor, list[str]]] = {}
    for task in dealt(setting["tasks"], setting["dealer"], team):
        book = task.codebook
        if team.agree(team.rank == 0 and holds(store, f"{book.folder}/{DONE}")):
            continue
        stream = setting["streams"][book.stream]
        if task.sample not in frames:
            with meter("read"):
                frames = {task.sample: _read_share(store, task.sample, stream, team)}
        started = time.monotonic()
        state, rows = kept.of(book)
        curves = Curves(book, team.rank, setting["counter"], rows=rows)
        share = frames[task.sample]
        sample = fit_sample(task, share, config, team, curves, kept, state)
        sample = replace(sample, scales=stream.scales)
        with meter("fit"):
            encoder = fit_encoder(book.base, sample, book.settings, book.normalisation)
        if team.rank == 0:
            seconds = time.monotonic() - started
            publish(store, book.folder, task, encoder.files(), curves.rows, seconds)
            meter.done({"ok": 1})


def dealt(tasks: list[T], dealer: ActorHandle | None, team: Team) -> Iterator[T]:
    """Yield the tasks of a team: all, where nobody deals them out."""
    if not dealer:
        yield from tasks
        return
    if team.rank == 0:
        ray.get(dealer.begin.remote(team.number))
    while True:
        index = None
        if team.rank == 0:
            # The methods of an actor's handle have no types.
            index = cast("int | None", ray.get(dealer.take.remote(team.number)))
        number = int(team.agree(-1 if index is None else index))
        if number < 0:
            return
        yield tasks[number]


def publish(
    store: Store,
    folder: str,
    task: Fit,
    files: dict[str, bytes],
    curves: list[dict],
    seconds: float,
    table: Table = CURVES,
) -> None:
    """Publish the files of a fit, its curves if there are any, and last the mark that all is there.

    With what was fitted on a sample, that must be there too.
    """
    for name, content in files.items():
        store.publish(f"{folder}/{name}", content)
    if curves:
        store.publish_table(f"{folder}/curves.parquet", table.build(curves), task.footer)
    sample_mark = f"{task.sample}/{DONE}"
    contents = Contents((folder,), (sample_mark,) if find(store, sample_mark) else ())
    facts = {"seconds": seconds, "videos": len(task.videos), **task.footer}
    publish_mark(store, f"{folder}/{DONE}", facts, contents)


def _read_share(
    store: Store, sample: str, stream: Stream, team: Team
) -> tuple[torch.Tensor, list[str]]:
    """Return this worker's frames [f, T, C] and the video of each; whole videos, dealt out in turn.

    A view of a frame counts as a frame. The frames are a float16 file that is mapped into memory: a
    sample may be larger than it. The file has no name any more when this returns, and goes with the
    worker.
    """
    keys = store.read_table(sample, ["video_id", "frame"])
    videos = np.array(keys["video_id"].to_pylist(), object)
    rank_of = {video: place % team.size for place, video in enumerate(sorted(set(videos)))}
    mine = np.array([rank_of[video] == team.rank for video in videos], bool)
    order = np.flatnonzero(mine)[
        np.lexsort((keys["frame"].to_numpy()[mine], videos[mine].astype(str)))
    ]
    place = np.full(len(videos), -1)
    place[order] = np.arange(len(order))
    shape = (len(order), stream.num_descriptors, stream.width)
    if not len(order):
        return torch.zeros(0, stream.cells, stream.width, dtype=torch.float16), []
    with tempfile.TemporaryFile() as file:
        frames = np.memmap(file, np.float16, "w+", shape=shape)
    first = 0
    for name in store.files(sample):
        with store.open_parquet(name) as table:
            column = table.read(["descriptors"])["descriptors"]
        for row in column:
            if place[first] >= 0:
                frames[place[first]] = descriptors_from_arrow(row)
            first += 1
    views = torch.from_numpy(frames).view(-1, stream.cells, stream.width)
    return views, np.repeat(videos[order], stream.views).tolist()


def fit_sample(
    task: Task,
    share: tuple[torch.Tensor, list[str]],
    config: Config,
    team: Team,
    curves: "Curves",
    kept: Checkpoints,
    state: dict | None,
) -> FitSample:
    frames, videos = share
    use = [place for place, video in enumerate(videos) if video in task.videos]
    if len(use) < len(videos):
        frames = frames[use]
    number = {video: place for place, video in enumerate(sorted(task.videos))}
    classes = sorted({label for labels in task.labels.values() for label in labels})
    labels, ignored = (
        [of.get(video, []) for video in number] for of in (task.labels, task.ignored)
    )
    targets = torch.from_numpy(target_matrix(labels, classes, ignored)).float()
    return FitSample(
        frames=frames.to(ray.train.torch.get_device()),
        video=torch.tensor([number[videos[place]] for place in use], dtype=torch.int64),
        targets=targets if classes else None,
        multi_label=bool(((targets > 0).sum(1) > 1).any()),
        group=_group_numbers(task, list(number)),
        levels=config.describe.spp_levels,
        seed=config.run.seed,
        rank=team.rank,
        world_size=team.size,
        all_reduce=team.all_reduce,
        log=curves.add,
        state=state,
        checkpoint=lambda state: kept.offer(task.codebook, state, curves.rows),
    )


def _group_numbers(task: Task, videos: list[str]) -> torch.Tensor | None:
    """Return the group number of each video, in the order of the videos; one without a group is its
    own.
    """
    if not task.groups:
        return None
    # A video's name may be a group's too.
    names = [("group", task.groups[v]) if v in task.groups else ("video", v) for v in videos]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], dtype=torch.int64)


@dataclass
class Curves:
    """Rows of CURVES, and a word for the progress line every few seconds, from rank 0."""

    book: Fitted
    rank: int
    counter: StepCounter
    rows: list[dict] = field(default_factory=list)
    logged: float = field(default_factory=time.monotonic)

    def add(self, quantity: str, step: int, value: float) -> None:
        if self.rank:
            return
        named = {"codebook": self.book.encoder, "stream": self.book.stream, "fold": self.book.fold}
        self.rows.append(named | {"quantity": quantity, "step": step, "value": value})
        if time.monotonic() - self.logged > 2:
            self.logged = time.monotonic()
            self.counter.tell(
                "say", f"{self.book.encoder}-{self.book.stream} step {step}, {quantity} {value:.4f}"
            )
