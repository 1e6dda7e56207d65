"""A small job without a cluster, for the contract suites of steps and of makers of results."""

from types import SimpleNamespace

import pyarrow as pa

from encoders.descriptors.streams import Stream
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.store import Store

STREAMS = [Stream(f"n_{kind}", "n", kind, 5, 8) for kind in ("appearance", "difference")]


def example(root: str, *settings: str, videos: int = 6) -> Job:
    """Return a job of some videos of two classes, in two folds, by AVE and VLAD on two streams, and
    by two networks.
    """
    names = [f"v{n}" for n in range(videos)]
    columns = {
        "video_id": names,
        "uri": names,
        "source": names,
        "labels": [["ab"[n % 2]] for n in range(videos)],
        "group": names,
        "fold": pa.array([n // 2 % 2 for n in range(videos)], pa.int32()),
    }
    config = Config().with_settings(
        ["encode.encoders=ave,vlad", "network.networks=tsn,tdn", *settings]
    )
    weights = SimpleNamespace(identity="w", description="w", file="weights/w.safetensors")
    described = {stream.name: stream for stream in STREAMS}
    return Job(Store(root), config, pa.table(columns), "given", 2, weights, described)
