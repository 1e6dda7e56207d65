"""A setting that came later leaves the digests of runs of before as they are."""

from dataclasses import dataclass

from encoders.fields import Changes, Record, digested, setting
from pipelines.settings.config import Config, digest


@dataclass(frozen=True, kw_only=True)
class Before(Record):
    kept: int = setting(3, "There from the start.")
    vectors: int = setting(1, "Of the vectors.", Changes.VECTORS)


@dataclass(frozen=True, kw_only=True)
class After(Before):
    later: str = setting("", "Came when there were runs.", added=True)
    late_vectors: int = setting(0, "The same, of the vectors.", Changes.VECTORS, added=True)


def test_an_added_setting_is_in_a_digest_only_where_it_is_used() -> None:
    assert digested(After()) == digested(Before()) == {"kept": 3}
    assert digested(After(), Changes.VECTORS) == digested(Before(), Changes.VECTORS)
    assert digest([After()]) == digest([Before()])
    used = After(later="x", late_vectors=2)
    assert digested(used) == {"kept": 3, "later": "x"}
    assert digested(used, Changes.VECTORS)["late_vectors"] == 2
    assert digest([used]) != digest([Before()])


def test_a_setting_of_the_start_is_in_a_digest_also_at_its_default() -> None:
    assert digested(Before(kept=4)) == {"kept": 4}
    assert "views" in digested(Config().picture)
