"""Names of results in words, for people."""

import re

from pipelines.settings.config import EXTERNAL_STREAM

ENCODERS = {
    "ga": "GA",
    "concat": "Concatenation",
    "ave": "AVE",
    "gmm_fv": "GMM-FV",
    "vlad": "VLAD",
    "bilinear": "Bilinear pooling",
    "fv_vae": "FV-VAE",
    "all": "All encoders",
}
"""By the name in SCORES, as the papers write them."""

_KINDS = {
    "appearance": "appearance",
    "positions": "single positions",
    "dense": "every position",
    "global": "whole frames",
    "difference": "differences",
    "rank": "rank pooling",
    "flow": "optical flow",
}
_STREAM = re.compile(rf"(.+)_({'|'.join(_KINDS)})(?:_(.+))?")
_RULES = {
    "given": "scores added",
    "two_stream": "appearance and motion 1 : 1.5",
    "kernel_sum": "kernels added",
    "late_weighted": "weights learned",
}


def result_words(encoder: str, stream: str, rule: str = "") -> str:
    """Return what a result is, such as `VLAD on differences of features_12`.

    Args:
        encoder, stream: as METRICS has them; of a fusion the parts, joined by +.
        rule: how the parts were fused; empty where nothing was.
    """
    encoders = " + ".join(map(_encoder, encoder.split("+")))
    streams = list(dict.fromkeys(stream.split("+")))
    if rule:
        how = _RULES.get(rule, rule)
        if stream == rule:
            return f"{encoders} on every stream ({how})"
        kinds = _all(list(dict.fromkeys(map(_kind, streams))))
        return f"{encoders} on {kinds} ({how})"
    return f"{encoders} on {_all([_stream(name) for name in streams])}"


def _encoder(name: str) -> str:
    base, _, variant = name.partition("@")
    return f"{ENCODERS.get(base, base)}{f' ({variant})' if variant else ''}"


def _kind(name: str) -> str:
    found = _STREAM.fullmatch(name)
    return _KINDS[found[2]] if found else name


def _stream(name: str) -> str:
    if name == EXTERNAL_STREAM:
        return "vectors that were given"
    found = _STREAM.fullmatch(name)
    if not found:
        return name
    node, kind, details = found.groups()
    return f"{_KINDS[kind]} of {node}{f' ({details})' if details else ''}"


def _all(names: list[str]) -> str:
    if len(names) > 3:
        return f"{len(names)} streams"
    return " and ".join(names)
