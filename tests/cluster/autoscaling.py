"""A head node without CPUs whose autoscaler adds and removes nodes of this machine, and what an
onlooker sees of them.

The nodes are Ray's fake ones: processes of this machine that claim the CPUs and GPUs they are told
to have.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import ray
import yaml
from ray.util import state
from ray.util.state.exception import RayStateApiException

# isort: split
import psutil

from tests.cluster import heads

HEAD, HEAD_ID = "ray.head.default", "f" * 51 + "00000"
"""What the provider of fake nodes expects of the head: the kind of its node, and the node's id."""


@contextmanager
def autoscaling_head(
    kinds: dict[str, dict[str, int]], num_nodes: int, idle_s: float
) -> Iterator[heads.Head]:
    """A head that starts without workers, and may have `num_nodes` of each kind.

    Args:
        kinds: {name of a kind of node: its resources}.
        idle_s: a node that did nothing for so long goes.
    """
    temp = Path(tempfile.mkdtemp(prefix="head-"))
    # The autoscaler ends where one of these names is missing.
    lists = ("head_setup", "worker_setup", "setup", "initialization")
    config = {f"{name}_commands": [] for name in lists}
    config |= {"head_start_ray_commands": [], "worker_start_ray_commands": [], "auth": {}}
    config |= {
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
    }
    config |= {"rsync_exclude": [], "rsync_filter": [], "docker": {}, "cluster_name": "fake"}
    ports = dict(zip(heads._PORTS, heads.free_ports(len(heads._PORTS)), strict=True))
    address = ray.util.get_node_ip_address()
    config |= {
        "max_workers": num_nodes * len(kinds),
        "upscaling_speed": 100,
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": HEAD,
        "available_node_types": {HEAD: {"resources": {}, "node_config": {}, "max_workers": 0}}
        | {
            name: {
                "resources": resources | {"object_store_memory": 80 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": num_nodes,
            }
            for name, resources in kinds.items()
        },
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{address}:{ports['port']}",
            "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True,
            # Without these two it aborts with a KeyError and never removes a node.
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
    }
    file = temp / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    # A driver from outside takes 127.0.0.1 for this address.
    flags = (f"--node-ip-address={address}", f"--autoscaling-config={file}")
    head = heads.Head(temp, 0, flags, environment)
    try:
        head.start(ports)
        yield head
    finally:
        head.stop()
        _end_nodes(temp)
        shutil.rmtree(temp, ignore_errors=True)


def _end_nodes(temp: Path) -> None:
    """Nodes that the autoscaler had not ended when it was ended itself: their command lines name
    the folder."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(temp) in word for word in process.info["cmdline"] or ()):
            process.kill()


@dataclass(frozen=True)
class Seen:
    """What there was at a time.

    Attributes:
        at_s: seconds since the onlooker began.
        cpu_nodes, gpu_nodes: workers without and with GPUs.
        actors: {class of an actor pool: {actor: its node}}, of those that are alive.
    """

    at_s: float
    cpu_nodes: frozenset[str]
    gpu_nodes: frozenset[str]
    actors: dict[str, dict[str, str]]

    def pool(self, stage: str) -> dict[str, str]:
        """{actor: its node} of the pools whose class names the stage."""
        return {
            actor: node
            for name, of in self.actors.items()
            if stage in name
            for actor, node in of.items()
        }


@dataclass
class Onlooker(threading.Thread):
    """Asks the head for its nodes and actors, from outside; a context manager."""

    address: str
    seen: list[Seen] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.began = time.monotonic()

    __hash__ = threading.Thread.__hash__

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            # Right when a node comes or goes the head may not know what to say.
            with contextlib.suppress(RayStateApiException):
                self.seen.append(self.look())

    def look(self) -> Seen:
        how = {"address": self.address, "raise_on_missing_output": False}
        nodes = [n for n in state.list_nodes(**how) if n.state == "ALIVE" and not n.is_head_node]
        gpus = frozenset(node.node_id for node in nodes if node.resources_total.get("GPU"))
        actors: dict[str, dict[str, str]] = {}
        for actor in state.list_actors(**how, filters=[("state", "=", "ALIVE")]):
            actors.setdefault(actor.class_name, {})[actor.actor_id] = actor.node_id
        at_s = time.monotonic() - self.began
        return Seen(at_s, frozenset(node.node_id for node in nodes) - gpus, gpus, actors)

    def wait_for(self, condition: Callable[[Seen], bool], timeout_s: float) -> bool:
        """Whether what is seen comes to be so in time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.seen and condition(self.seen[-1]):
                return True
            time.sleep(0.2)
        return False

    def changes(self, *stages: str) -> list[str]:
        """A line for each change: seconds, nodes, and actors of the pools."""
        lines, last = [], None
        for seen in self.seen:
            counts = (
                len(seen.cpu_nodes),
                len(seen.gpu_nodes),
                *(len(seen.pool(s)) for s in stages),
            )
            if counts != last:
                names = ("CPU nodes", "GPU nodes", *stages)
                words = ", ".join(f"{n} {name}" for n, name in zip(counts, names, strict=True))
                lines.append(f"{seen.at_s:6.1f} s  {words}")
            last = counts
        return lines
