"""The whole data flow, top to bottom:

    index      videos, labels               -> VIDEOS, SEGMENTS
    describe   SEGMENTS                     -> DESCRIPTORS, FAILURES
    fit        sample of DESCRIPTORS        -> codebooks
    encode     DESCRIPTORS, codebooks       -> ENCODINGS, ATTENTION
    classify   ENCODINGS, VIDEOS            -> classifiers, SCORES
    evaluate   SCORES, VIDEOS               -> METRICS, report

Each step reads what the steps before it published, publishes its own, and does nothing where its output
for the same inputs and settings is complete.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines import (
    classify,
    cluster,
    codebook,
    codebooks,
    current_rows,
    descriptor_stages,
    encoding_stages,
    evaluate,
    run_report,
    sample_stage,
    sink,
    video_stages,
)
from pipelines import (
    pools as pipelines_pools,
)
from pipelines.columns import file_name
from pipelines.errors import RunError
from pipelines.layout import Job
from pipelines.ledger import Account, Spent, merged, settle
from pipelines.ray_data import (
    SEGMENTS_PER_FILE,
    batches_at_a_time,
    dataset,
    describing,
    progress_line,
    write_tables,
)
from pipelines.report_data import Ledger
from pipelines.shared import SharedFile
from pipelines.step_time import StepTime
from pipelines.storage import DONE
from pipelines.tables import (
    ATTENTION,
    DESCRIPTORS,
    ENCODINGS,
    FAILURES,
    ROWS_PER_FILE,
    SAMPLES,
    SEGMENTS,
    VIDEOS,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run says at its end. `planned` = ok + partial + failed, in segments."""

    did_work: bool
    planned: int
    ok: int
    partial: int
    failed: int

    @property
    def failed_fraction(self) -> float:
        return self.failed / self.planned if self.planned else 0.0


def run(
    job: Job,
    steps: tuple[str, ...],
    address: str | None,
    check: Callable[[], None] = lambda: None,
    *,
    restore: bool = False,
) -> Outcome:
    """Runs the named steps; starts or joins a cluster only if there is work.

    Args:
        steps: in their order.
        check: called before each step; raises where the run must not go on.
        restore: make run.json and the report this job's again where another configuration was run last.
    """
    did_work = False
    for name in steps:
        # When its turn comes: `describe` may change what the steps after it are to make.
        if not is_due(job, name, restore=restore):
            log.info("%s: complete, nothing to do", name)
            continue
        if not did_work:
            cluster.connect(address, job.config.cluster)
            did_work = True
        check()
        with StepTime(job.store, name, job.digest(name)) as timed:
            account, spent = _STEP[name](job)
        log.info("%s: done in %.0f s, %s", name, timed.own_s, account)
        if words := spent.words(timed.own_s):
            log.info("%s: %s", name, words)
        seconds = timed.earlier_s + timed.own_s
        job.record(name, account, spent, seconds, ray.cluster_resources())
        timed.forget()
    if restore and not job.is_described:
        check()
        job.describe_again()
    return outcome(job, did_work)


def is_due(job: Job, step: str, *, restore: bool) -> bool:
    """Whether a step is to run: it is not complete, or, with `restore`, evaluate where the report is another configuration's."""
    is_stale = restore and step == "evaluate" and not job.is_reported
    return is_stale or not is_complete(job, step)


def is_complete(job: Job, step: str) -> bool:
    """Whether every output of a step, for these inputs and settings, is there."""
    return all(job.store.exists(mark) for mark in job.marks(step))


