"""The files that describe clusters, as what is in them."""

import itertools
import shlex
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

LAUNCHERS = ("cluster.yaml", "deploy/gcp.yaml")

KUBERAY = ("deploy/kuberay-cluster.yaml", "deploy/kuberay-job.yaml")

DOCS = ROOT / "docs" / "cluster.md"


def launcher(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def workers(config: dict) -> dict[str, dict]:
    """The node types of a launcher's file without its head."""
    types = config["available_node_types"]
    return {name: types[name] for name in types if name != config["head_node_type"]}


def limits(config: dict) -> dict[str, int]:
    """What all workers of a launcher's file have together."""
    return {
        kind: sum(t["max_workers"] * t["resources"].get(kind, 0) for t in workers(config).values())
        for kind in ("CPU", "GPU")
    }


def kuberay(name: str) -> tuple[dict, dict]:
    """The service account and the RayCluster or RayJob."""
    account, _, custom = yaml.safe_load_all((ROOT / name).read_text())
    return account, custom


def network_policy(name: str) -> dict:
    """Who reaches the pods of a manifest, and whom they reach."""
    _, policy, _ = yaml.safe_load_all((ROOT / name).read_text())
    return policy


def ray_cluster(name: str) -> dict:
    spec = kuberay(name)[1]["spec"]
    return spec.get("rayClusterSpec", spec)


def pod(group: dict) -> dict:
    """The one container of a head or worker group."""
    [container] = group["template"]["spec"]["containers"]
    return container


def job_settings(command: str) -> dict[str, str]:
    """The values of --set in a command."""
    words = shlex.split(command)
    given = [after for word, after in itertools.pairwise(words) if word == "--set"]
    return dict(setting.split("=", 1) for setting in given)


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
