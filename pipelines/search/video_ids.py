"""An unknown video_id: those that it may stand for."""

import bisect
import difflib
import posixpath

_NEIGHBOURS = 500
"""Ids before and after the place of an unknown one in which similar ones are looked for."""


def near_id(query: str, video_ids: list[str]) -> str:
    """Return the end of a message about an unknown id: ids with the same file name, and
    with a similar spelling."""
    base = posixpath.basename(query)
    same = [name for name in video_ids if base and posixpath.basename(name) == base]
    ordered = sorted(video_ids)
    index = bisect.bisect(ordered, query)
    pool = ordered[max(0, index - _NEIGHBOURS) : index + _NEIGHBOURS]
    close = difflib.get_close_matches(query, pool, n=3, cutoff=0.5)
    near = list(dict.fromkeys([*sorted(same)[:3], *close]))[:3]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; ids look like {ordered[0]!r}"
