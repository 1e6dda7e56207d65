"""cluster.yaml and deploy/gcp.yaml: held against Ray's schema, the clouds' own descriptions of a
machine, and the recipes.

What nothing offline can say: whether an image exists, whether the account has quota, which zone has
machines.
"""

import copy
import gzip
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import boto3
import botocore.session
import pytest
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from moto import mock_aws
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND
from ray.scripts import scripts

from pipelines.cluster import pools as cluster_pools
from pipelines.plan.estimate import PROCESS_BYTES
from pipelines.plan.prices import read_prices
from pipelines.settings.recipes import RECIPES
from tests.deploy.files import LAUNCHERS, ROOT, launcher, limits, workers

OBJECT_STORE_SHARE = 0.3
"""Of a node's memory, by default."""


# --- what both clouds have -----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(launcher(name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(idle_timeout=5), "idle_timeout"),
        (lambda config: config.update(head_node_type="main"), "head_node_type"),
        (lambda config: workers(config)["decode-16"].pop("resources"), "resources"),
        (lambda config: workers(config)["decode-16"]["resources"].update(GPU=0.5), "0.5"),
    ],
)
def test_ray_would_notice_a_mistake(change, message: str) -> None:
    config = launcher("cluster.yaml")
    change(config)
    with pytest.raises((ValidationError, ValueError, KeyError), match=re.escape(message)):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_head_runs_no_task_and_workers_come_from_nothing_to_the_maximum(name: str) -> None:
    config = launcher(name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    types = workers(config)
    assert all(t["min_workers"] == 0 for t in types.values())
    assert config["max_workers"] == sum(t["max_workers"] for t in types.values())
    assert config["idle_timeout_minutes"] > 0
    for kind in (True, False):
        assert sum(("GPU" in t["resources"]) is kind for t in types.values()) >= 2, "several types"
    assert all(t["resources"].get("GPU", 1) == 1 for t in types.values()), "one GPU, one describer"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_what_is_mounted_is_in_the_repository(name: str) -> None:
    mounts = launcher(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / local).is_file() for local in mounts.values())
    used = {
        word
        for command in launcher(name)["setup_commands"] + launcher(name)["worker_setup_commands"]
        for word in command.split()
        if word.startswith("~/")
    }
    assert used | {"~/video-fisher/requirements.lock"} == set(mounts)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_start_knows_the_flags(name: str) -> None:
    known = {flag for option in scripts.start.params for flag in option.opts}
    config = launcher(name)
    flags = {}
    for kind in ("head", "worker"):
        *before, command = config[f"{kind}_start_ray_commands"][-1].split(";")
        assert " unset OMP_NUM_THREADS" in before, "the launcher sets it to 1"
        assert " export RAY_AUTH_MODE=token" in before
        words = shlex.split(command)
        assert words[:2] == ["ray", "start"]
        flags[kind] = dict(word.partition("=")[::2] for word in words[2:])
        assert set(flags[kind]) <= known
    assert flags["head"]["--dashboard-host"] == "127.0.0.1", "the dashboard runs anybody's code"
    disk = (ROOT / "deploy" / "local_disk.sh").read_text()
    [target] = re.findall("^target=(.*)$", disk, re.MULTILINE)
    assert flags["worker"]["--temp-dir"] == f"{target}/tmp"
    assert flags["worker"]["--object-spilling-directory"] == f"{target}/spill"


def test_both_clouds_start_nodes_in_the_same_way() -> None:
    aws, google = (launcher(name) for name in LAUNCHERS)
    for name in aws:
        if name not in ("provider", "available_node_types"):
            assert aws[name] == google[name], name


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_price_table_has_the_machines(name: str) -> None:
    config = launcher(name)
    prices = {machine.name: machine for machine in read_prices("").machines}
    for node in config["available_node_types"].values():
        machine = prices[_machine(node)]
        if node["resources"]["CPU"]:
            held = {"CPU": machine.cpus, "GPU": machine.gpus}
            assert {"GPU": 0} | node["resources"] == held
            assert machine.spot < machine.on_demand


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_file_says_its_limits(name: str) -> None:
    text = (ROOT / name).read_text()
    held = limits(launcher(name))
    assert f"{held['CPU']} CPUs and {held['GPU']} GPUs" in text


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_actor_of_a_recipe_fits_on_a_machine(name: str, recipe: str) -> None:
    held, types = limits(launcher(name)), workers(launcher(name)).values()
    told = [f"cluster.max_cpus={held['CPU']}", f"cluster.max_gpus={held['GPU']}"]
    pools = cluster_pools.pools(RECIPES[recipe]().with_settings(told).cluster, held)
    for pool in (pools.decode, pools.describe, pools.encode):
        fitting = [
            t["resources"]
            for t in types
            if pool.num_cpus <= t["resources"]["CPU"]
            and pool.num_gpus <= t["resources"].get("GPU", 0)
        ]
        assert fitting
        assert pool.num_gpus in (0, 1), "whole GPUs: Ray starts no machine for a part of one"
        assert pool.size * pool.num_cpus <= held["CPU"]
        assert pool.size * pool.num_gpus <= held["GPU"]
    assert pools.describe.num_gpus == pools.encode.num_gpus == 1
    assert pools.write_cpus <= min(t["resources"]["CPU"] for t in types)


