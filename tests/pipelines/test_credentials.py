"""Secrets in URIs: refused where a user gives them, left out wherever text is shown."""

import logging
import pickle
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.credentials import has_credentials, redact
from pipelines.errors import ConfigError, RunError
from pipelines.storage.retries import StorageError
from pipelines.storage.uris import refuse_credentials
from pipelines.video.header import VideoError

ROOT = Path(__file__).parents[2]

WITH_SECRETS = [
    ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
    # The `/` of a secret is not encoded by most who paste it.
    ("s3://AKIAX:sec/ret+secret/a@bucket/x", "s3://***@bucket/x"),
    ("s3://AKIAX:99/secret@bucket/x", "s3://***@bucket/x"),
    ("S3://AKIAX:sec%2Fsecret@bucket", "S3://***@bucket"),
    ("https://secret@host/x", "https://***@host/x"),
    ("https://me:se/secret@host/x", "https://***@host/x"),
    ("https://me:p@secret@host/x", "https://***@host/x"),
    ("sftp://me:secret@h/y", "sftp://***@h/y"),
    (
        "abfs://box:secret@account.dfs.core.windows.net/x",
        "abfs://***@account.dfs.core.windows.net/x",
    ),
    ("ray://me:secret@head:10001", "ray://***@head:10001"),
    ("https://h/x?api_key=secret", "https://h/x?api_key=***"),
    ("https://h/x?apikey=secret&y=1", "https://h/x?apikey=***&y=1"),
    (
        "s3://b/x?AWSAccessKeyId=secret&SecretAccessKey=secret",
        "s3://b/x?AWSAccessKeyId=***&SecretAccessKey=***",
    ),
    ("az://b/x?AccountKey=secret==", "az://b/x?AccountKey=***"),
    ("https://h/x?auth=secret", "https://h/x?auth=***"),
    ("https://h/x#access_token=secret", "https://h/x#access_token=***"),
    ("https://h/x?a=1#id_token=secret&b=2", "https://h/x?a=1#id_token=***&b=2"),
    ("https://a/x?sv=1&SIG=secret%3D&x=y", "https://a/x?sv=1&SIG=***&x=y"),
    ("https://h/x?X-Goog-Signature=secret", "https://h/x?X-Goog-Signature=***"),
    (
        "https://h/x?client-pwd=secret&refresh.token=secret",
        "https://h/x?client-pwd=***&refresh.token=***",
    ),
    ("https://h/x?user_password=secret", "https://h/x?user_password=***"),
]

WITHOUT = [
    "s3://bucket/a:b@c.mp4",
    "s3://bucket/user@example.com/x.mp4",
    "s3://b/keys=1/x?y=z",
    "http://host:9000/bucket/user@example.com.mp4",
    "abfs://container@account.dfs.core.windows.net/x",
    "https://h/x?author=me&monitor=1&keyframe=2&design=3",
    "https://h/watch?v=abc#t=10",
    "ray://head:10001",
]


