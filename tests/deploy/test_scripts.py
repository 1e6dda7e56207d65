"""The scripts that set up a node, run with stand-ins for what only a machine in a cloud has."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.files import ROOT


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs a script with the programs in `folder` before all others."""
    return subprocess.run(
        ["bash", script],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


# --- setup_node.sh --------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with the script, a package to install and its lock."""
    home = tmp_path / "home"
    mounted = home / "video-fisher"
    mounted.mkdir(parents=True)
    (home / ".bashrc").write_text("# there before\n")
    (mounted / "setup_node.sh").write_text((ROOT / "deploy" / "setup_node.sh").read_text())
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing.py", "")
        info = "thing-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (mounted / "requirements.lock").write_text(f"thing==1.0 --hash=sha256:{digest}\n")
    return home


def set_up(home: Path) -> subprocess.CompletedProcess:
    programs = home.parent / "programs"
    programs.mkdir(exist_ok=True)
    # A venv without a pip of its own, which takes seconds to make.
    program(
        programs,
        "python3.12",
        f'[ "$1 $2" = "-m venv" ] || exit 0\n{sys.executable} -m venv --without-pip "$3"\nprintf'
        f' \'#!/bin/bash\\nexec {sys.executable} -m pip --python %s "$@"\\n\' "$3"'
        ' >"$3/bin/pip"\nchmod +x "$3/bin/pip"',
    )
    return run(
        str(home / "video-fisher" / "setup_node.sh"),
        programs,
        HOME=str(home),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(home.parent),
    )


@pytest.mark.slow
def test_a_node_has_the_lock_once(home: Path) -> None:
    kept = home / "venv" / "kept"
    done = set_up(home)
    assert done.returncode == 0, done.stderr
    assert list(home.glob("venv/lib/python3*/site-packages/thing.py"))
    # With the same lock nothing is done.
    kept.touch()
    assert set_up(home).returncode == 0
    assert kept.exists()
    assert (home / ".bashrc").read_text() == '# there before\nexport PATH="$HOME/venv/bin:$PATH"\n'
    # With another one all of it; here to a package that is not the one locked.
    lock = home / "video-fisher" / "requirements.lock"
    lock.write_text(f"thing==1.0 --hash=sha256:{'0' * 64}\n")
    done = set_up(home)
    assert done.returncode != 0
    assert "HASHES" in done.stderr
    assert not kept.exists()
    assert not (home / "venv" / "requirements.lock").exists(), "the next try begins again"


# --- local_disk.sh --------------------------------------------------------------------------------

ROOT_DISK = "/dev/nvme0n1 Amazon Elastic Block Store"


@pytest.mark.parametrize(
    ("mounted", "disks", "expected"),
    [
        ("", [ROOT_DISK], []),
        (
            "",
            [ROOT_DISK, "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage"],
            ["mkfs.ext4 -q -F /dev/nvme1n1", "mount -o noatime /dev/nvme1n1 TARGET"],
        ),
        (
            "",
            ["/dev/sda PersistentDisk", "/dev/nvme0n1 nvme_card"],
            ["mkfs.ext4 -q -F /dev/nvme0n1", "mount -o noatime /dev/nvme0n1 TARGET"],
        ),
        (
            "",
            ["/dev/nvme0n1 nvme_card-pd", "/dev/nvme1n1 nvme_card0", "/dev/nvme2n1 nvme_card1"],
            ["mkfs.ext4 -q -F /dev/nvme1n1", "mount -o noatime /dev/nvme1n1 TARGET"],
        ),
        ("TARGET", [ROOT_DISK, "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage"], []),
        (
            "/opt/dlami/nvme",
            [ROOT_DISK, "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage"],
            ["mount --bind /opt/dlami/nvme/ray TARGET"],
        ),
    ],
    ids=["none", "aws", "google", "google of today", "mounted before", "mounted by the image"],
)
def test_the_local_disk_is_made_and_mounted(
    tmp_path: Path, mounted: str, disks: list[str], expected: list[str]
) -> None:
    programs, target, log = tmp_path / "programs", tmp_path / "target", tmp_path / "log"
    programs.mkdir()
    program(programs, "sudo", f'echo "$@" >>{log}; [ "$1" != mkdir ] || mkdir -p {target}')
    program(programs, "mountpoint", f'[ "$2" = "{mounted.replace("TARGET", str(target))}" ]')
    program(programs, "lsblk", "cat <<'END'\n" + "\n".join(disks) + "\nEND")
    script = tmp_path / "local_disk.sh"
    text = (ROOT / "deploy" / "local_disk.sh").read_text()
    assert text.count("target=/mnt/ray\n") == 1
    script.write_text(text.replace("target=/mnt/ray\n", f"target={target}\n"))
    done = run(str(script), programs)
    assert done.returncode == 0, done.stderr
    said = log.read_text().replace(str(target), "TARGET").splitlines()
    assert [
        line for line in said if line.startswith(("mk", "mount")) and "mkdir" not in line
    ] == expected
    assert (target / "tmp").is_dir()
    assert (target / "spill").is_dir()
    assert ("no local NVMe disk" in done.stderr) == (not expected and not mounted)


# --- gcp_access.sh --------------------------------------------------------------------------------

ACCESS = str(ROOT / "deploy" / "gcp_access.sh")


def gcloud(
    tmp_path: Path, there: str, *arguments: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run the script with a gcloud that knows of what matches `there`; and what it was asked to
    change."""
    log = tmp_path / "log"
    program(
        tmp_path,
        "gcloud",
        f'case "$*" in *" describe "*) [[ "$*" =~ {there} ]] ;; *) echo "$@" >>{log} ;; esac',
    )
    done = subprocess.run(
        ["bash", ACCESS, *arguments],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("there", ["nothing", "."])
def test_google_lets_in_ssh_from_one_address_and_machines_to_two_buckets(
    tmp_path: Path, there: str
) -> None:
    done, asked = gcloud(tmp_path, there, "mine", "my-videos", "my-runs", "203.0.113.7/32")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("--quiet --project mine ") for line in asked)
    made = [line for line in asked if " create " in line]
    assert len(made) == (6 if there == "nothing" else 0)
    [ssh] = [line for line in asked if "firewall-rules" in line and "-ssh " in line]
    assert ssh.endswith("--source-ranges 203.0.113.7/32")
    bindings = [line for line in asked if "storage buckets" in line]
    assert {line.split()[6] for line in bindings} == {"gs://my-videos", "gs://my-runs"}
    assert len(bindings) == 4
    project = [line for line in asked if "projects add-iam-policy-binding" in line]
    assert ["storage" in line for line in project] == [False]
    [acts_as] = [line for line in asked if "iam.serviceAccountUser" in line]
    assert "service-accounts add-iam-policy-binding video-fisher@mine" in acts_as


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine"], "expected PROJECT VIDEOS_BUCKET RUNS_BUCKET SSH_FROM, got 1 arguments"),
        (["mine", "v", "r", "0.0.0.0/0"], "the whole world"),
        (["mine", "v", "r", "203.0.113.7"], "expected addresses such as 203.0.113.7/32"),
    ],
)
def test_google_is_asked_nothing_after_a_wrong_argument(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done, asked = gcloud(tmp_path, "nothing", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert asked == []
