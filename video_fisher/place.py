"""The packages beside this one, told apart from others of the same names.

A folder of one's own may hold `jobs/` or `pipelines/` too, and Python looks into the working
directory before it looks into what is installed.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("jobs", "pipelines", "encoders")
_LOADED = ("pipelines", "encoders")
"""Packages that `import video_fisher` loads."""


def ours_first() -> None:
    """Let this process find the packages beside this one before others of their names."""
    others = [entry for entry in sys.path if _holds_others(Path(entry or "."))]
    ours = [entry for entry in sys.path if entry not in others]
    if str(ROOT) not in ours:
        # An editable install is found after all of sys.path.
        ours.append(str(ROOT))
    sys.path[:] = [*ours, *others]


def _holds_others(folder: Path) -> bool:
    """Return whether a folder has a package or module of one of our names that is not ours."""
    named = ((folder / name, folder / f"{name}.py") for name in NAMES)
    return folder.resolve() != ROOT and any(a.is_dir() or b.is_file() for a, b in named)


def check() -> None:
    """Refuse to work with packages that are not ours.

    Raises:
        ImportError: one comes first.
    """
    for name in _LOADED:
        spec = importlib.util.find_spec(name)
        places = spec.submodule_search_locations or [spec.origin] if spec else []
        found = [str(path) for path in places if path]
        if not any(Path(path).resolve().parent == ROOT for path in found):
            raise ImportError(
                f"video_fisher: expected its own package {name} in {ROOT}, but Python finds "
                f"{', '.join(found) or 'none'} first; start Python in another folder"
            )