@pytest.mark.parametrize(("uri", "shown"), WITH_SECRETS)
def test_a_uri_with_a_secret_is_refused_and_shown_without_it(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert has_credentials(uri)
    with pytest.raises(ConfigError, match="expected a URI without credentials") as said:
        refuse_credentials("--videos", uri)
    assert "secret" not in str(said.value)
    assert shown in str(said.value)


@pytest.mark.parametrize("uri", [*WITHOUT, "/a/b:c@d?e=f&key=g", "a & b"])
def test_a_uri_without_secrets_is_taken_and_shown_as_it_is(uri: str) -> None:
    refuse_credentials("--videos", uri)
    if "://" in uri:
        assert redact(uri) == uri


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://h/x?X-Amz-Algorithm=A&X-Amz-Credential=secret&X-Amz-Signature=secret: 403",
            "GET https://h/x?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=*** 403",
        ),
        ("--out s3://b/x --videos sftp://me:secret@h/y", "--out s3://b/x --videos sftp://***@h/y"),
        ("zip://a.mp4::s3://k:se/secret@b/x.zip", "zip://a.mp4::s3://***@b/x.zip"),
        ("['s3://a/x', 's3://k:secret@b/x'] of 2", "['s3://a/x', 's3://***@b/x'] of 2"),
        ("s3://k:secret@a,s3://k:secret@b", "s3://***@a,s3://***@b"),
        (
            "AccountName=me;AccountKey=secret==;EndpointSuffix=core",
            "AccountName=me;AccountKey=***;EndpointSuffix=core",
        ),
    ],
)
def test_secrets_are_left_out_of_longer_texts(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(
    key=st.text(string.ascii_uppercase + string.digits, min_size=4),
    secret=st.text(string.ascii_letters + string.digits + "/+=", min_size=8),
    scheme=st.sampled_from(["s3", "gs", "S3", "s3a"]),
)
def test_no_secret_of_an_object_store_is_ever_shown(key: str, secret: str, scheme: str) -> None:
    text = f"cannot read {scheme}://{key}:{secret}@bucket/video.mp4 (403)"
    assert redact(text) == f"cannot read {scheme}://***@bucket/video.mp4 (403)"


@pytest.mark.parametrize("kind", [ConfigError, RunError, StorageError])
def test_an_error_for_users_leaves_secrets_out_and_travels_between_processes(kind: type) -> None:
    error = kind("--videos s3://k:se/secret@b: no such bucket")
    assert str(error) == "--videos s3://***@b: no such bucket"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_error_of_a_video_leaves_secrets_out() -> None:
    error = VideoError("unreadable", "https://h/x?X-Amz-Signature=secret: 403")
    assert error.message == "https://h/x?X-Amz-Signature=*** 403"
    assert "secret" not in repr(pickle.loads(pickle.dumps(error)))


def test_logs_and_tracebacks_leave_secrets_out() -> None:
    code = (
        "import logging\nfrom pipelines import logs\nlogs.configure()\n"
        "log = logging.getLogger('pipelines.x')\n"
        "log.info('reads %s', 's3://k:secret@b/x')\n"
        "try:\n    raise OSError('https://secret@h/x')\nexcept OSError:\n    log.exception('no')\n"
        "raise ValueError('https://h/x?token=secret')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    shown = done.stderr.replace("https://secret@h/x')\nexcept", "")
    assert "reads s3://***@b/x" in shown
    assert "OSError: https://***@h/x" in shown
    assert "ValueError: https://h/x?token=***" in shown
    assert "secret" not in shown


def test_every_job_refuses_secrets_before_anything_starts(tmp_path: Path) -> None:
    uri = "s3://AKIAX:sec/ret@bucket/x"
    common = ["--steps", "index", "--recipe", "demo"]
    place = ["--videos", str(tmp_path), "--out", str(tmp_path / "out")]
    commands = [
        ["jobs.fcvid_encode", "--videos", uri, "--out", str(tmp_path / "out"), *common],
        ["jobs.fcvid_encode", "--videos", str(tmp_path), "--out", uri, *common],
        ["jobs.fcvid_encode", *place, "--labels", uri, *common],
        ["jobs.fcvid_encode", *place, "--config", uri, *common],
        ["jobs.fcvid_encode", *place, "--set", f"describe.weights={uri}", *common],
        ["jobs.fcvid_encode", *place, "--set", f"plan.prices={uri}", "--plan", *common],
        ["jobs.fcvid_encode", *place, "--address", "ray://AKIAX:sec/ret@h:1", *common],
        ["jobs.doctor", "--out", uri],
        ["jobs.submit", "--address", "http://AKIAX:sec/ret@h:8265", "--", *place],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == 2, (command, said)
        assert "expected a URI without credentials" in said, (command, said)
        assert "sec/ret" not in said
        assert "AKIAX" not in said
        assert len(said.strip().splitlines()) == 1, said


def test_logging_of_other_handlers_is_untouched(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipelines.x"):
        logging.getLogger("pipelines.x").info("plain %s", "s3://bucket/x")
    assert caplog.messages == ["plain s3://bucket/x"]
