"""Videos by the names that annotations of data sets give them."""

import os
from collections import defaultdict
from collections.abc import Iterable

from pipelines.errors import ConfigError


class Names:
    """The paths of the listed videos, found by path, by file name or by file name without suffix.

    Args:
        paths: relative to --videos.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = set(paths)
        self._of_name: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self._paths):
            name = os.path.basename(path)
            for key in {name, os.path.splitext(name)[0]}:
                self._of_name[key].append(path)

    def path(self, *names: str) -> str:
        """Return the path of the video that has one of these names, tried in their order; the
        first name where there is none, which is then a missing video.

        Raises:
            ConfigError: several videos have the name.
        """
        for name in names:
            if name in self._paths:
                return name
            base = os.path.basename(name)
            for key in dict.fromkeys((base, os.path.splitext(base)[0])):
                paths = self._of_name.get(key, [])
                if len(paths) > 1:
                    raise ConfigError(
                        f"--labels: expected one video named {key}, got {len(paths)}: {paths[0]}, "
                        f"{paths[1]}; name another --videos, or write paths instead of names"
                    )
                if paths:
                    return paths[0]
        return names[0]
