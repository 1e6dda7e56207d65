"""How the memory of the process that runs a job grows with the number of videos: `python -m benchmarks.driver`.

Every step of the pipeline, on 2,000 and on 20,000 segments. --quick takes fewer; --json FILE writes the rows.
"""

import sys

from benchmarks import driver_run
from benchmarks.harness import main, parser

if __name__ == "__main__":
    sys.exit(main(driver_run.CASES, parser(__doc__.splitlines()[0]).parse_args()))
