"""One step of a run on a simulated cluster, event by event: a driver that deals out tasks one after
the other, slots that decode, devices that describe.

    driver -> slot (decode) -> store -> network -> device (describe) -> write
       ^------------- tasks of lost nodes come back ------------'

Pools of actors have a fixed size, so a step asks for all its nodes at once and keeps them to its
end, as the pipeline does where `cluster.num_describers` and `num_decoders` are given. Frames of a
lost node are decoded again, and those of a
lost device too, which another node may still hold: Ray would sometimes do less.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.scale.cluster import Cluster, Kind, Node

HELD_TASKS = 2
"""Tasks given to a device at a time: while one is computed the frames of the next arrive (Ray Data:
twice the concurrency of an actor)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Work that is spread over slots, over devices, or passes from slots to devices.

    Attributes:
        units: segments or videos; a task has at most units_per_task of them.
        coarse: tasks that are simulated as one, which a slot does one after the other.
        slot_s: of a slot, a unit; 0: the step has no slots. device_s: of a device, likewise.
        unit_bytes: passed from slot to device.
        write_s: from the device to a published row.
        driver_s: of the driver, a unit.
        slot_start_s, device_start_s: start of an actor on a node that runs.
        spread: standard deviation of a unit's work over its mean.
        most_devices: that the step can use.
    """

    name: str
    units: int
    units_per_task: int = 1
    coarse: int = 1
    slot_s: float = 0.0
    device_s: float = 0.0
    unit_bytes: int = 0
    write_s: float = 0.0
    driver_s: float = 0.0
    slot_start_s: float = 0.0
    device_start_s: float = 0.0
    spread: float = 0.0
    most_devices: int = 2**31


@dataclass(frozen=True)
class StepResult:
    """What a step took.

    Attributes:
        finished: units whose rows were published.
        slot_s, device_s, driver_s: busy, lost work included; lost_slot_s, lost_device_s: of it,
        what was lost.
        first_s: until the first task was through; tail_s: from the last one given to a device (to a
            slot, where there are no devices) to the end.
        num_slots, num_devices: of the nodes that the step asked for.
        retried: units dealt out again.
    """

    name: str
    wall_s: float
    finished: int
    slot_s: float
    device_s: float
    driver_s: float
    lost_slot_s: float
    lost_device_s: float
    first_s: float
    tail_s: float
    num_slots: int
    num_devices: int
    retried: int
    moved_bytes: int

    def parts(self) -> dict[str, float]:
        """Seconds that each part would need alone, on all slots and devices that the step asked
        for."""
        return {
            "GPU": self.device_s / self.num_devices if self.num_devices else 0.0,
            "decode": self.slot_s / self.num_slots if self.num_slots else 0.0,
            "driver": self.driver_s,
            "start-up": self.first_s,
            "tail": self.tail_s,
        }

    @property
    def limit(self) -> str:
        """The longest of its parts."""
        parts = self.parts()
        return max(parts, key=parts.__getitem__)


@dataclass(eq=False)
class _Task:
    """Units that go together.

    Attributes:
        factor: of its work, over the mean.
        tries: counts losses; an event of an earlier try says nothing.
        stage: "slot" or "device" where it is at work since `since_s`, else "".
        slot_s: work that it has behind it.
        nodes: that its frames are on: two while they move.
    """

    units: int
    factor: float
    tries: int = 0
    stage: str = ""
    since_s: float = 0.0
    slot_s: float = 0.0
    device_s: float = 0.0
    flying_bytes: int = 0
    nodes: list[Node] = field(default_factory=list)


_Place = tuple[Node, int]
"""A node and one of its devices."""


def run(cluster: Cluster, step: Step) -> StepResult:
    """Runs a step on a cluster, from its now to the step's end."""
    return _Run(cluster, step).result()