def index(job: Job) -> tuple[Account, Spent]:
    """VIDEOS and SEGMENTS: headers are probed; what is known of an unchanged file is kept."""
    known = current_rows.known_videos(job)
    fresh = job.manifest.filter(pc.invert(pc.is_in(job.manifest["video_id"], known["video_id"])))
    log.info("index: %d videos, %d of them to probe", job.manifest.num_rows, fresh.num_rows)
    rows = sink.pending(fresh, job.store, job.videos, ("video_id",))
    outputs = [
        sink.Output(
            SEGMENTS,
            job.segments,
            job.footer("index"),
            video_stages.plan_segments,
            sink.visible_videos(rows, job.store, job.segments),
        ),
        sink.Output(VIDEOS, job.videos, job.footer("index")),
    ]
    _publish_known(job, known, outputs)
    pool = pipelines_pools.pools(job.config.cluster).decode.fitting(rows.num_rows)
    line = progress_line(job, "index", rows.num_rows, {("probe",): pool})
    data = dataset(rows, 64).map_batches(
        video_stages.ProbeVideos,
        fn_constructor_args=(job.config.sampling, job.config.decode, line.meter),
        **pool.options(batch_size=64),
    )
    spent = write_tables(job, line, data, outputs, rows_per_file=ROWS_PER_FILE["videos"])
    videos = job.store.read_table(job.videos, ["video_id", "status"])
    failed = videos.filter(pc.equal(videos["status"], "failed"))
    account = settle(
        "index", "videos", _names(job.manifest), _names(videos) - _names(failed), _names(failed)
    )
    job.finish("index")
    return account, spent


def _publish_known(job: Job, known: pa.Table, outputs: list[sink.Output]) -> None:
    """Rows of `known` that a killed run of these inputs has not published, into each output."""
    for output in outputs:
        rows = sink.pending(known, job.store, output.folder, ("video_id",))
        if rows.num_rows:
            table = output.select(rows)
            name = file_name(table, output.table.key)
            job.store.publish_table(f"{output.folder}/{name}", table, output.footer)


def describe(job: Job) -> tuple[Account, Spent]:
    """DESCRIPTORS: frames are decoded once, and all streams of all nodes written together."""
    job.weights.keep(job.store)
    plan = current_rows.segment_plan(job)
    rows = current_rows.to_describe(job, plan)
    log.info("describe: %d segments, %d of them to describe", plan.num_rows, rows.num_rows)
    if rows.num_rows:
        job.unmark(job.descriptors)
    pools, config = pipelines_pools.pools(job.config.cluster).fitting(rows.num_rows), job.config
    stages = ("read", "decode")
    watched = {(*stages, "describe"): pools.describe}
    if not pools.together:
        watched = {stages: pools.decode, ("describe",): pools.describe}
    line = progress_line(job, "describe", rows.num_rows, watched)
    windows = config.describe.windows
    decoding = (config.sampling, config.picture, config.decode, line.meter, windows)
    weights = SharedFile.of(job.store, job.weights.file)
    network = (weights, config, job.described, pools.describe.num_threads)
    data = describing(
        rows,
        config,
        pools,
        (video_stages.DecodeSegments, decoding),
        (descriptor_stages.DescribeFrames, (*network, line.meter)),
    )
    outputs = [sink.Output(DESCRIPTORS, job.descriptors, job.footer("describe"))]
    spent = write_tables(job, line, data, outputs, rows_per_file=SEGMENTS_PER_FILE)
    account = _write_failures(job, plan)
    job.finish("describe")
    return account, dataclasses.replace(spent, on_gpu=pools.describe.num_gpus > 0)


def _write_failures(job: Job, plan: pa.Table) -> Account:
    """FAILURES: the rows of DESCRIPTORS that are not ok."""
    columns = [column.name for column in FAILURES.columns]
    rows = current_rows.current(plan, job.store.read_table(job.descriptors, columns))
    bad = rows.filter(pc.not_equal(rows["status"], "ok")).sort_by("segment_id")
    failed = bad.filter(pc.equal(bad["status"], "failed"))
    named = [_names(part, "segment_id") for part in (plan, rows, failed)]
    account = settle("describe", "segments", named[0], named[1] - named[2], named[2])
    job.store.publish_table(
        f"{job.failures}/failures.parquet", bad.cast(FAILURES.schema()), job.footer("describe")
    )
    return account


def fit(job: Job) -> tuple[Account, Spent]:
    """Codebooks: a seeded sample of training frames per stream, then one Ray Train run for all that learn from it."""
    tasks = fit_tasks(job)
    # Variants may share a codebook. One that is there already is skipped by the workers, but their
    # start is not free.
    tasks = list({task.codebook.folder: task for task in tasks}.values())
    tasks = [t for t in tasks if not job.store.exists(f"{t.codebook.folder}/{DONE}")]
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
    planned = {book.folder for book in job.codebooks}
    fitted = {folder for folder in planned if job.store.exists(f"{folder}/{DONE}")}
    account = settle("fit", "codebooks", planned, fitted)
    job.finish("fit")
    return account, merged(parts)


