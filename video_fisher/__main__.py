"""The command `video-fisher`, and `python -m video_fisher`."""

import sys

from video_fisher import place


def main() -> int:
    """Run a subcommand and return its exit code."""
    place.ours_first()
    from jobs import commands

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
