"""requirements.lock: what pyproject.toml asks for, each package once and held by hashes, from
nowhere in particular."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.files import ROOT, pyproject

LOCK = (ROOT / "requirements.lock").read_text()

MACHINE = {
    "python_version": "3.12",
    "python_full_version": "3.12.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
}
"""What the lock is for."""

EXTRAS = ("timm", "flow", "aws", "gcp", "azure")


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK, re.MULTILINE)
    assert len({name for name, _ in found}) == len(found), "each once"
    return dict(found)


def _asked() -> list[str]:
    """What pyproject.toml asks for on such a machine."""
    project = pyproject()
    lists = [project["dependencies"]]
    lists += [project["optional-dependencies"][extra] for extra in EXTRAS]
    found = [Requirement(text) for asked in lists for text in asked]
    return [str(asked) for asked in found if not asked.marker or asked.marker.evaluate(MACHINE)]


@pytest.mark.parametrize("text", _asked())
def test_it_has_what_the_project_asks_for(text: str, pins: dict[str, str]) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_every_line_is_a_pin_with_hashes() -> None:
    """pip --require-hashes refuses anything else; an index or a file would be some machine's
    own."""
    text = re.sub(r"^\s*#.*\n", "", LOCK, flags=re.MULTILINE)
    pin = r"[a-z0-9._-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+"
    assert re.sub(pin, "", text) == ""
    assert "://" not in LOCK
    assert "file:" not in LOCK


def test_what_is_tried_is_what_is_locked(pins: dict[str, str]) -> None:
    """Ray's versions must be equal wherever it runs; tests run with one."""
    import ray

    assert pins["ray"] == ray.__version__