# --- AWS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, dict]:
    """EC2's own answer to DescribeInstanceTypes, by type."""
    file = resources.files("moto.ec2") / "resources" / "instance_types.json.gz"
    return json.loads(gzip.decompress(file.read_bytes()))


@pytest.fixture(scope="module")
def run_instances():
    session = botocore.session.get_session()
    return session.get_service_model("ec2").operation_model("RunInstances").input_shape


@pytest.mark.parametrize("node", launcher("cluster.yaml")["available_node_types"])
def test_ec2_accepts_the_machine(node: str, run_instances) -> None:
    asked = launcher("cluster.yaml")["available_node_types"][node]["node_config"]
    assert _mistakes(asked, run_instances) == ""


def test_ec2_would_notice_a_mistake(run_instances) -> None:
    asked = launcher("cluster.yaml")["available_node_types"]["gpu-l4"]["node_config"]
    assert "InstanceTyp" in _mistakes(asked | {"InstanceTyp": "g6.4xlarge"}, run_instances)
    assert "g6.banana" in _mistakes(asked | {"InstanceType": "g6.banana"}, run_instances)
    assert "cheap" in _mistakes(
        asked | {"InstanceMarketOptions": {"MarketType": "cheap"}}, run_instances
    )


def test_cpus_gpus_memory_and_local_disks_are_ec2s(published: dict[str, dict]) -> None:
    config = launcher("cluster.yaml")
    for node in workers(config).values():
        facts = published[node["node_config"]["InstanceType"]]
        gpus = sum(gpu["Count"] for gpu in facts.get("GpuInfo", {}).get("Gpus", []))
        held = {"CPU": facts["VCpuInfo"]["DefaultVCpus"], "GPU": gpus}
        assert {"GPU": 0} | node["resources"] == held
        assert facts["InstanceStorageInfo"]["NvmeSupport"] == "required"
        assert sum(disk["Count"] for disk in facts["InstanceStorageInfo"]["Disks"]) == 1, (
            "local_disk.sh takes one"
        )
        assert "spot" in facts["SupportedUsageClasses"]
        assert facts["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]
        heap_bytes = facts["MemoryInfo"]["SizeInMiB"] * 2**20 * (1 - OBJECT_STORE_SHARE)
        assert heap_bytes >= node["resources"]["CPU"] * PROCESS_BYTES, "a process on each CPU"
        assert heap_bytes >= max(recipe().decode.memory_bytes for recipe in RECIPES.values())


def test_the_head_is_on_demand_and_the_workers_are_spot() -> None:
    config = launcher("cluster.yaml")
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]
    for node in workers(config).values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


@pytest.mark.slow
def test_the_launcher_starts_these_machines(
    tmp_path: Path,
    published: dict[str, dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """What `ray up` and the autoscaler ask of AWS, asked of a simulated one."""
    # The simulation takes seconds to write them all down.
    monkeypatch.setattr(node_provider, "list_ec2_instances", lambda *_: list(published.values()))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        iam = boto3.client("iam")
        for role in ("video-fisher-head", "video-fisher-worker"):
            iam.create_instance_profile(InstanceProfileName=role)
        # Not the launcher's own group, which lets in ssh from the whole world.
        with pytest.raises(AssertionError):
            _bootstrap_config(launcher("cluster.yaml"), no_config_cache=True)
        assert "to any of the configured SecurityGroupIds" in capsys.readouterr().err
        access = runpy.run_path(str(ROOT / "deploy" / "aws_access.py"))
        group = access["make_group"](boto3.client("ec2", "us-east-1"), "203.0.113.7/32")
        asked = launcher("cluster.yaml")
        for node in asked["available_node_types"].values():
            assert node["node_config"]["SecurityGroupIds"] == ["SECURITY_GROUP"]
            node["node_config"]["SecurityGroupIds"] = [group]
        config = _bootstrap_config(asked, no_config_cache=True)
        provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
        for name, node in config["available_node_types"].items():
            tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, "of": name}
            provider.create_node(node["node_config"], tags, 1)
        machines = [
            machine
            for reservation in boto3.client("ec2", "us-east-1").describe_instances()["Reservations"]
            for machine in reservation["Instances"]
        ]
    assert list((tmp_path / ".ssh").glob("*.pem"))
    started = {tag["Value"]: m for m in machines for tag in m["Tags"] if tag["Key"] == "of"}
    wanted = launcher("cluster.yaml")["available_node_types"]
    assert set(started) == set(wanted)
    for name, machine in started.items():
        node = wanted[name]
        assert machine["InstanceType"] == node["node_config"]["InstanceType"]
        assert [g["GroupId"] for g in machine["SecurityGroups"]] == [group]
        assert machine["ImageId"] == node["node_config"]["ImageId"]
        profile = machine["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert profile == node["node_config"]["IamInstanceProfile"]["Name"]
        assert machine.get("InstanceLifecycle") == (None if name == "head" else "spot")
        assert {"Key": "ray-cluster-name", "Value": "video-fisher"} in machine["Tags"]
        found = config["available_node_types"][name]["resources"]
        assert {kind: found[kind] for kind in node["resources"]} == node["resources"]


# --- Google Cloud ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    """Google's own description of Compute Engine."""
    folder = resources.files("googleapiclient") / "discovery_cache" / "documents"
    return json.loads((folder / "compute.v1.json").read_text())["schemas"]


@pytest.mark.parametrize("node", launcher("deploy/gcp.yaml")["available_node_types"])
def test_compute_engine_accepts_the_machine(node: str, schemas: dict[str, dict]) -> None:
    asked = launcher("deploy/gcp.yaml")["available_node_types"][node]["node_config"]
    assert list(_differences(asked, {"$ref": "Instance"}, schemas)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda node: node.update(machinetype="x"), "machinetype: unknown"),
        (lambda node: node["scheduling"].update(provisioningModel="CHEAP"), "CHEAP"),
        (lambda node: node.update(scheduling=[{"preemptible": True}]), "expected an object"),
        (lambda node: node["disks"][0].update(boot="yes"), "expected true or false"),
        (lambda node: node.update(disks=node["disks"][0]), "expected a list"),
    ],
)
def test_compute_engine_would_notice_a_mistake(
    change, message: str, schemas: dict[str, dict]
) -> None:
    node = copy.deepcopy(workers(launcher("deploy/gcp.yaml"))["gpu-l4"]["node_config"])
    change(node)
    [found] = _differences(node, {"$ref": "Instance"}, schemas)
    assert message in found


