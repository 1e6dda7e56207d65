"""Two describers on each node of a cluster: `python -m tests.cluster.describers ADDRESS STORE
FILE`.

Says in JSON, by node, the digests of the parameters that each of its describers has, and which
nodes hold the file.
"""

import hashlib
import json
import sys

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster import connect
from pipelines.cluster.broadcast import SharedFile
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.settings.recipes import recipe
from pipelines.settings.sections import Cluster
from pipelines.storage.store import Store

NUM_DESCRIBERS = 2


@ray.remote(num_cpus=0.4)
class Describer:
    """The pipeline's own, which also says what it has loaded."""

    def __init__(self, weights: SharedFile) -> None:
        config = recipe("demo")
        self.stage = DescribeFrames(weights, config, described_streams(config), num_threads=1)

    def digest(self) -> str:
        sha = hashlib.sha256()
        for value in self.stage.backbones[None].network.state_dict().values():
            sha.update(value.contiguous().numpy().tobytes())
        return sha.hexdigest()


def main(address: str, root: str, file: str) -> None:
    connect.connect(address, Cluster())
    weights = SharedFile.of(Store(root), file)
    nodes = [node["NodeID"] for node in ray.nodes()]
    describers = [
        (node, Describer.options(scheduling_strategy=at).remote(weights))
        for node in nodes
        for at in [NodeAffinitySchedulingStrategy(node, soft=False)] * NUM_DESCRIBERS
    ]
    digests: dict[str, list[str]] = {node: [] for node in nodes}
    for node, describer in describers:
        digests[node].append(ray.get(describer.digest.remote()))
    held = ray.experimental.get_object_locations([weights.content])[weights.content]["node_ids"]
    print(json.dumps({"digests": digests, "holders": held}))


if __name__ == "__main__":
    main(*sys.argv[1:])