class _Run:
    """One step, from its first event to its last."""

    def __init__(self, cluster: Cluster, step: Step) -> None:
        self.cluster, self.step, self.rules = cluster, step, cluster.rules
        self.events: list[tuple[float, int, Callable[..., None], tuple]] = []
        self.num_events = 0
        self.began_s = cluster.now_s
        self.wanted = self._wanted()
        self.num_slots = sum(k.slots * n for k, n in self.wanted.items()) if step.slot_s else 0
        devices = sum(k.devices * n for k, n in self.wanted.items())
        self.num_devices = min(devices, step.most_devices) if not self._is_slots_only else 0
        self.pending: deque[_Task] = deque(self._tasks())
        self.free_slots: deque[Node] = deque()
        # By the tasks that they hold; an entry is old where the device holds another number by now.
        self.devices: list[deque[_Place]] = [deque() for _ in range(HELD_TASKS)]
        self.waiting: deque[tuple[_Task, int]] = deque()
        self.driver_free_s = self.began_s
        self.driver_is_asked = self.update_is_asked = False
        self.in_flight_bytes = 0
        self.left = step.units
        self.sums = dict.fromkeys(("slot", "device", "driver", "lost_slot", "lost_device"), 0.0)
        self.finished = self.retried = 0
        self.devices_up = 0
        self.moved_bytes = 0
        self.first_s: float | None = None
        self.dealt_s = self.began_s

    @property
    def _is_slots_only(self) -> bool:
        return not self.step.device_s

    def _wanted(self) -> dict[Kind, int]:
        """All nodes where the step has slots; else as few as have the devices."""
        if self.step.slot_s:
            return dict(self.cluster.wanted)
        left, wanted = self.step.most_devices, {}
        for kind, number in self.cluster.wanted.items():
            if kind.devices:
                wanted[kind] = min(number, math.ceil(left / kind.devices))
                left -= wanted[kind] * kind.devices
        return wanted

    def _tasks(self) -> list[_Task]:
        step, tasks = self.step, []
        shape = 1 / step.spread**2 if step.spread else 0.0
        size = step.units_per_task * step.coarse
        for start in range(0, step.units, size):
            units = min(size, step.units - start)
            # The sum of that many gamma-distributed works has such a distribution as well.
            k = shape * units
            tasks.append(_Task(units, self.cluster.random.gammavariate(k, 1 / k) if k else 1.0))
        return tasks

    # --- the loop -----------------------------------------------------------------------------

    def result(self) -> StepResult:
        cluster = self.cluster
        cluster.retire(self.wanted)
        for node in cluster.nodes:
            if node.idle_from_s is None:
                self._expect(node)
        self._at(cluster.now_s, self._update)
        while self.left and self.events:
            cluster.now_s, _, happens, arguments = heapq.heappop(self.events)
            happens(*arguments)
        if self.left:
            raise RuntimeError(
                f"{self.step.name}: {self.left} units are left and nothing happens any more"
            )
        for node in cluster.nodes:
            node.tasks.clear()
        sums = self.sums
        return StepResult(
            name=self.step.name,
            wall_s=cluster.now_s - self.began_s,
            finished=self.finished,
            slot_s=sums["slot"],
            device_s=sums["device"],
            driver_s=sums["driver"],
            lost_slot_s=sums["lost_slot"],
            lost_device_s=sums["lost_device"],
            first_s=(self.first_s or cluster.now_s) - self.began_s,
            tail_s=cluster.now_s - self.dealt_s,
            num_slots=self.num_slots,
            num_devices=self.num_devices,
            retried=self.retried,
            moved_bytes=self.moved_bytes,
        )

    def _at(self, time_s: float, happens: Callable[..., None], *arguments: object) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (time_s, self.num_events, happens, arguments))

    # --- nodes --------------------------------------------------------------------------------

    def _update(self) -> None:
        """One look of the autoscaler."""
        self.update_is_asked = False
        for kind, target in self.wanted.items():
            for _ in range(self.cluster.num_to_launch(kind, target)):
                self._expect(self.cluster.launch(kind))

    def _ask_for_update(self) -> None:
        if not self.update_is_asked:
            self.update_is_asked = True
            interval_s = self.rules.update_s
            self._at((self.cluster.now_s // interval_s + 1) * interval_s, self._update)

    def _expect(self, node: Node) -> None:
        """Its start and its loss."""
        self._at(max(node.ready_s, self.cluster.now_s), self._up, node)
        if node.lost_s < math.inf:
            self._at(node.lost_s, self._lose, node)

    def _up(self, node: Node) -> None:
        if node.ended_s is not None:
            return
        self._ask_for_update()
        node.device_free_s = []
        if self.step.slot_s:
            self._at(self.cluster.now_s + self.step.slot_start_s, self._slots_up, node)
        if self.num_devices and node.kind.devices:
            self._at(self.cluster.now_s + self.step.device_start_s, self._devices_up, node)

    def _slots_up(self, node: Node) -> None:
        if node.ended_s is None:
            self.free_slots.extend([node] * node.kind.slots)
            self._deal()

    def _devices_up(self, node: Node) -> None:
        if node.ended_s is None:
            number = min(node.kind.devices, self.num_devices - self.devices_up)
            self.devices_up += number
            node.device_free_s, node.device_tasks = [self.cluster.now_s] * number, [0] * number
            self.devices[0].extend((node, device) for device in range(number))
            # After the devices of all nodes that start at the same time.
            self._at(self.cluster.now_s, self._work)

    def _work(self) -> None:
        self._deal()
        self._give()

    def _lose(self, node: Node) -> None:
        if node.ended_s is not None:
            return
        self.cluster.lose(node)
        self.devices_up -= len(node.device_free_s)
        self._ask_for_update()
        lost = list(node.tasks)
        for task in lost:
            done_s = max(0.0, self.cluster.now_s - task.since_s)
            if task.stage:
                self.sums[task.stage] += done_s
                self.sums[f"lost_{task.stage}"] += done_s
            self.sums["lost_slot"] += task.slot_s
            self.sums["lost_device"] += task.device_s
            task.tries, task.stage, task.slot_s, task.device_s = task.tries + 1, "", 0.0, 0.0
            self._land(task)
            for place in tuple(task.nodes):
                self._leave(task, place)
        if lost:
            self._at(self.cluster.now_s + self.rules.detect_s, self._return, lost)

    def _return(self, tasks: list[_Task]) -> None:
        self.retried += sum(task.units for task in tasks)
        self.pending.extend(tasks)
        self._deal()

    # --- tasks --------------------------------------------------------------------------------

    def _deal(self) -> None:
        """The driver gives the next task to a slot, or where there are none to a device."""
        if self.driver_is_asked:
            return
        now_s = self.cluster.now_s
        while self.pending and self._has_room():
            if self.driver_free_s > now_s:
                self.driver_is_asked = True
                self._at(self.driver_free_s, self._driver_free)
                return
            place = self._take_slot() if self.step.slot_s else self._take_device()
            if place is None:
                return
            task, node = self.pending.popleft(), place[0]
            cost_s = self.step.driver_s * task.units
            self.driver_free_s = now_s + cost_s
            self.sums["driver"] += cost_s
            self._hold(task, node)
            self.dealt_s = self.driver_free_s
            if self.step.slot_s:
                task.flying_bytes = task.units * self.step.unit_bytes // self.step.coarse
                self.in_flight_bytes += task.flying_bytes
                seconds = task.units * task.factor * self.step.slot_s
                task.stage, task.since_s = "slot", self.driver_free_s
                self._at(self.driver_free_s + seconds, self._fed, task, task.tries, node, seconds)
            else:
                self._compute(task, place, self.driver_free_s)

    def _take_slot(self) -> _Place | None:
        while self.free_slots:
            node = self.free_slots.popleft()
            if node.ended_s is None:
                return node, 0
        return None

    def _take_device(self) -> _Place | None:
        """One that holds fewest tasks."""
        for held, devices in enumerate(self.devices):
            while devices:
                node, device = devices.popleft()
                if node.ended_s is None and node.device_tasks[device] == held:
                    self._hold_tasks((node, device), held + 1)
                    return node, device
        return None

    def _free_device(self, place: _Place) -> None:
        node, device = place
        self._hold_tasks(place, node.device_tasks[device] - 1)

    def _hold_tasks(self, place: _Place, number: int) -> None:
        node, device = place
        node.device_tasks[device] = number
        if number < HELD_TASKS:
            self.devices[number].append(place)

    def _driver_free(self) -> None:
        self.driver_is_asked = False
        self._deal()

    def _has_room(self) -> bool:
        """Whether frames of one more task fit into the stores of the nodes that run."""
        if not self.in_flight_bytes or not self.step.unit_bytes:
            return True
        now_s = self.cluster.now_s
        room = sum(n.kind.store_bytes for n in self.cluster.nodes if n.ready_s <= now_s)
        return self.in_flight_bytes + self.step.units_per_task * self.step.unit_bytes <= room

    def _land(self, task: _Task) -> None:
        """Its frames take no room any more."""
        self.in_flight_bytes -= task.flying_bytes
        task.flying_bytes = 0

    @staticmethod
    def _hold(task: _Task, node: Node) -> None:
        node.tasks[task] = None
        task.nodes.append(node)

    @staticmethod
    def _leave(task: _Task, node: Node) -> None:
        del node.tasks[task]
        task.nodes.remove(node)

    def _fed(self, task: _Task, tries: int, node: Node, seconds: float) -> None:
        """A slot is through with a task."""
        if task.tries != tries:
            return
        self.free_slots.append(node)
        self.sums["slot"] += seconds
        task.stage, task.slot_s = "", seconds
        if self._is_slots_only:
            self._write(task)
        else:
            self.waiting.append((task, tries))
            self._give()
        self._deal()

    def _give(self) -> None:
        """Frames that wait go to devices that have none, or one task."""
        while self.waiting:
            task, tries = self.waiting[0]
            if task.tries == tries:
                place = self._take_device()
                if place is None:
                    return
                self._send(task, place)
            self.waiting.popleft()

    def _send(self, task: _Task, place: _Place) -> None:
        self.dealt_s = self.cluster.now_s
        (source,), node = task.nodes, place[0]
        if source is node:
            self._compute(task, place, self.cluster.now_s)
            return
        num_bytes = task.units * self.step.unit_bytes
        rate = min(source.kind.network_bytes_per_s, node.kind.network_bytes_per_s)
        begin_s = max(self.cluster.now_s, source.sends_from_s, node.receives_from_s)
        source.sends_from_s = node.receives_from_s = begin_s + num_bytes / rate
        self.moved_bytes += num_bytes
        self._hold(task, node)
        self._at(node.receives_from_s, self._moved, task, task.tries, source, place)

    def _moved(self, task: _Task, tries: int, source: Node, place: _Place) -> None:
        if task.tries == tries:
            self._leave(task, source)
            self._compute(task, place, self.cluster.now_s)
        elif place[0].ended_s is None:
            # The source is gone, the device is as free as before.
            self._free_device(place)
            self._give()

    def _compute(self, task: _Task, place: _Place, from_s: float) -> None:
        node, device = place
        seconds = task.units * task.factor * self.step.device_s
        task.stage, task.since_s = "device", max(from_s, node.device_free_s[device])
        node.device_free_s[device] = task.since_s + seconds
        self._at(task.since_s + seconds, self._computed, task, task.tries, place, seconds)

    def _computed(self, task: _Task, tries: int, place: _Place, seconds: float) -> None:
        """A device is through with a task."""
        if task.tries != tries:
            return
        self._free_device(place)
        self.sums["device"] += seconds
        task.stage, task.device_s = "", seconds
        self._land(task)
        self._write(task)
        self._give()
        self._deal()

    def _write(self, task: _Task) -> None:
        written_s = self.cluster.now_s + self.step.write_s * task.units
        self._at(written_s, self._published, task, task.tries)

    def _published(self, task: _Task, tries: int) -> None:
        """What happens to its node from now on costs nothing."""
        if task.tries != tries:
            return
        for node in tuple(task.nodes):
            self._leave(task, node)
        self.finished += task.units
        self.left -= task.units
        if self.first_s is None:
            self.first_s = self.cluster.now_s