def test_googles_machines_have_accounts_and_a_network_of_their_own() -> None:
    config = launcher("deploy/gcp.yaml")
    script = (ROOT / "deploy" / "gcp_access.sh").read_text()
    region = config["provider"]["region"]
    assert f"region={region} " in script
    for name, node in config["available_node_types"].items():
        [account] = node["node_config"]["serviceAccounts"]
        role = "video-fisher-head" if name == "head" else "video-fisher"
        assert account["email"] == f"{role}@PROJECT.iam.gserviceaccount.com"
        [card] = node["node_config"]["networkInterfaces"]
        assert card["subnetwork"] == f"projects/PROJECT/regions/{region}/subnetworks/video-fisher"


def test_googles_workers_are_spot_and_have_a_local_disk() -> None:
    config = launcher("deploy/gcp.yaml")
    zone = config["provider"]["availability_zone"]
    head = config["available_node_types"]["head"]["node_config"]
    assert "scheduling" not in head
    for node in workers(config).values():
        asked = node["node_config"]
        assert asked["scheduling"]["provisioningModel"] == "SPOT"
        kinds = [disk["type"] for disk in asked["disks"]]
        assert "SCRATCH" in kinds or asked["machineType"].endswith("-lssd")
        assert asked["machineType"].split("-")[2] == str(node["resources"]["CPU"])
        assert asked["machineType"].startswith("g2-") == ("GPU" in node["resources"])
    for node in config["available_node_types"].values():
        for disk in node["node_config"]["disks"]:
            assert disk["initializeParams"]["diskType"].startswith(f"zones/{zone}/")


# --- helpers --------------------------------------------------------------------------------------


def _machine(node: dict) -> str:
    asked = node["node_config"]
    return asked.get("InstanceType") or asked["machineType"]


def _mistakes(asked: dict, shape) -> str:
    """What botocore and the lists of values in EC2's model object to."""
    report = ParamValidator().validate(asked | {"MinCount": 1, "MaxCount": 1}, shape)
    kind = asked.get("InstanceMarketOptions", {}).get("MarketType", "spot")
    market = shape.members["InstanceMarketOptions"].members["MarketType"].enum
    return " ".join(
        [report.generate_report()]
        + [asked["InstanceType"]]
        * (asked["InstanceType"] not in shape.members["InstanceType"].enum)
        + [kind] * (kind not in market)
    ).strip()


KINDS = {
    "object": (dict, "an object"),
    "array": (list, "a list"),
    "string": (str, "text"),
    "boolean": (bool, "true or false"),
    "integer": (int, "a whole number"),
    "number": (float, "a number"),
}


def _differences(
    value: object, schema: dict, schemas: dict[str, dict], where: str = "node"
) -> Iterator[str]:
    """Where a value is not what a discovery document says."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kind, name = KINDS["integer" if schema.get("format") == "int64" else schema["type"]]
    if not isinstance(value, kind):
        yield f"{where}: expected {name}, got {value!r}"
    elif isinstance(value, dict):
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
        for part, inner in value.items():
            if known := properties.get(part, rest):
                yield from _differences(inner, known, schemas, f"{where}.{part}")
            else:
                yield f"{where}.{part}: unknown"
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _differences(part, schema["items"], schemas, f"{where}[{place}]")
    elif value not in schema.get("enum", [value]):
        yield f"{where}: expected one of {schema['enum']}, got {value!r}"
