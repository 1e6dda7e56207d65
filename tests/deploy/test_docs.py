"""docs/cluster.md: its commands are ones that Ray knows, its numbers those of the files."""

import re
import shlex

import click
import pytest
from ray.dashboard.modules.job.cli import job_cli_group
from ray.scripts import scripts

from pipelines.plan.prices import read_prices
from pipelines.settings.recipes import recipe
from tests.deploy.files import DOCS, ROOT, job_settings, launcher, limits, workers

TEXT = DOCS.read_text()

HOURS_A_DAY = 24


def code(text: str) -> list[str]:
    """The commands of the indented blocks, continued lines as one."""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def chapter(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def ray_commands() -> list[str]:
    """Without what the job or the head is to run."""
    readme = (
        (ROOT / "README.md").read_text().partition("### On a cluster\n")[2].partition("\n## ")[0]
    )
    lines = [
        part.strip() for line in code(TEXT + readme) for part in re.split(r"&& (?!sleep)", line)
    ]
    return [line for line in lines if line.startswith("ray ")]


def test_ten_commands() -> None:
    commands = [line for line in code(chapter("Ten commands, on AWS")) if not line.startswith("#")]
    assert len(commands) == 10
    numbers = re.findall(r"^    # (\d+) ", chapter("Ten commands, on AWS"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("line", ray_commands())
def test_ray_knows_the_command(line: str) -> None:
    _, *words = shlex.split(line.partition(" > ")[0], comments=True)
    group: click.Command = scripts.cli
    while isinstance(group, click.Group):
        name = words.pop(0)
        group = job_cli_group if name == "job" else group.commands[name]
    context = group.make_context("ray", words, resilient_parsing=False)
    for name in ("cluster_config_file", "working_dir"):
        if given := context.params.get(name):
            assert (ROOT / given).exists() or given in ("aws.yaml", "gcp.yaml")


@pytest.mark.parametrize(
    ("title", "name"),
    [("Ten commands, on AWS", "cluster.yaml"), ("Google Cloud", "deploy/gcp.yaml")],
)
def test_the_job_is_told_what_the_cluster_may_grow_to(title: str, name: str) -> None:
    [command] = [line for line in code(chapter(title)) if "fcvid_encode" in line]
    held = limits(launcher(name))
    wanted = {"cluster.max_cpus": str(held["CPU"]), "cluster.max_gpus": str(held["GPU"])}
    assert job_settings(command) == wanted
    told = recipe("fcvid").with_settings([f"{key}={value}" for key, value in wanted.items()])
    assert told.cluster.max_cpus == held["CPU"]
    if name == "cluster.yaml":
        readme = code((ROOT / "README.md").read_text().partition("### On a cluster\n")[2])
        assert job_settings(next(line for line in readme if "fcvid_encode" in line)) == wanted


def test_versions_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    [version] = re.findall(r"^ray==(\S+)", lock, re.MULTILINE)
    assert set(re.findall(r"ray\[default\]==([\d.]+)", TEXT)) == {version}


def test_the_table_of_machines() -> None:
    rows = [line.split("|") for line in chapter("What is where").splitlines() if line[:1] == "|"]
    found = {cells[1].partition(",")[0].strip(): cells for cells in rows[2:]}
    types = launcher("cluster.yaml")["available_node_types"]
    assert set(found) == set(types)
    for name, node in workers(launcher("cluster.yaml")).items():
        _, _, machine, held, _, _, number, *_ = (cell.strip() for cell in found[name])
        assert machine == node["node_config"]["InstanceType"]
        assert held.partition(",")[0] == str(node["resources"]["CPU"])
        assert (", 1 " in held) == ("GPU" in node["resources"])
        assert number == f"0 to {node['max_workers']}"


def test_the_cost_of_leaving_it_on() -> None:
    prices = {machine.name: machine for machine in read_prices("").machines}
    config = launcher("cluster.yaml")
    head = prices[config["available_node_types"]["head"]["node_config"]["InstanceType"]].on_demand
    spot = sum(
        node["max_workers"] * prices[node["node_config"]["InstanceType"]].spot
        for node in workers(config).values()
    )
    [disk] = config["available_node_types"]["head"]["node_config"]["BlockDeviceMappings"]
    disk_day = disk["Ebs"]["VolumeSize"] * 0.08 * 12 / 365
    text = chapter("What it costs to leave it on")
    numbers = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for cells in (line.split("|") for line in text.splitlines() if line[:1] == "|")
    }
    by_start = {name[:8]: value for name, value in numbers.items()}
    assert by_start["the head"] == [f"{head:.2f}", f"{head * HOURS_A_DAY:.2f}"]
    assert by_start["its disk"] == [f"{disk_day / HOURS_A_DAY:.2f}", f"{disk_day:.2f}"]
    assert by_start["all 28 w"] == [f"{spot:.2f}", ""]
    assert config["max_workers"] == 28
    assert config["idle_timeout_minutes"] == 5


def test_quota_that_is_wanted() -> None:
    config = launcher("cluster.yaml")
    cpus = {True: 0, False: 0}
    for node in workers(config).values():
        cpus["GPU" in node["resources"]] += node["max_workers"] * node["resources"]["CPU"]
    total = sum(cpus.values())
    assert (
        f"({total} wanted by `cluster.yaml`, {cpus[False]} of them ordinary, {cpus[True]} with"
        " GPUs)" in TEXT
    )


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+\.md)\)", TEXT))
def test_links_lead_somewhere(link: str) -> None:
    assert (DOCS.parent / link).is_file()
