"""How the memory of the process that runs a job grows with the number of videos: `python -m
benchmarks.driver`.

Every step of the pipeline, on 4,000 and on 20,000 segments; and what a run of a million segments
reads that was killed in describe. --segments FEW MANY and --resume NUMBER take others; --only
resume leaves the steps out; --quick takes fewer; --json FILE writes the rows.
"""

import sys

from benchmarks import driver_resume, driver_run
from benchmarks.harness import main, parser

if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--segments", type=int, nargs=2, default=(4000, 20_000), metavar=("FEW", "MANY")
    )
    arguments.add_argument("--resume", type=int, default=10**6, metavar="NUMBER")
    arguments.add_argument("--only", choices=("steps", "resume"))
    given = arguments.parse_args()
    few, many = (200, 600) if given.quick else given.segments
    cases = {
        "steps": driver_run.driver(few, many),
        "resume": driver_resume.resume(2000 if given.quick else given.resume),
    }
    sys.exit(main(tuple(c for name, c in cases.items() if given.only in (None, name)), given))
