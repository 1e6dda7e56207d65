"""The one frozen configuration of a run: all sections, what its encoders' names mean, and digests of it.

A wrong value raises ConfigError with the section, what was expected, what was got and what to do. This module imports no
torch and no Ray, so that mistakes show at once.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Self

from encoders.settings import (
    FV_VAE_PRESETS,
    AveSettings,
    BilinearSettings,
    CompressSettings,
    FinetuneSettings,
    FvVaeSettings,
    GmmFvSettings,
    VladSettings,
    check_numbers,
    require,
)
from encoders.stream_specs import LEAST_FLOW_PX, FlowWindow
from pipelines.errors import at_setting
from pipelines.settings.sections import (
    Classify,
    Cluster,
    Decode,
    Describe,
    Encode,
    Evaluate,
    Fit,
    Manifest,
    Picture,
    Plan,
    Run,
    Sampling,
    Split,
)
from pipelines.settings.text import near, parsed, split_entry, split_setting

_OF_ENCODE = ("temporal_pyramid", "normalisation")
"""Fields of section encode that a variant may have a value of its own for."""


@dataclass(frozen=True)
class Variant:
    """One entry of encode.encoders: what is fitted, and what the classifier is given.

    Attributes:
        name: as in encode.encoders; names results.
        base: the registry key.
        codebook: the name without its `compress.*` fields; names codebooks and encodings.
        settings: the encoder's record, None where it has none.
        temporal_pyramid, normalisation: see `Encode`.
        compress: of the finished vectors.
    """

    name: str
    base: str
    codebook: str
    settings: Any
    temporal_pyramid: tuple[int, ...]
    normalisation: str
    compress: CompressSettings

    @property
    def uses_labels(self) -> bool:
        """Whether the codebook depends on labels, and so must be fitted without the test fold."""
        return getattr(self.settings, "uses_labels", False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run is made from except its inputs and its output URI. Its numbers are finite (`check_numbers`)."""

    recipe: str = "fcvid"
    manifest: Manifest = field(default_factory=Manifest)
    split: Split = field(default_factory=Split)
    sampling: Sampling = field(default_factory=Sampling)
    picture: Picture = field(default_factory=Picture)
    decode: Decode = field(default_factory=Decode)
    describe: Describe = field(default_factory=Describe)
    fit: Fit = field(default_factory=Fit)
    ave: AveSettings = field(default_factory=AveSettings)
    vlad: VladSettings = field(default_factory=VladSettings)
    gmm_fv: GmmFvSettings = field(default_factory=GmmFvSettings)
    fv_vae: FvVaeSettings = FV_VAE_PRESETS["paper"]
    bilinear: BilinearSettings = field(default_factory=BilinearSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    encode: Encode = field(default_factory=Encode)
    compress: CompressSettings = field(default_factory=CompressSettings)
    classify: Classify = field(default_factory=Classify)
    evaluate: Evaluate = field(default_factory=Evaluate)
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster)
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        for section, record in vars(self).items():
            if dataclasses.is_dataclass(record):
                check_numbers(section, record)
        for name in self.encode.encoders:
            variant = self.variant(name)
            with at_setting(f"encode.encoders={name}"):
                if variant.settings:
                    check_numbers(variant.base, variant.settings)
                check_numbers("compress", variant.compress)
            used = getattr(variant.settings, "levels", ())
            require(
                set(used) <= set(self.describe.spp_levels),
                f"encode.encoders={name}: {variant.base}.levels",
                f"some of describe.spp_levels {self.describe.spp_levels}",
                used,
            )
        flows = [w for w in self.describe.windows if isinstance(w, FlowWindow)]
        require(
            not flows or self.picture.resize_px >= LEAST_FLOW_PX,
            "picture.resize_px",
            f"at least {LEAST_FLOW_PX} px where describe.streams has flow",
            self.picture.resize_px,
        )
        apart = [w for w in self.describe.windows if not w.is_sampled]
        require(
            not apart or self.sampling.policy != "keyframes",
            "describe.streams",
            "no gap and no flow where sampling.policy is keyframes, which decodes nothing but key frames",
            self.describe.streams,
        )

    def variant(self, name: str) -> Variant:
        """What a name of encode.encoders means: an encoder with settings of its own.

        `base@field=value:field=value` changes fields of the section `base`, lists written with / ; fields
        that begin with `compress.` change that section, `temporal_pyramid` and `normalisation` are those of section `encode`.

        Raises:
            ValueError: malformed, or a field or value that the section does not have.
        """
        base, parts = split_entry(name)
        changes: dict[str, dict[str, object]] = {base: {}, "encode": {}, "compress": {}}
        own = []
        for path, equals, text in parts:
            section, _, field_name = path.rpartition(".")
            changed = section or ("encode" if path in _OF_ENCODE else base)
            record = getattr(self, changed, None)
            with at_setting(f"encode.encoders={name}"):
                if (
                    not equals
                    or section not in ("", "compress")
                    or not dataclasses.is_dataclass(record)
                ):
                    raise ValueError("expected encoder@field=value:field=value")
                changes[changed][field_name] = parsed(record, field_name, text.replace("/", ","))
            if not section:
                own.append(f"{path}={text}")
        settings = getattr(self, base, None)
        encode = dataclasses.replace(self.encode, **changes["encode"])
        return Variant(
            name=name,
            base=base,
            codebook=f"{base}@{':'.join(own)}" if own else base,
            settings=settings and dataclasses.replace(settings, **changes[base]),
            temporal_pyramid=encode.temporal_pyramid,
            normalisation=encode.normalisation,
            compress=dataclasses.replace(self.compress, **changes["compress"]),
        )

    def with_settings(self, settings: list[str]) -> Self:
        """This configuration after `section.field=value` (or fv_vae=PRESET) settings, in their order.

        The values of a section are checked together, so their order does not matter.

        Raises:
            ConfigError: a setting that is malformed, unknown, of the wrong type or out of range.
        """
        sections = [f.name for f in dataclasses.fields(self) if f.name != "recipe"]
        records: dict[str, object] = {}
        changes: dict[str, dict[str, object]] = {}
        for setting in settings:
            with at_setting(setting):
                section, name, text = split_setting(setting)
                if section not in sections:
                    raise ValueError(f"no section {section!r}{near(section, sections)}")
                if not name:
                    records[section], changes[section] = _preset(section, text), {}
                else:
                    value = parsed(getattr(self, section), name, text)
                    changes.setdefault(section, {})[name] = value
        for section, values in changes.items():
            ours = [s for s in settings if s.partition(".")[0].strip() == section]
            with at_setting(" --set ".join(ours)):
                record = records.get(section, getattr(self, section))
                records[section] = dataclasses.replace(record, **values)
        with at_setting(" --set ".join(settings)):
            return dataclasses.replace(self, **records)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for run.json and file footers."""
        return dataclasses.asdict(self)


def digest(*parts: object) -> str:
    """Twelve hex digits that name whatever was made from these JSON-able parts and records."""

    def plain(value: object) -> object:
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)

    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _preset(section: str, text: str) -> FvVaeSettings:
    if section != "fv_vae":
        raise ValueError("expected section.field=value, got no field")
    if text not in FV_VAE_PRESETS:
        raise ValueError(f"expected one of {sorted(FV_VAE_PRESETS)}, got {text!r}")
    return FV_VAE_PRESETS[text]
