"""The command `video-fisher`, and `python -m video_fisher`."""

import sys
from pathlib import Path

from video_fisher import place


def main() -> int:
    """Run a subcommand and return its exit code."""
    place.ours_first()
    if reason := place.refusal(Path.cwd()):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    from jobs import commands

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
