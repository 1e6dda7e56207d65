"""A toy step: how many videos each label has. Its one line is `STEPS["toy"] =
tests.toys.step.STEP`."""

import collections

import pyarrow as pa

from pipelines.ledger.accounts import Account, Spent
from pipelines.run.folders import Folders
from pipelines.run.job import Job
from pipelines.run.steps import Step
from pipelines.settings.config import digest
from pipelines.storage.columns import Column, Table

COUNTS = Table(
    "counts",
    "toy",
    "counts/*/*.parquet",
    "One row per label",
    ("label",),
    (Column("label", pa.string(), "a class"), Column("videos", pa.int64(), "videos that have it")),
)


def folders(run: Folders) -> dict[str, str]:
    """Return the folder of COUNTS, named by the labels that were counted."""
    return {"counts": f"counts/{digest(run.manifest['labels'].to_pylist())}"}


def count(job: Job) -> tuple[Account, Spent]:
    """Publish COUNTS."""
    labels = collections.Counter(
        label for labels in job.manifest["labels"].to_pylist() for label in labels
    )
    rows = [{"label": label, "videos": videos} for label, videos in sorted(labels.items())]
    name = f"{folders(job)['counts']}/counts.parquet"
    job.store.publish_table(name, COUNTS.build(rows), job.footer("toy"))
    return Account("labels", len(rows), len(rows), 0), Spent(0.0, ())


STEP = Step(
    "tests.toys.step:count",
    tables=(COUNTS,),
    marked="counts",
    folders=folders,
    replaces=("counts",),
    needs_labels=True,
)
