"""What a run does besides the mathematics, timed against other ways: `python -m benchmarks.pipeline`.

Reads the videos of ../shared/data ($VIDEO_FISHER_DATA). --quick takes some of them, once; --json FILE
writes the rows.
"""

import sys

from benchmarks import pipeline_decode, pipeline_plan, pipeline_run
from benchmarks.harness import main, parser

CASES = (*pipeline_decode.CASES, *pipeline_run.CASES, *pipeline_plan.CASES)

if __name__ == "__main__":
    sys.exit(main(CASES, parser(__doc__.splitlines()[0]).parse_args()))
