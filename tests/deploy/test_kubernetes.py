"""The Kubernetes manifests: against KubeRay's published fields, Kubernetes' own models, and
cluster.yaml."""

import copy
import re

import pytest
from kubernetes.client import models

from tests.deploy.files import (
    KUBERAY,
    ROOT,
    job_settings,
    kuberay,
    launcher,
    network_policy,
    pod,
    ray_cluster,
    workers,
)

# The fields that are used here, of those in https://github.com/ray-project/kuberay:
# docs/reference/api.md
# (helm-chart/kuberay-operator/crds/ as a schema). `authOptions` is there from 1.5.1 on.
CUSTOM = {
    "RayCluster": {
        "apiVersion": "str",
        "kind": "str",
        "metadata": "V1ObjectMeta",
        "spec": "RayClusterSpec",
    },
    "RayJob": {
        "apiVersion": "str",
        "kind": "str",
        "metadata": "V1ObjectMeta",
        "spec": "RayJobSpec",
    },
    "RayJobSpec": {
        "entrypoint": "str",
        "shutdownAfterJobFinishes": "bool",
        "backoffLimit": "int",
        "rayClusterSpec": "RayClusterSpec",
    },
    "RayClusterSpec": {
        "rayVersion": "str",
        "authOptions": "AuthOptions",
        "enableInTreeAutoscaling": "bool",
        "autoscalerOptions": "AutoscalerOptions",
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": "list[WorkerGroupSpec]",
    },
    "AuthOptions": {"mode": "str"},
    "AutoscalerOptions": {"idleTimeoutSeconds": "int", "securityContext": "V1SecurityContext"},
    "HeadGroupSpec": {"rayStartParams": "dict(str, str)", "template": "V1PodTemplateSpec"},
    "WorkerGroupSpec": {
        "groupName": "str",
        "replicas": "int",
        "minReplicas": "int",
        "maxReplicas": "int",
        "rayStartParams": "dict(str, str)",
        "template": "V1PodTemplateSpec",
    },
}

PLAIN = {"str": str, "int": int, "bool": bool, "object": object}

GIB = 2**30


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_and_kuberay_know_every_field(name: str) -> None:
    account, custom = kuberay(name)
    assert list(_differences(account, "V1ServiceAccount")) == []
    assert list(_differences(network_policy(name), "V1NetworkPolicy")) == []
    assert custom["apiVersion"] == "ray.io/v1"
    assert list(_differences(custom, custom["kind"])) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.update(rayversion="2.60.0"), "rayversion: unknown"),
        (lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="9"), "expected int"),
        (lambda spec: pod(spec["headGroupSpec"]).update(resource={}), "resource: unknown"),
        (
            lambda spec: pod(spec["workerGroupSpecs"][2])["resources"]["limits"].update(cpu=15),
            "expected str",
        ),
        (lambda spec: pod(spec["headGroupSpec"]).update(ports={}), "expected a list"),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].update(block=True), "expected str"),
    ],
)
def test_mistakes_would_be_noticed(change, message: str) -> None:
    spec = copy.deepcopy(ray_cluster(KUBERAY[0]))
    change(spec)
    assert message in next(_differences(spec, "RayClusterSpec"))


