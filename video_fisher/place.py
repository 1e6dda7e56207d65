"""The packages beside this one, told apart from others of the same names.

A folder of one's own may hold `jobs/` or `pipelines/` too, and Python looks into the working
directory before it looks into what is installed.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("jobs", "pipelines", "encoders")
_OF_WORKERS = ("pipelines", "encoders")
"""Packages that Ray's workers load, which look into the working directory of the driver first."""


def ours_first() -> None:
    """Let this process find the packages beside this one before others of their names."""
    others = [entry for entry in sys.path if foreign(Path(entry or "."), NAMES)]
    ours = [entry for entry in sys.path if entry not in others]
    if str(ROOT) not in ours:
        # An editable install is found after all of sys.path.
        ours.append(str(ROOT))
    sys.path[:] = [*ours, *others]


def foreign(folder: Path, names: tuple[str, ...] = _OF_WORKERS) -> list[str]:
    """Return those of the names that a folder has a package or module of, which is not ours."""
    if folder.resolve() == ROOT:
        return []
    return [name for name in names if (folder / name).is_dir() or (folder / f"{name}.py").is_file()]


def refusal(folder: Path) -> str:
    """Return why no run can start in a folder; "" where it can."""
    names = foreign(folder)
    if not names:
        return ""
    return (
        f"{folder.resolve()}: expected a folder without a {names[0]} of its own to start in, "
        f"because the workers would load it in place of video-fisher's; change to another folder"
    )


def check() -> None:
    """Refuse to work with packages that are not ours.

    Raises:
        ImportError: one comes first.
    """
    for name in _OF_WORKERS:
        spec = importlib.util.find_spec(name)
        places = spec.submodule_search_locations or [spec.origin] if spec else []
        found = [str(path) for path in places if path]
        if not any(Path(path).resolve().parent == ROOT for path in found):
            raise ImportError(
                f"video_fisher: expected its own package {name} in {ROOT}, but Python finds "
                f"{', '.join(found) or 'none'} first; start Python in another folder"
            )
