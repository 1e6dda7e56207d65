"""Makes, or with --delete removes, the two roles that cluster.yaml gives its machines on AWS.

    python deploy/aws_roles.py --videos BUCKET --runs BUCKET

Both may list and read the bucket of the videos, and read and write the bucket of the runs (iam-policy.json); the head
may start and end machines of this cluster besides (iam-head-policy.json). Run again, it puts the policies as they
are now.
"""

import argparse
import contextlib
import json
import re
from pathlib import Path

import boto3
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError

ROLES = {
    "video-fisher-worker": ("iam-policy.json",),
    "video-fisher-head": ("iam-policy.json", "iam-head-policy.json"),
}

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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=_bucket, help="bucket of the videos and labels")
    parser.add_argument("--runs", type=_bucket, help="bucket that --out is in; may be the same")
    parser.add_argument("--delete", action="store_true", help="remove the roles")
    given = parser.parse_args(arguments)
    if not given.delete and not (given.videos and given.runs):
        parser.error("expected --videos and --runs, or --delete")
    try:
        iam = boto3.client("iam")
        if given.delete:
            delete(iam)
        else:
            make(iam, given.videos, given.runs)
    except (BotoCoreError, ClientError) as error:
        parser.exit(1, f"{error}; `aws sts get-caller-identity` says who you are for AWS\n")
    print(f"{'removed' if given.delete else 'ready'}: {', '.join(ROLES)}")


if __name__ == "__main__":
    main()
