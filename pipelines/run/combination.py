"""Combinations of encoders and streams, and the rule of each: results that classifiers of their
own, or scores that were held out, are made for (encoders/svm/kernel_sum.py,
encoders/svm/inner_folds.py).

Needs neither Ray nor torch, so that the doctor knows a run's combinations too.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from encoders.stream_specs import is_local
from pipelines.errors import ConfigError
from pipelines.run.versions import WEIGHTING
from pipelines.settings.sections import Classify

DEFAULT_RULE = "late_weighted"
"""Meaning of `auto` where there is a Gram matrix."""


def sums_kernels(rule: str) -> bool:
    """Return whether a rule trains SVMs on a sum of kernels; the others fuse the scores of the
    parts.
    """
    return rule == "kernel_sum"


def chooses(rule: str) -> bool:
    """Return whether a rule chooses something for each fold, by scores of held-out training
    videos.
    """
    return rule == "late_weighted"


def version(rule: str) -> int:
    """Return the mark that tells a rule's results from those of an earlier version."""
    return WEIGHTING if rule == "late_weighted" else 1


@dataclass(frozen=True)
class Combination:
    """A fused result.

    In SCORES and METRICS `encoder` is the encoder or the name of the group, `stream` the rule.

    Attributes:
        parts: (encoder, stream) of the results that are fused, in their order.
    """

    encoder: str
    stream: str
    parts: tuple[tuple[str, str], ...]

    @property
    def pair(self) -> tuple[str, str]:
        return self.encoder, self.stream


def combinations(
    pairs: Sequence[tuple[str, str]],
    settings: Classify,
    *,
    on_gram: bool = True,
) -> tuple[Combination, ...]:
    """Return every combination that the settings name, group by group; none of fewer than two
    parts.

    Args:
        pairs: (encoder, stream) of all single results. Those of local descriptors are in the groups
            `encoders` and `all`.
        on_gram: whether SVMs are solved on Gram matrices, without which the rule `auto` fuses
            nothing.

    Raises:
        ConfigError: a group has the name of an encoder, or fewer than two results.
    """
    rules = settings.fusions
    if rules == ("auto",):
        rules = (DEFAULT_RULE,) if on_gram else ()
    if not rules:
        return ()
    local = tuple(pair for pair in pairs if is_local(pair[1]))
    encoders = list(dict.fromkeys(encoder for encoder, _ in local))
    groups: dict[str, tuple[tuple[str, str], ...]] = {}
    for group in settings.fusion_groups:
        name, _, patterns = group.partition("=")
        if group == "encoders":
            groups |= {e: tuple(pair for pair in local if pair[0] == e) for e in encoders}
        elif group == "all":
            groups["all"] = local if len(encoders) > 1 else ()
        else:
            globs = patterns.split("+")
            groups[name] = tuple(
                pair
                for pair in pairs
                if any(fnmatch.fnmatchcase("-".join(pair), pattern) for pattern in globs)
            )
            if len(groups[name]) < 2 or name in {encoder for encoder, _ in pairs}:
                results = ", ".join("-".join(pair) for pair in pairs)
                raise ConfigError(
                    f"classify.fusion_groups={group}: expected a name that no encoder has, and "
                    f"patterns of two results or more; there are {results}"
                )
    return tuple(
        Combination(name, rule, parts)
        for name, parts in groups.items()
        if len(parts) > 1
        for rule in rules
    )