def groups_with_head(name: str) -> list[dict]:
    spec = ray_cluster(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_no_right_of_the_node(name: str) -> None:
    least = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert ray_cluster(name)["autoscalerOptions"]["securityContext"] == least
    for group in groups_with_head(name):
        assert pod(group)["securityContext"] == least
        user = group["template"]["spec"]["securityContext"]
        assert user["runAsNonRoot"] is True
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
        assert f"--uid {user['runAsUser']} ray" in dockerfile
    for group in ray_cluster(name)["workerGroupSpecs"]:
        # They parse files of strangers.
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", KUBERAY)
def test_nobody_reaches_the_pods_but_their_cluster_and_its_operator(name: str) -> None:
    policy = network_policy(name)["spec"]
    labels = policy["podSelector"]["matchLabels"]
    for group in groups_with_head(name):
        assert group["template"]["metadata"]["labels"] == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    inside, dashboard = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert dashboard["ports"] == [{"port": 8265}]
    assert all("podSelector" in peer for peer in dashboard["from"])
    # Without `to` a rule lets out to everywhere, and then on these ports alone.
    everywhere = [rule["ports"] for rule in policy["egress"] if "to" not in rule]
    assert {port["port"] for ports in everywhere for port in ports} == {53, 443, 6443}


def test_both_manifests_have_the_same_cluster() -> None:
    cluster, job = KUBERAY
    assert ray_cluster(cluster) == ray_cluster(job)
    assert kuberay(cluster)[0] == kuberay(job)[0]
    assert network_policy(cluster) == network_policy(job)


def test_the_shape_is_that_of_the_launcher() -> None:
    spec, config = ray_cluster(KUBERAY[0]), launcher("cluster.yaml")
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * config["idle_timeout_minutes"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = spec["workerGroupSpecs"]
    assert all(g["minReplicas"] == g["replicas"] == 0 for g in groups)
    assert sum(g["maxReplicas"] for g in groups) == config["max_workers"]
    start = config["worker_start_ray_commands"][-1]
    for group in groups:
        held = pod(group)["resources"]
        assert held["limits"] == held["requests"], (
            "Ray counts by limits, Kubernetes places by requests"
        )
        for flag, value in group["rayStartParams"].items():
            assert f"--{flag}={value}" in start
        [mount] = pod(group)["volumeMounts"]
        assert all(v.startswith(mount["mountPath"] + "/") for v in group["rayStartParams"].values())
        # As many nodes of that size and kind as the launcher would start.
        gpus = int(held["limits"].get("nvidia.com/gpu", 0))
        cpus = int(held["limits"]["cpu"]) + 1
        same = [
            t["max_workers"]
            for t in workers(config).values()
            if t["resources"] == {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        ]
        assert group["maxReplicas"] == sum(same)


@pytest.mark.parametrize(("group", "node_gib"), [("decode-16", 32), ("decode-32", 64), ("gpu", 64)])
def test_a_pod_leaves_room_for_what_the_node_needs(group: str, node_gib: int) -> None:
    [found] = [g for g in ray_cluster(KUBERAY[0])["workerGroupSpecs"] if g["groupName"] == group]
    memory = pod(found)["resources"]["limits"]["memory"]
    assert 0.8 <= int(memory.removesuffix("Gi")) / node_gib <= 0.9
    # A process of 900 MiB for each CPU, beside the object store.
    assert 0.7 * int(memory.removesuffix("Gi")) * GIB >= 2**20 * 900 * int(
        pod(found)["resources"]["limits"]["cpu"]
    )


def test_workers_want_spot_nodes_and_only_gpu_pods_may_sit_on_gpu_nodes() -> None:
    for group in ray_cluster(KUBERAY[0])["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        wanted = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        values = {
            rule["key"]: rule["values"]
            for term in wanted["nodeSelectorTerms"]
            for rule in term["matchExpressions"]
        }
        assert values == {
            "eks.amazonaws.com/capacityType": ["SPOT"],
            "karpenter.sh/capacity-type": ["spot"],
            "cloud.google.com/gke-spot": ["true"],
        }
        tolerated = {toleration["key"] for toleration in spec["tolerations"]}
        has_gpu = "nvidia.com/gpu" in pod(group)["resources"]["limits"]
        assert ("nvidia.com/gpu" in tolerated) == has_gpu


def test_the_job_is_told_what_the_cluster_may_grow_to() -> None:
    entrypoint = kuberay("deploy/kuberay-job.yaml")[1]["spec"]["entrypoint"]
    groups = ray_cluster(KUBERAY[0])["workerGroupSpecs"]
    held = [(g["maxReplicas"], pod(g)["resources"]["limits"]) for g in groups]
    assert job_settings(entrypoint) == {
        "cluster.max_cpus": str(sum(n * int(r["cpu"]) for n, r in held)),
        "cluster.max_gpus": str(sum(n * int(r.get("nvidia.com/gpu", 0)) for n, r in held)),
    }


def test_the_image_has_what_the_nodes_of_the_launcher_have() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    script = (ROOT / "deploy" / "setup_node.sh").read_text()
    [python] = re.findall(r"^FROM python:([\d.]+)-slim$", dockerfile, re.MULTILINE)
    assert f"python=python{python}" in script
    assert "--require-hashes -r /opt/video-fisher/requirements.lock" in dockerfile
    for package in ("encoders", "pipelines", "jobs"):
        assert f"COPY {package} /opt/video-fisher/{package}" in dockerfile
    [version] = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert ray_cluster(KUBERAY[0])["rayVersion"] == version


def _differences(value: object, kind: str, where: str = "manifest"):
    """Where a value is not of a kind of CUSTOM or of Kubernetes' own models."""
    if inner := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{where}: expected a list, got {value!r}"
            return
        for place, part in enumerate(value):
            yield from _differences(part, inner[1], f"{where}[{place}]")
    elif inner := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
        for name, part in value.items():
            yield from _differences(part, inner[1], f"{where}.{name}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            yield f"{where}: expected {kind}, got {value!r}"
    else:
        fields = CUSTOM.get(kind) or _fields(kind)
        for name, part in value.items():
            if name in fields:
                yield from _differences(part, fields[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}: unknown"


def _fields(kind: str) -> dict[str, str]:
    model = getattr(models, kind)
    return {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