def fit_tasks(job: Job) -> list[codebooks.Task]:
    """A task for each codebook: which videos it may see, and which labels."""
    return [
        codebooks.Task(
            codebook=book,
            sample=job.sample(book.stream),
            videos=job.training_videos(book.fold),
            labels=job.labels_for(book),
            groups=job.groups_for(book),
            footer=job.footer("fit") | {"video_fisher.codebook": book.digest},
        )
        for book in job.codebooks
    ]


def _sample(job: Job) -> Spent:
    """SAMPLES: about fit.num_frames frames of the videos that codebooks may see, the same ones for all streams."""
    streams = list(dict.fromkeys(book.stream for book in job.learning))
    streams = [s for s in streams if not job.store.exists(f"{job.sample(s)}/{DONE}")]
    if not streams:
        return Spent(0.0, ())
    for stream in streams:
        # An interrupted sample has no keys to go on from, and is cheap: it is drawn again.
        job.store.delete_folder(job.sample(stream))
    places = current_rows.places(job)
    allowed = pa.array(sorted(job.training_videos(None)), pa.string())
    places = places.filter(pc.is_in(places["video_id"], allowed))
    num_frames = pc.sum(places["num_frames"]).as_py() or 0
    if not num_frames:
        raise RunError(
            f"fit: expected training videos with descriptors, found none; are all of them in "
            f"{job.store.uri(job.failures)}?"
        )
    rate = job.config.fit.num_frames / num_frames
    rows = places.select(["video_id", "file", "row"])
    pool, seed = (
        pipelines_pools.pools(job.config.cluster).read.fitting(rows.num_rows),
        job.config.run.seed,
    )
    line = progress_line(job, "sample", num_frames, {("read",): pool})
    described = {stream: job.described[stream] for stream in streams}
    data = dataset(rows, 64).map_batches(
        sample_stage.SampleFrames,
        fn_constructor_args=(job.store, described, rate, seed, line.meter),
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
            f"fit: expected descriptors of {', '.join(empty)}, found none: no training video has the two frames or more "
            "that one is of; leave it out of describe.streams, give it a shorter gap, or sample more frames"
        )
    for stream in streams:
        facts = {"rate": rate, "num_frames": num_frames}
        job.store.publish_json(f"{job.sample(stream)}/{DONE}", facts)
    return spent


def encode(job: Job) -> tuple[Account, Spent]:
    """ENCODINGS and ATTENTION: one pass over DESCRIPTORS serves all streams and codebooks."""
    videos, spent = current_rows.places_by_video(job), Spent(0.0, ())
    described = _names(videos)

    def visible(book: codebook.Codebook) -> frozenset[str]:
        return sink.visible_videos(videos, job.store, job.encodings(book))

    books = [book for book in job.codebooks if not job.store.exists(job.encodings_mark(book))]
    # Other labels leave the encodings of most codebooks as they are, and only their marks are new.
    done = {book: visible(book) for book in books}
    if missing := {book: there for book, there in done.items() if there != described}:
        spent = _encode(job, missing, videos)
        done |= {book: visible(book) for book in missing}
    for book in books:
        settle(f"encode {book.name}", "videos", described, done[book])
        job.store.publish_json(job.encodings_mark(book), job.footer("encode"))
    job.finish("encode")
    planned = job.manifest.num_rows
    number = len(job.codebooks)
    done = videos.num_rows * number
    return Account("encodings", planned * number, done, planned * number - done), spent


