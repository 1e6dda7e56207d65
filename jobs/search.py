"""The videos of a run most like one of them, or like a new video file.

`python -m jobs.search --out URI --query VIDEO_ID-or-FILE` prints a table and publishes a page with pictures. The first
search of an encoder and stream makes its index, under search/ in the run. No cluster is needed. Exit codes: 0 done,
1 the run's tables do not allow it, 2 something in the flags is wrong, or the file cannot be decoded.
"""

import argparse
import json
import sys

from jobs.fcvid_encode import guarded


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(prog="search", description=__doc__.splitlines()[0])
    out.add_argument("--out", required=True, help="URI of the run, as it was given to the job")
    out.add_argument("--query", required=True, help="video_id of the run, or a video file or URI")
    out.add_argument("--encoder", help="whose vectors are compared (that of the best mAP)")
    out.add_argument("--stream", help="the stream of these (that of the best mAP)")
    out.add_argument("--num", type=int, default=10, help="how many results (10)")
    out.add_argument("--page", metavar="FILE", help="file or URI of the page (in the run)")
    out.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return out


def main(argv: list[str] | None = None) -> int:
    """Searches and prints; returns the exit code."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    # torch takes seconds to load: not before the flags were read.
    from pipelines.search import search

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
