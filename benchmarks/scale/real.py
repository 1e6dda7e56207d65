"""The simulation of a step that was measured on a real machine."""

import json

from benchmarks.scale import costs
from benchmarks.scale.cluster import Cluster, Kind, Rules
from benchmarks.scale.costs import RESULTS
from benchmarks.scale.step import Step, run
from pipelines.cluster.datasets import segments_at_a_time


def real_step() -> tuple[float, float]:
    """Seconds of the describe step of pipeline-run-2core-cpu.json: simulated from its parts alone,
    and measured.

    Two cores, one decoder and two describers. The cores are full, so a describer's also does the
    decoding and writing.
    """
    name = "describe, 200 real videos, squeezenet1_0 features.12"
    rows = json.loads((RESULTS / "pipeline-run-2core-cpu.json").read_text(encoding="utf-8"))
    detail = next(row["detail"] for row in rows if row["measure"] == name)
    stages = {stage["name"]: stage for stage in detail["step"]["stages"]}
    alone, videos = detail["alone"], 200
    known = costs.committed()
    write_s = known["write, core_s of a frame"].value * alone["frames"]
    step = Step(
        name="describe",
        units=videos,
        units_per_task=segments_at_a_time(videos, stages["decode"]["workers"]),
        slot_s=alone["decode_s"] / videos,
        device_s=(alone["decode_s"] + alone["forward_s"] + write_s) / videos,
        driver_s=known["driver, s of a task with two pools"].value / costs.SEGMENTS_PER_TASK,
        slot_start_s=stages["decode"]["start_s"],
        device_start_s=stages["describe"]["start_s"],
    )
    machine = Kind(
        "this machine", slots=stages["decode"]["workers"], devices=stages["describe"]["workers"]
    )
    found = run(Cluster({machine: 1}, Rules()), step)
    return found.wall_s, detail["seconds"]["step"]
