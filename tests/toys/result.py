"""A toy maker of results: the label's own name decides. Its one line is `MAKERS["toy"] =
tests.toys.result.MAKER`."""

import zlib

import pyarrow.compute as pc

from pipelines.ledger.accounts import Spent
from pipelines.ledger.marks import holds
from pipelines.run.folders import Folders
from pipelines.run.job import Job
from pipelines.run.makers import Maker, Result
from pipelines.settings.config import digest
from pipelines.storage.store import DONE
from pipelines.storage.tables import SCORES

PAIR = ("toy", "name_of_the_file")


def results(run: Folders) -> list[Result]:
    """Return the one result of this maker."""
    return [Result(*PAIR, digest("toy", run.videos))]


def score(job: Job) -> Spent:
    """Publish SCORES of every tested video: a hash of its name and the class."""
    folder = job.scores(*PAIR)
    if holds(job.store, f"{folder}/{DONE}"):
        return Spent(0.0, ())
    classes = sorted({label for labels in job.manifest["labels"].to_pylist() for label in labels})
    for fold in job.folds:
        videos = job.manifest.filter(pc.equal(job.manifest["fold"], fold)).to_pylist()
        rows = [
            {
                "video_id": video["video_id"],
                "encoder": PAIR[0],
                "stream": PAIR[1],
                "fold": fold,
                "label": label,
                "score": zlib.crc32(f"{video['video_id']} {label}".encode()) / 2**32,
                "is_true": label in video["labels"],
            }
            for video in videos
            for label in classes
        ]
        name = f"{folder}/fold-{fold:05d}.parquet"
        job.store.publish_table(name, SCORES.build(rows), job.footer("classify"))
    return Spent(0.0, ())


MAKER = Maker(results, "tests.toys.result:score")
