"""Planned = done + failed, or an error that names what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import RunError
from pipelines.ledger import settle

names = st.frozensets(st.sampled_from("abcdefgh"))


@given(names, names, names)
def test_planned_is_done_and_failed_or_an_error(
    planned: frozenset[str], done: frozenset[str], failed: frozenset[str]
) -> None:
    missing = planned - done - failed
    if missing:
        with pytest.raises(
            RunError, match=f"{len(missing)} of {len(planned)} planned videos"
        ) as said:
            settle("describe", "videos", planned, done, failed)
        for name in sorted(missing)[:5]:
            assert name in str(said.value)
    else:
        account = settle("describe", "videos", planned, done, failed)
        assert account.planned == account.done + account.failed == len(planned)
        assert account.done == len(planned & done)


def test_it_reads_as_a_sentence() -> None:
    account = settle("index", "videos", {"a", "b", "c"}, {"a", "c", "old"}, {"b"})
    assert str(account) == "3 videos planned = 2 done + 1 failed"
