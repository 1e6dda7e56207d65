"""Wall time, node hours and price of large runs, simulated: `python -m benchmarks.scale`.

FCVID and Sports-1M on 1 to 64 GPU nodes with 16 to 128 CPUs for each GPU. --quick: fewer points of
FCVID alone;
--json FILE writes the rows; --again takes the costs of the committed rows instead of measuring;
--docs writes the tables and pictures of docs/scale.md from the committed rows, and measures
nothing.
"""

import dataclasses
import functools
import json
import sys

from benchmarks.harness import Options, Row, at_least, at_most, main, parser, progress
from benchmarks.scale import costs, pages, workload
from benchmarks.scale.cluster import Rules
from benchmarks.scale.costs import Costs
from benchmarks.scale.real import real_step
from benchmarks.scale.workload import FCVID, SPORTS, Corpus, Outcome, Setting
from pipelines.plan.trials import Trials

NODES = (1, 2, 4, 8, 16, 32, 64)
CORES = (16, 32, 64, 128)
SPOT = Rules(losses_per_hour=0.02)
BASE = Setting(FCVID, gpu_nodes=16, cores_per_gpu=32)


AGAIN = "--again" in sys.argv
"""The cases are given Options alone."""


@functools.cache
def _known(corpus: Corpus) -> tuple[Costs, Trials]:
    """Costs and trials of a corpus: measured, or with --again those of the committed rows."""
    if AGAIN:
        return costs.saved(corpus.name, json.loads(pages.RESULTS.read_text(encoding="utf-8")))
    trial = costs.trial(corpus.settings)
    return costs.every(trial), trial


def _simulate(setting: Setting) -> Outcome:
    return workload.simulate(setting, *_known(setting.corpus))


def real_run(options: Options) -> list[Row]:
    """The simulation of a step that was measured"""
    simulated_s, measured_s = real_step()
    return [
        at_most(
            "describe step of 200 real videos, simulated: the larger over the smaller",
            "measured",
            max(simulated_s, measured_s) / min(simulated_s, measured_s),
            1.2,
            seconds={"simulated": simulated_s, "measured": measured_s},
        )
    ]


def fcvid(options: Options) -> list[Row]:
    """FCVID on clusters of all sizes"""
    return _grid(FCVID, options)


def sports(options: Options) -> list[Row]:
    """Sports-1M on clusters of all sizes"""
    return [] if options.quick else _grid(SPORTS, options)


def _grid(corpus: Corpus, options: Options) -> list[Row]:
    nodes, cores = ((1, 8, 64), (16, 32)) if options.quick else (NODES, CORES)
    rows = []
    for ratio in cores:
        progress(f"  {corpus.name}, {ratio} CPUs a GPU")
        points = [_point(Setting(corpus, number, ratio)) for number in nodes]
        few, many = points[0], points[-1]
        rows.append(
            at_least(
                f"{corpus.name}, {ratio} CPUs a GPU: speed-up of {nodes[-1]} GPU nodes",
                "1 GPU node",
                few["wall_h"] / many["wall_h"],
                nodes[-1] / nodes[0] / 2,
                points=points,
                corpus=corpus.name,
                cores_per_gpu=ratio,
                videos=corpus.videos,
            )
        )
    # Where each number is from, once.
    known, trials = _known(corpus)
    every = known | workload.gpu_cost()
    rows[0].detail["costs"] = {name: dataclasses.asdict(cost) for name, cost in every.items()}
    rows[0].detail["trials"] = dataclasses.asdict(trials)
    return rows


def _point(setting: Setting) -> dict:
    """Without losses on demand, with losses on spot; with the range by the GPU's share where RATIO
    CPUs are."""
    middle = _simulate(setting)
    spot = _simulate(dataclasses.replace(setting, rules=SPOT))
    point = {
        "gpu_nodes": setting.gpu_nodes,
        "wall_h": middle.wall_s / 3600,
        "spot_h": spot.wall_s / 3600,
        "gpu_node_hours": middle.gpu_node_hours,
        "cpu_node_hours": middle.cpu_node_hours,
        "price_on_demand": middle.price_on_demand,
        "price_spot": spot.price_spot,
        "lost_nodes": spot.num_lost,
        "describe_h": middle.describe.wall_s / 3600,
        "limit": middle.describe.limit,
        "parts_s": middle.describe.parts(),
        "steps_s": middle.seconds,
        "moved_bytes": middle.describe.moved_bytes,
    }
    if setting.cores_per_gpu == pages.RATIO:
        high, low = (
            _simulate(dataclasses.replace(setting, share=share)) for share in ("high", "low")
        )
        point |= {
            "describe_range_h": [found.describe.wall_s / 3600 for found in (high, low)],
            "range_h": [found.wall_s / 3600 for found in (high, low)],
            "price_range": [high.price_on_demand, low.price_on_demand],
        }
    return point


def variants(options: Options) -> list[Row]:
    """One thing changed at a time"""
    changes = {
        "losses of 2 % an hour": dataclasses.replace(BASE, rules=SPOT),
        "losses of 10 % an hour": dataclasses.replace(BASE, rules=Rules(losses_per_hour=0.1)),
        "upscaling_speed 0.2": dataclasses.replace(BASE, rules=Rules(upscaling_speed=0.2)),
        "upscaling_speed 10": dataclasses.replace(BASE, rules=Rules(upscaling_speed=10)),
        "idle_timeout_minutes 60": dataclasses.replace(BASE, rules=Rules(idle_timeout_s=3600)),
        "key frames alone": dataclasses.replace(BASE, sampling="key frames"),
        "1080p": dataclasses.replace(BASE, size="1080p"),
        "1080p, 64 CPUs a GPU": dataclasses.replace(BASE, size="1080p", cores_per_gpu=64),
        "1080p, key frames alone": dataclasses.replace(BASE, size="1080p", sampling="key frames"),
        "a driver of half the cost": dataclasses.replace(BASE, driver=0.5),
        "files looked into one at a time": dataclasses.replace(BASE, lookups=1),
    }
    base = _simulate(BASE)
    rows = []
    for name, setting in changes.items():
        found = _simulate(setting)
        rows.append(
            at_most(
                f"{BASE.corpus.name}, {BASE.gpu_nodes} GPU nodes, {BASE.cores_per_gpu} CPUs a GPU,"
                f" {name}: wall time",
                "as it is",
                found.wall_s / base.wall_s,
                1.1,
                variant=name,
                wall_h=found.wall_s / 3600,
                describe_h=found.describe.wall_s / 3600,
                limit=found.describe.limit,
                price_on_demand=found.price_on_demand,
                price_spot=found.price_spot,
                lost_nodes=found.num_lost,
                lost_segments=found.describe.retried,
                base_h=base.wall_s / 3600,
                base_describe_h=base.describe.wall_s / 3600,
            )
        )
    return rows


CASES = (real_run, fcvid, sports, variants)

if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--docs", action="store_true", help="write docs/scale.md from the committed rows"
    )
    arguments.add_argument(
        "--again", action="store_true", help="simulate with the costs of the committed rows"
    )
    given = arguments.parse_args()
    if given.docs:
        pages.write()
        sys.exit(0)
    sys.exit(main(CASES, given))
