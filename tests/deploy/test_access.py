"""The roles on AWS: a run and the launcher can do what they need to, and no more, on a simulated
AWS that enforces policies."""

import json
import runpy
from collections.abc import Iterator

import boto3
import pyarrow.fs
import pytest
from botocore.exceptions import ClientError
from moto.core.authorization import enable_iam_authentication as enforced
from moto.iam.access_control import IAMRequestBase
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from pipelines.storage.store import Store
from tests.deploy.files import ROOT, launcher

ROLES = runpy.run_path(str(ROOT / "deploy" / "aws_access.py"))

HEAD, WORKER = "video-fisher-head", "video-fisher-worker"

DENIED = r"AccessDenied|UnauthorizedOperation"


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """A server of its own with three buckets and the roles; gives its address."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _serve(patch)


def _serve(patch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    # The simulation computes signatures for another host than its server's.
    patch.setattr(IAMRequestBase, "check_signature", lambda _: None)
    patch.setattr(boto3, "DEFAULT_SESSION", None)
    for bucket in ("my-videos", "my-runs", "of-others"):
        boto3.client("s3").create_bucket(Bucket=bucket)
        boto3.client("s3").put_object(Bucket=bucket, Key="a.mp4", Body=b"a")
    make()
    yield address
    ROLES["main"](["--delete"])
    server.stop()


@pytest.fixture(autouse=True)
def fresh_clients() -> Iterator[None]:
    """fsspec keeps a client for each kind of storage, with the address and credentials it was made
    with."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


def make() -> None:
    ROLES["main"](["--videos", "my-videos", "--runs", "my-runs", "--ssh-from", "203.0.113.7/32"])


def become(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the environment has the rights of a role."""
    given = boto3.client("sts").assume_role(
        RoleArn=f"arn:aws:iam::123456789012:role/{role}", RoleSessionName="trial"
    )["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", given["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", given["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", given["SessionToken"])
    # It keeps the credentials that it was made with.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.mark.parametrize("role", [HEAD, WORKER])
def test_a_run_can_do_its_work(role: str, aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    become(role, monkeypatch)
    with enforced():
        videos, runs = Store("s3://my-videos"), Store("s3://my-runs/fcvid")
        assert videos.read("a.mp4") == b"a"
        runs.create("run.lock", b"mine")
        runs.publish("tables/a.parquet", b"12345")
        runs.publish("tables/b.parquet", b"")
        assert runs.read_range("tables/a.parquet", 1, 3) == b"23"
        assert runs.files("tables") == ["tables/a.parquet", "tables/b.parquet"]
        # Not a folder: the simulation asks for the right to delete the bucket's name, S3 each
        # file's.
        runs.delete("run.lock")
        assert not runs.exists("run.lock")
        # As Ray Train keeps its checkpoints. It makes a folder before, which asks whether the
        # bucket is there: with the right to list it for S3, with one that S3 does not have for the
        # simulation.
        arrow = pyarrow.fs.S3FileSystem(endpoint_override=aws, region="us-east-1")
        with arrow.open_output_stream("my-runs/fcvid/train/x/checkpoint") as file:
            file.write(bytes(12 * 2**20))  # more than one part
        arrow.delete_file("my-runs/fcvid/train/x/checkpoint")


@pytest.mark.parametrize(
    ("service", "action", "arguments"),
    [
        ("s3", "put_object", {"Bucket": "my-videos", "Key": "b", "Body": b""}),
        ("s3", "delete_object", {"Bucket": "my-videos", "Key": "a.mp4"}),
        ("s3", "get_object", {"Bucket": "of-others", "Key": "a.mp4"}),
        ("s3", "list_objects_v2", {"Bucket": "of-others"}),
        ("s3", "create_bucket", {"Bucket": "my-own"}),
        ("s3", "delete_bucket", {"Bucket": "my-runs"}),
        ("ec2", "describe_instances", {}),
        ("ec2", "run_instances", {"MinCount": 1, "MaxCount": 1, "ImageId": "ami-1"}),
        ("iam", "list_roles", {}),
    ],
)
def test_a_worker_can_do_no_more(
    service: str, action: str, arguments: dict, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(WORKER, monkeypatch)
    with enforced(), pytest.raises(ClientError, match=DENIED):
        getattr(boto3.client(service), action)(**arguments)


def test_the_head_starts_and_sees_machines(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    become(HEAD, monkeypatch)
    with enforced():
        ec2 = boto3.client("ec2")
        ec2.run_instances(MinCount=1, MaxCount=1, ImageId="ami-1", InstanceType="c6id.4xlarge")
        assert ec2.describe_instances()["Reservations"]
        with pytest.raises(ClientError, match=DENIED):
            ec2.delete_security_group(GroupId="sg-1")


def test_the_machines_get_these_roles(aws: str) -> None:
    make()  # again, over what is there
    for name, node in launcher("cluster.yaml")["available_node_types"].items():
        profile = node["node_config"]["IamInstanceProfile"]["Name"]
        assert profile == (HEAD if name == "head" else WORKER)
        found = boto3.client("iam").get_instance_profile(InstanceProfileName=profile)
        assert [role["RoleName"] for role in found["InstanceProfile"]["Roles"]] == [profile]


def test_the_head_ends_machines_of_this_cluster_alone() -> None:
    """Conditions, which the simulation does not look at."""
    policy = json.loads(ROLES["policy"]("iam-head-policy.json", "my-videos", "my-runs"))
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    own = statements["RenameAndEndOwnNodes"]
    assert "ec2:TerminateInstances" in own["Action"]
    name = launcher("cluster.yaml")["cluster_name"]
    assert own["Condition"]["StringEquals"] == {"ec2:ResourceTag/ray-cluster-name": name}
    assert statements["GiveNodesTheirRole"]["Resource"].endswith(f":role/{WORKER}")
    image = launcher("cluster.yaml")["available_node_types"]["head"]["node_config"]["ImageId"]
    prefix = statements["FindTheImage"]["Resource"].partition(":parameter")[2].removesuffix("*")
    assert image.startswith(f"resolve:ssm:{prefix}")


def test_ssh_comes_from_one_address_and_machines_reach_each_other(
    aws: str, capsys: pytest.CaptureFixture
) -> None:
    ec2 = boto3.client("ec2", "us-east-1")
    make()
    group = capsys.readouterr().out.strip()
    # As the launcher's own group would be.
    world = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[world])
    make()  # again: the rules are put as they are to be
    assert capsys.readouterr().out.strip() == group
    [found] = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    inside, ssh = sorted(found["IpPermissions"], key=lambda rule: rule["IpProtocol"])
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group]
    assert inside["IpRanges"] == []
    assert [r["CidrIp"] for r in ssh["IpRanges"]] == ["203.0.113.7/32"]
    assert (ssh["FromPort"], ssh["ToPort"]) == (22, 22)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "v-v"], "expected --videos, --runs and --ssh-from, or --delete"),
        (["--ssh-from", "0.0.0.0/0"], "got 0.0.0.0/0, the whole world"),
        (["--ssh-from", "here"], "expected addresses such as 203.0.113.7/32, got 'here'"),
        (["--videos", "s3://v/x", "--runs", "r"], "without s3:// and folders, got 's3://v/x'"),
    ],
)
def test_wrong_flags_are_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        ROLES["main"](arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_no_rights_is_one_message(aws: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    become(WORKER, monkeypatch)
    with enforced(), pytest.raises(SystemExit) as stopped:
        make()
    assert stopped.value.code == 1
    assert "aws sts get-caller-identity" in capsys.readouterr().err
