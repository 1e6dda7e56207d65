"""The tiny backbones, for the tests of networks alone."""

from collections.abc import Iterator

import pytest

from tests.encoders.networks import tiny


@pytest.fixture(autouse=True, scope="module")
def tiny_backbones() -> Iterator[None]:
    with tiny.added():
        yield
