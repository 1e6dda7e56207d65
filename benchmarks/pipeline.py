"""What a run does besides the mathematics, timed against other ways: `python -m
benchmarks.pipeline`.

Reads the videos of ../shared/data ($VIDEO_FISHER_DATA). --quick takes few of them, once, and leaves
out what starts a cluster, which alone takes most of a minute (`--quick --only CASE` runs it on
less); --json FILE writes the rows; --only CASE runs one, such as describe_step.
"""

import sys

from benchmarks import pipeline_decode, pipeline_images, pipeline_plan, pipeline_run
from benchmarks.harness import main, parser, progress

CASES = (
    *pipeline_decode.CASES,
    *pipeline_run.CASES,
    *pipeline_images.CASES,
    *pipeline_plan.CASES,
)
QUICK = (
    *pipeline_decode.CASES,
    pipeline_run.describers,
    pipeline_run.resume,
)

if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    names = [case.__name__ for case in CASES]
    arguments.add_argument("--only", action="append", choices=names, help="a case; repeatable")
    given = arguments.parse_args()
    chosen = [case for case in CASES if case.__name__ in given.only] if given.only else CASES
    if given.quick and not given.only:
        progress(
            "left out by --quick:"
            f" {', '.join(case.__name__ for case in CASES if case not in QUICK)}"
        )
        chosen = QUICK
    sys.exit(main(chosen, given))
