"""Find the videos of a finished run that are most like one of them, or like a new video file.

`python -m jobs.search --out URI --query VIDEO_ID-or-FILE` prints a table and writes a page with
pictures. The first search with an encoder and stream builds their index, under search/ in the run.
No cluster is needed. Exit codes: 0 done, 1 the run's tables do not allow a search, 2 something in
the flags is wrong, or the file cannot be decoded.
"""

import argparse
import json
import sys

from jobs.command_line import guarded, summary


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line."""
    out = argparse.ArgumentParser(prog="search", description=summary(__doc__))
    out.add_argument("--out", required=True, help="URI of the run, as it was given to the job")
    out.add_argument(
        "--query", required=True, help="a video_id of the run, or the file or URI of another video"
    )
    out.add_argument(
        "--encoder", help="compare vectors of this encoder (default: that with the best mAP)"
    )
    out.add_argument(
        "--stream", help="compare vectors of this stream (default: that with the best mAP)"
    )
    out.add_argument("--num", type=int, default=10, help="number of results (default: 10)")
    out.add_argument(
        "--page", metavar="FILE", help="file or URI to write the page to (default: in the run)"
    )
    out.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return out


def main(argv: list[str] | None = None) -> int:
    """Search, print the answer and return the exit code."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.search.nearest import search

    answer = search(
        arguments.out,
        arguments.query,
        encoder=arguments.encoder,
        stream=arguments.stream,
        num=arguments.num,
        page=arguments.page,
    )
    print(json.dumps(answer.to_json(), indent=1) if arguments.json else "\n".join(answer.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
