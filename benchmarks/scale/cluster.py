"""The nodes of a simulated cluster: how they start, end, are lost and are paid for.

They follow the rules of Ray's first autoscaler: at most max(5, upscaling_speed x running) nodes of
a kind are pending at a time, it looks at no more than 1,000 waiting actors, and it ends nodes that
were idle for a while.

What is left out: a cloud without capacity, the loss of the head node, nodes that are slower than
others.
"""

import math
import random
from dataclasses import dataclass, field

INITIAL_PENDING = 5
VISIBLE_DEMANDS = 1000
"""Of Ray's autoscaler: pending nodes that are always allowed, and the waiting actors that it looks
at."""


@dataclass(frozen=True)
class Kind:
    """A kind of node: `slots` decode, beside `devices` that describe.

    Attributes:
        store_bytes: that frames on their way may take.
        start_s: from the request until Ray runs there.
    """

    name: str
    slots: int
    devices: int = 0
    store_bytes: float = math.inf
    network_bytes_per_s: float = math.inf
    start_s: float = 0.0


@dataclass(frozen=True)
class Rules:
    """Of the autoscaler, and of nodes that are lost.

    Attributes:
        update_s: between two looks of the autoscaler.
        start_jitter: a start takes up to that share more or less.
        losses_per_hour: of a node.
        detect_s: until Ray gives a lost node's tasks to others.
    """

    upscaling_speed: float = 1.0
    update_s: float = 5.0
    idle_timeout_s: float = 300.0
    start_jitter: float = 0.2
    losses_per_hour: float = 0.0
    detect_s: float = 30.0


@dataclass(eq=False)
class Node:
    """Times are of the simulated clock.

    Attributes:
        lost_s: when it will be lost, if it is still there.
        idle_from_s: None while a step wants it.
        sends_from_s, receives_from_s: when its network is free. device_free_s: likewise each
            device; device_tasks: that it was given.
        tasks: whose frames or work are lost with it.
    """

    kind: Kind
    launched_s: float
    ready_s: float
    lost_s: float
    ended_s: float | None = None
    idle_from_s: float | None = None
    sends_from_s: float = 0.0
    receives_from_s: float = 0.0
    device_free_s: list[float] = field(default_factory=list)
    device_tasks: list[int] = field(default_factory=list)
    # A dict is ordered: nothing must depend on where objects lie in memory.
    tasks: dict[object, None] = field(default_factory=dict)


class Cluster:
    """Nodes over time; steps run on it one after the other.

    Args:
        wanted: {kind: number of nodes} that steps ask for.
    """

    def __init__(self, wanted: dict[Kind, int], rules: Rules, seed: int = 0) -> None:
        self.wanted, self.rules = wanted, rules
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.nodes: list[Node] = []
        self.ended: list[Node] = []

    def wait(self, seconds: float) -> None:
        """Time in which only the head works."""
        self.retire({})
        self.now_s += seconds
        self.retire({})

    def finish(self) -> None:
        """The job is over: what is left is idle, and goes."""
        for node in self.nodes:
            node.idle_from_s = self.now_s if node.idle_from_s is None else node.idle_from_s
            node.ended_s = self._end_s(node)
        self.ended += self.nodes
        self.nodes = []

    def retire(self, wanted: dict[Kind, int]) -> None:
        """Ends the nodes that were lost, or idle for too long; `wanted` ones are idle no longer."""
        kept: dict[Kind, int] = dict.fromkeys(self.wanted, 0)
        staying = []
        for node in self.nodes:
            if node.idle_from_s is not None and self._end_s(node) <= self.now_s:
                node.ended_s = self._end_s(node)
                self.ended.append(node)
                continue
            if kept[node.kind] < wanted.get(node.kind, 0):
                kept[node.kind] += 1
                node.idle_from_s = None
            elif node.idle_from_s is None:
                node.idle_from_s = self.now_s
            staying.append(node)
        self.nodes = staying

    def _end_s(self, node: Node) -> float:
        """Of an idle node."""
        idle_s = max(node.idle_from_s, node.ready_s)
        return min(idle_s + self.rules.idle_timeout_s, node.lost_s)

    def num_to_launch(self, kind: Kind, target: int) -> int:
        """That one look of the autoscaler starts, where so many are wanted."""
        mine = [n for n in self.nodes if n.kind is kind and n.idle_from_s is None]
        running = sum(node.ready_s <= self.now_s for node in mine)
        pending = len(mine) - running
        allowed = max(INITIAL_PENDING, int(self.rules.upscaling_speed * max(running, 1)))
        visible = math.ceil(VISIBLE_DEMANDS / (kind.slots + kind.devices))
        return max(0, min(target - len(mine), allowed - pending, visible - pending))

    def launch(self, kind: Kind) -> Node:
        """A node is asked for now, and paid for from now on."""
        jitter = self.rules.start_jitter
        ready_s = self.now_s + kind.start_s * self.random.uniform(1 - jitter, 1 + jitter)
        rate = self.rules.losses_per_hour / 3600
        lost_s = self.now_s + self.random.expovariate(rate) if rate else math.inf
        node = Node(kind, self.now_s, ready_s, lost_s)
        self.nodes.append(node)
        return node

    def lose(self, node: Node) -> None:
        node.ended_s = node.lost_s
        self.nodes.remove(node)
        self.ended.append(node)

    def node_hours(self) -> dict[Kind, float]:
        """Paid for, of nodes that ended; `finish` ends all."""
        hours = dict.fromkeys(self.wanted, 0.0)
        for node in self.ended:
            hours[node.kind] += (node.ended_s - node.launched_s) / 3600
        return hours

    @property
    def num_lost(self) -> int:
        return sum(node.ended_s == node.lost_s for node in self.ended)