def _encode(job: Job, visible: dict[codebook.Codebook, frozenset[str]], videos: pa.Table) -> Spent:
    """The encodings that are not visible yet, of some codebooks.

    Args:
        visible: the codebooks, with the videos whose encodings by them are.
    """
    books = list(visible)
    done = frozenset.intersection(*visible.values())
    rows = videos.filter(
        pc.invert(pc.is_in(videos["video_id"], pa.array(sorted(done), pa.string())))
    )
    for book in books:
        job.unmark(job.encodings(book))
    attentive = [book for book in books if job.writes_attention(book)]
    settings = job.config.cluster
    pool = pipelines_pools.pools(settings).encode.fitting(rows.num_rows)
    line = progress_line(job, "encode", rows.num_rows, {("read", "encode"): pool})
    batch = job.config.encode.batch_videos
    how = (job.config.encode, line.meter, settings.allow_missing_gpu)
    size = batch * batches_at_a_time(rows.num_rows // batch, pool.size)
    data = dataset(rows, size).map_batches(
        encoding_stages.EncodeVideos,
        fn_constructor_args=(job.store, books, attentive, job.described, *how),
        **pool.options(size),
    )
    outputs = [
        sink.Output(
            ATTENTION,
            job.attention(book),
            job.footer("encode") | {"video_fisher.codebook": book.digest},
            functools.partial(
                codebook.attention_of, book=book, num_cells=job.described[book.stream].cells
            ),
            sink.visible_videos(rows, job.store, job.attention(book)),
        )
        for book in attentive
    ] + [
        sink.Output(
            ENCODINGS,
            job.encodings(book),
            job.footer("encode") | {"video_fisher.codebook": book.digest},
            functools.partial(codebook.encodings_of, book=book),
            already - done,
        )
        for book, already in visible.items()
    ]
    return write_tables(job, line, data, outputs, rows_per_file=ROWS_PER_FILE["encodings"])


def classify_videos(job: Job) -> tuple[Account, Spent]:
    """Classifiers, SOLUTIONS and SCORES: all folds of an encoder and stream together."""
    spent = classify.classify(job)
    tested = job.manifest.filter(pc.greater_equal(job.manifest["fold"], 0))
    without_vector = _names(tested) - _names(current_rows.places(job))
    account = classify.settle_scores(job, _names(tested), without_vector)
    job.finish("classify")
    return account, spent


def evaluate_scores(job: Job) -> tuple[Account, Spent]:
    """METRICS and the report."""
    started = time.monotonic()
    evaluated = evaluate.evaluate(job)
    num_metrics = evaluated.metrics.num_rows
    account = Account("metrics", num_metrics, num_metrics, 0)
    counts = outcome(job, True)
    ledger = Ledger(counts.planned, counts.ok, counts.partial, counts.failed)
    run_report.write(job, evaluated, ledger, account, time.monotonic() - started)
    job.finish("evaluate")
    return account, evaluated.spent


_STEP: dict[str, Callable[[Job], tuple[Account, Spent]]] = {
    "index": index,
    "describe": describe,
    "fit": fit,
    "encode": encode,
    "classify": classify_videos,
    "evaluate": evaluate_scores,
}


def outcome(job: Job, did_work: bool) -> Outcome:
    """The count of segments by status; all zero before they are described."""
    counts = {"ok": 0, "partial": 0, "failed": 0}
    planned = 0
    if is_complete(job, "index"):
        plan = job.store.read_table(job.segments, ["segment_id", "source"])
        planned = plan.num_rows
        if job.store.files(job.descriptors):
            done = current_rows.current(
                plan,
                job.store.read_table(
                    job.descriptors, ["segment_id", "source", "status", "attempts"]
                ),
            )
            for item in pc.value_counts(done["status"]).to_pylist():
                counts[item["values"]] = item["counts"]
    return Outcome(did_work, planned, **counts)


def _names(rows: pa.Table, column: str = "video_id") -> frozenset[str]:
    return frozenset(rows[column].to_pylist())


def closing_lines(job: Job, result: Outcome, steps: tuple[str, ...]) -> list[str]:
    """What the user sees last: the ledger, the results and where they are."""
    lines = []
    if not result.did_work:
        lines.append("nothing to do: every step is complete for these inputs and settings")
    lines.append(
        f"segments: {result.planned} planned = {result.ok} ok + {result.partial} partial + "
        f"{result.failed} failed"
    )
    if "evaluate" in steps:
        lines += evaluate.text_table(job)
        lines.append(f"report: {job.store.uri(job.report)}")
    return [*lines, f"output: {job.store.root}"]
