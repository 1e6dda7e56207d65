"""Fit: a sample of DESCRIPTORS to codebooks."""

import functools

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import pools, sink
from pipelines.cluster.datasets import dataset, progress_line, write_tables
from pipelines.errors import RunError
from pipelines.fit import codebooks, sample
from pipelines.index import current_rows
from pipelines.ledger.accounts import Account, Spent, merged, settle
from pipelines.ledger.marks import Contents, holds, publish_mark, remove_folder
from pipelines.run import codebook
from pipelines.run.job import Job
from pipelines.storage.store import DONE
from pipelines.storage.tables import ROWS_PER_FILE, SAMPLES


def fit(job: Job) -> tuple[Account, Spent]:
    """Publish codebooks: a seeded sample of training frames per stream, then one Ray Train run for
    all that learn from it.
    """
    tasks = fit_tasks(job)
    # Variants may share a codebook. One that is there already is skipped by the workers, but their
    # start is not free.
    tasks = list({task.codebook.folder: task for task in tasks}.values())
    tasks = [t for t in tasks if not holds(job.store, f"{t.codebook.folder}/{DONE}")]
    learning = {book.folder for book in job.learning}
    codebooks.publish_unfitted(
        [task for task in tasks if task.codebook.folder not in learning],
        job.store,
        job.config,
        job.described,
    )
    parts = [_sample(job)]
    if tasks := [task for task in tasks if task.codebook.folder in learning]:
        fitting = (tasks, job.store, job.config, job.described, job.digest("fit"))
        parts.append(codebooks.fit_codebooks(*fitting))
    planned = {book.folder for book in job.fitted}
    fitted = {folder for folder in planned if holds(job.store, f"{folder}/{DONE}")}
    account = settle("fit", "codebooks", planned, fitted)
    return account, merged(parts)


def fit_tasks(job: Job) -> list[codebooks.Task]:
    """Return a task for each codebook: the videos that it may see, and their labels."""
    return [
        codebooks.Task(
            codebook=book,
            sample=job.sample(book.stream),
            videos=job.training_videos(book.fold),
            labels=job.labels_for(book),
            groups=job.groups_for(book),
            ignored=job.ignored(book.fold) if book.settings.uses_labels else {},
            footer=job.footer("fit") | {"video_fisher.codebook": book.digest},
        )
        for book in job.fitted
    ]


def _sample(job: Job) -> Spent:
    """Publish SAMPLES: about fit.num_frames frames of the videos that codebooks may see, the same
    for all streams as far as their numbers allow; see `pipelines.fit.sample.Draw`.
    """
    streams = list(dict.fromkeys(book.stream for book in job.learning))
    streams = [s for s in streams if not holds(job.store, f"{job.sample(s)}/{DONE}")]
    if not streams:
        return Spent(0.0, ())
    for stream in streams:
        # An interrupted sample has no keys to go on from, and is cheap: it is drawn again.
        remove_folder(job.store, job.sample(stream))
    places = current_rows.places(job)
    allowed = pa.array(sorted(job.training_videos(None)), pa.string())
    places = places.filter(pc.is_in(places["video_id"], allowed))
    num_frames = pc.sum(places["num_frames"]).as_py() or 0
    if not num_frames:
        raise RunError(
            f"fit: expected training videos with descriptors, found none; are all of them in "
            f"{job.store.uri(job.failures)}?"
        )
    places = sample.ranked(places.filter(pc.greater(places["num_frames"], 0)), job.config.run.seed)
    draws = {stream: _draw(job, stream, places, num_frames) for stream in streams}
    # By file again, for locality.
    rows = places.sort_by("segment_id").select(["video_id", "file", "row", "rank"])
    pool, seed = (
        pools.pools(job.config.cluster).read.fitting(rows.num_rows),
        job.config.run.seed,
    )
    line = progress_line(job, "sample", num_frames, {("read",): pool})
    described = {stream: job.described[stream] for stream in streams}
    data = dataset(rows, 64).map_batches(
        sample.SampleFrames,
        fn_constructor_args=(job.store, described, draws, seed, line.meter),
        **pool.options(batch_size=64),
    )
    outputs = [
        sink.Output(
            SAMPLES,
            job.sample(stream),
            job.footer("fit"),
            functools.partial(codebook.sample_of, stream=stream),
        )
        for stream in streams
    ]
    spent = write_tables(job, line, data, outputs, rows_per_file=ROWS_PER_FILE["samples"])
    empty = [stream for stream in streams if not job.store.files(job.sample(stream))]
    if empty:
        raise RunError(
            f"fit: expected descriptors of {', '.join(empty)}, found none: no training video has "
            "the two frames or more that one is of; leave it out of describe.streams, give it a "
            "shorter gap, or sample more frames"
        )
    for stream in streams:
        facts = {**draws[stream]._asdict(), "num_frames": num_frames}
        folder = job.sample(stream)
        publish_mark(job.store, f"{folder}/{DONE}", facts, Contents((folder,)))
    return spent


def _draw(job: Job, stream: str, places: pa.Table, num_frames: int) -> sample.Draw:
    frames = job.sampled_frames(stream)
    if job.config.fit.num_frames:
        return sample.Draw(frames / num_frames)
    num_videos = pc.count_distinct(places["video_id"]).as_py()
    return sample.Draw.of_each_video(frames, num_frames, num_videos)
