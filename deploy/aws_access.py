"""Makes, or with --delete removes, what cluster.yaml names on AWS: two roles and a security group.

    python deploy/aws_access.py --videos BUCKET --runs BUCKET --ssh-from ADDRESS/32

Both roles may list and read the bucket of the videos, and read and write the bucket of the runs
(iam-policy.json); the head may start and end machines of this cluster besides
(iam-head-policy.json). The group lets the machines reach each other, and ssh in from one address.
Its id, the last line printed to stdout, goes into cluster.yaml. Run again, it puts policies and
rules as they are now.
"""

import argparse
import contextlib
import ipaddress
import json
import re
import sys
from pathlib import Path

import boto3
import yaml
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError

ROLES = {
    "video-fisher-worker": ("iam-policy.json",),
    "video-fisher-head": ("iam-policy.json", "iam-head-policy.json"),
}

GROUP = "video-fisher"
"""Name of the security group."""

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def policy(name: str, videos: str, runs: str) -> str:
    """The JSON of a policy of this folder, for these buckets."""
    text = (Path(__file__).parent / name).read_text()
    return text.replace("VIDEOS_BUCKET", videos).replace("RUNS_BUCKET", runs)


def make(iam: BaseClient, videos: str, runs: str) -> None:
    there = iam.exceptions.EntityAlreadyExistsException
    for role, policies in ROLES.items():
        with contextlib.suppress(there):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(TRUST))
        for name in policies:
            iam.put_role_policy(
                RoleName=role,
                PolicyName=name.removesuffix(".json"),
                PolicyDocument=policy(name, videos, runs),
            )
        with contextlib.suppress(there):
            iam.create_instance_profile(InstanceProfileName=role)
        if not iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]["Roles"]:
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    # The first spot machine of an account needs it, and the head may not make it.
    if not iam.list_roles(PathPrefix="/aws-service-role/spot.amazonaws.com/")["Roles"]:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")


def find_group(ec2: BaseClient, vpc: str) -> dict | None:
    """The security group, None before it is made."""
    asked = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    groups = ec2.describe_security_groups(Filters=asked)["SecurityGroups"]
    return groups[0] if groups else None


def default_vpc(ec2: BaseClient) -> str:
    asked = [{"Name": "is-default", "Values": ["true"]}]
    networks = ec2.describe_vpcs(Filters=asked)["Vpcs"]
    if not networks:
        raise SystemExit(
            "expected a default VPC in this region, got none; make one with `aws ec2 "
            "create-default-vpc`, or a group in your own VPC and put its id into cluster.yaml"
        )
    return networks[0]["VpcId"]


def make_group(ec2: BaseClient, ssh_from: str) -> str:
    """Make the security group, or put its rules as they are to be; returns its id."""
    vpc = default_vpc(ec2)
    if not find_group(ec2, vpc):
        ec2.create_security_group(
            GroupName=GROUP, Description="Machines of video-fisher", VpcId=vpc
        )
    group = find_group(ec2, vpc)
    name = group["GroupId"]
    ssh = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": ssh_from, "Description": "ssh"}],
    }
    # Machines that run now keep reaching each other while the rules change.
    inside = [rule for rule in group["IpPermissions"] if _is_inside(rule, name)]
    others = [rule for rule in group["IpPermissions"] if rule not in inside]
    if others:
        ec2.revoke_security_group_ingress(GroupId=name, IpPermissions=others)
    rules = (
        [ssh] if inside else [ssh, {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": name}]}]
    )
    ec2.authorize_security_group_ingress(GroupId=name, IpPermissions=rules)
    return name


def _is_inside(rule: dict, group: str) -> bool:
    """Whether the rule lets in the machines of the group, and nobody else."""
    peers = [peer["GroupId"] for peer in rule.get("UserIdGroupPairs", [])]
    kinds = ("IpRanges", "Ipv6Ranges", "PrefixListIds")
    return rule["IpProtocol"] == "-1" and peers == [group] and not any(map(rule.get, kinds))


def delete_group(ec2: BaseClient) -> None:
    if group := find_group(ec2, default_vpc(ec2)):
        ec2.delete_security_group(GroupId=group["GroupId"])


def delete(iam: BaseClient) -> None:
    gone = iam.exceptions.NoSuchEntityException
    for role, policies in ROLES.items():
        with contextlib.suppress(gone):
            iam.remove_role_from_instance_profile(InstanceProfileName=role, RoleName=role)
        with contextlib.suppress(gone):
            iam.delete_instance_profile(InstanceProfileName=role)
        for name in policies:
            with contextlib.suppress(gone):
                iam.delete_role_policy(RoleName=role, PolicyName=name.removesuffix(".json"))
        with contextlib.suppress(gone):
            iam.delete_role(RoleName=role)


def _bucket(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise argparse.ArgumentTypeError(
            f"expected the name of a bucket, without s3:// and folders, got {name!r}"
        )
    return name


def _addresses(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected addresses such as 203.0.113.7/32, got {text!r} ({error})"
        ) from error
    if network.prefixlen == 0:
        raise argparse.ArgumentTypeError(
            f"expected the addresses that you come from, got {text}, the whole world"
        )
    return text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=_bucket, help="bucket of the videos and labels")
    parser.add_argument("--runs", type=_bucket, help="bucket that --out is in; may be the same")
    parser.add_argument(
        "--ssh-from", type=_addresses, help="address that ssh may come from, such as 203.0.113.7/32"
    )
    parser.add_argument("--delete", action="store_true", help="remove the roles and the group")
    given = parser.parse_args(arguments)
    if not given.delete and not (given.videos and given.runs and given.ssh_from):
        parser.error("expected --videos, --runs and --ssh-from, or --delete")
    cluster = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text())
    try:
        iam, ec2 = boto3.client("iam"), boto3.client("ec2", cluster["provider"]["region"])
        if given.delete:
            delete(iam)
            delete_group(ec2)
        else:
            make(iam, given.videos, given.runs)
            group = make_group(ec2, given.ssh_from)
    except (BotoCoreError, ClientError) as error:
        parser.exit(1, f"{error}; `aws sts get-caller-identity` says who you are for AWS\n")
    names = ", ".join([*ROLES, f"security group {GROUP}"])
    print(f"{'removed' if given.delete else 'ready'}: {names}", file=sys.stderr)
    if not given.delete:
        print(group)


if __name__ == "__main__":
    main()
