"""How the memory of the process that runs a job grows with the number of videos: `python -m
benchmarks.driver`.

Every step of the pipeline, on 4,000 and on 20,000 segments. --segments FEW MANY takes others;
--quick takes fewer;
--json FILE writes the rows.
"""

import sys

from benchmarks import driver_run
from benchmarks.harness import main, parser

if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--segments", type=int, nargs=2, default=(4000, 20_000), metavar=("FEW", "MANY")
    )
    given = arguments.parse_args()
    few, many = (200, 600) if given.quick else given.segments
    sys.exit(main((driver_run.driver(few, many),), given))
