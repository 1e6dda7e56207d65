"""The frozen configuration of a run: its sections, the meaning of encoders' names, and digests.

A wrong value is a ValueError that says which field, what was expected and what was got;
`with_settings` makes it the user's ConfigError. No torch and no Ray here, so that mistakes show at
once.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from encoders.fields import require, said
from encoders.networks.registry import NETWORKS
from encoders.networks.settings import (
    ActionFlowSettings,
    LstmSettings,
    NetworkSettings,
    PoolingSettings,
    TdnSettings,
    TimeConvSettings,
    TsnSettings,
    WindowSettings,
)
from encoders.registry import ENCODERS
from encoders.settings import (
    FV_VAE_PRESETS,
    AveSettings,
    BilinearSettings,
    CompressSettings,
    EncoderSettings,
    FinetuneSettings,
    FvVaeSettings,
    GmmFvSettings,
    VladSettings,
)
from encoders.stream_specs import LEAST_FLOW_PX, FlowWindow
from pipelines.errors import at_setting, near
from pipelines.settings.sections import (
    Classify,
    Cluster,
    Decode,
    Describe,
    Encode,
    Evaluate,
    Fit,
    Manifest,
    Network,
    Picture,
    Plan,
    Run,
    Sampling,
    Split,
    Track,
)
from pipelines.settings.text import changed, parsed, split_entry, split_setting

_OF_ENCODE = ("temporal_pyramid", "normalisation")
"""Fields of section encode that a variant may have a value of its own for."""


EXTERNAL, EXTERNAL_STREAM = "external", "external_global"
"""In place of the registry key and the stream of vectors that were given (encode.external)."""

AUTO_ENCODERS = ("auto",)
"""In place of encode.encoders: chosen by the number of videos, `pipelines.settings.recipes.sized`.
"""


@dataclass(frozen=True)
class Variant:
    """An entry of encode.encoders: the codebook that is fitted, and the vector for the classifier.

    Attributes:
        name: as in encode.encoders; names results.
        base: the registry key.
        codebook: the name without its `compress.*` fields; names codebooks and encodings.
        settings: the encoder's record.
        temporal_pyramid, normalisation: see `Encode`.
        compress: of the finished vectors.
    """

    name: str
    base: str
    codebook: str
    settings: EncoderSettings
    temporal_pyramid: tuple[int, ...]
    normalisation: str
    compress: CompressSettings

    @property
    def uses_labels(self) -> bool:
        """Return whether the codebook depends on labels, and so must be fitted without the test
        fold.
        """
        return self.settings.uses_labels


@dataclass(frozen=True)
class NetworkVariant:
    """An entry of network.networks: its name, the registry key, and the network's record."""

    name: str
    base: str
    settings: NetworkSettings


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run, without its inputs and its output URI; every field is checked."""

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
    network: Network = field(default_factory=Network)
    tsn: TsnSettings = field(default_factory=TsnSettings)
    tdn: TdnSettings = field(default_factory=TdnSettings)
    actionflownet: ActionFlowSettings = field(default_factory=ActionFlowSettings)
    conv_pooling: PoolingSettings = field(default_factory=PoolingSettings)
    late_pooling: PoolingSettings = field(default_factory=PoolingSettings)
    slow_pooling: WindowSettings = field(default_factory=WindowSettings)
    local_pooling: WindowSettings = field(default_factory=WindowSettings)
    time_conv: TimeConvSettings = field(default_factory=TimeConvSettings)
    googlenet_conv: PoolingSettings = field(default_factory=PoolingSettings)
    lstm: LstmSettings = field(default_factory=LstmSettings)
    classify: Classify = field(default_factory=Classify)
    evaluate: Evaluate = field(default_factory=Evaluate)
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster)
    plan: Plan = field(default_factory=Plan)
    track: Track = field(default_factory=Track)

    def __post_init__(self) -> None:
        for section in self.sections():
            # The records of encoders do not check themselves.
            changed(getattr(self, section), section, {})
        for name in () if self.encode.encoders == AUTO_ENCODERS else self.encode.encoders:
            variant = self.variant(name)
            require(
                set(variant.settings.levels) <= set(self.describe.spp_levels),
                f"encode.encoders: {name}: {variant.base}.levels",
                f"some of describe.spp_levels {self.describe.spp_levels}",
                variant.settings.levels,
            )
        for name in self.external:
            require(
                name not in (*ENCODERS, *self.encode.encoders, *NETWORKS),
                "encode.external",
                "names that no encoder or network has",
                name,
            )
        for name in self.network.networks:
            self.network_variant(name)
        flows = [w for w in self.describe.windows if isinstance(w, FlowWindow)]
        require(
            not flows or self.picture.resize_px >= LEAST_FLOW_PX,
            "picture.resize_px",
            f"at least {LEAST_FLOW_PX} px where describe.streams has flow",
            self.picture.resize_px,
        )
        require(
            not flows or not self.picture.scales,
            "picture.scales",
            "none where describe.streams has flow",
            self.picture.scales,
        )
        apart = [w for w in self.describe.windows if not w.is_sampled]
        require(
            not apart or self.sampling.policy != "keyframes",
            "describe.streams",
            "no gap and no flow where sampling.policy is keyframes, which decodes nothing but key "
            "frames",
            self.describe.streams,
        )

    @classmethod
    def sections(cls) -> list[str]:
        """Return the names of the sections."""
        return [f.name for f in dataclasses.fields(cls) if f.name != "recipe"]

    @property
    def external(self) -> dict[str, str]:
        """Return {name: URI} of encode.external."""
        return {name: uri for name, _, uri in (e.partition(":") for e in self.encode.external)}

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Return the entries of encode.encoders, and the names of encode.external."""
        return (*self.encode.encoders, *self.external)

    def variant(self, name: str) -> Variant:
        """Return the meaning of a name in encode.encoders: an encoder with settings of its own.

        `base@field=value:field=value` changes fields of the section `base`, lists written with / ;
        fields that begin with `compress.` change that section, `temporal_pyramid` and
        `normalisation` are those of section `encode`.

        Raises:
            ValueError: no such encoder, malformed, or a field or value that the section does not
                have.
        """
        if name in self.external:
            given = EncoderSettings()
            return Variant(name, EXTERNAL, name, given, (1,), "none", self.compress)
        base, parts = split_entry(name)
        if base not in ENCODERS:
            raise ValueError(
                f"encode.encoders: expected some of {sorted(ENCODERS)}, got {base!r}"
                f"{near(base, ENCODERS, '')}"
            )
        defaults = getattr(self, base) if base in self.sections() else EncoderSettings()
        records = {base: defaults, "encode": self.encode, "compress": self.compress}
        changes: dict[str, dict[str, object]] = {section: {} for section in records}
        fitted = []
        try:
            for path, equals, text in parts:
                section, _, field_name = path.rpartition(".")
                if not equals or section not in ("", "compress"):
                    raise ValueError("expected encoder@field=value:field=value")
                section = section or ("encode" if path in _OF_ENCODE else base)
                value = parsed(records[section], section, field_name, text.replace("/", ","))
                changes[section][field_name] = value
                if section != "compress":
                    fitted.append(f"{path}={text}")
            updated = {
                name: changed(records[name], name, values) for name, values in changes.items()
            }
        except ValueError as error:
            raise ValueError(f"encode.encoders: {name}: {error}") from error
        return Variant(
            name=name,
            base=base,
            codebook=f"{base}@{':'.join(fitted)}" if fitted else base,
            settings=updated[base],
            temporal_pyramid=updated["encode"].temporal_pyramid,
            normalisation=updated["encode"].normalisation,
            compress=updated["compress"],
        )

    def network_variant(self, name: str) -> NetworkVariant:
        """Return the meaning of a name in network.networks: `base@field=value:field=value`.

        Raises:
            ValueError: no such network, malformed, or a field or value that it does not have.
        """
        base, parts = split_entry(name)
        if base not in NETWORKS:
            raise ValueError(
                f"network.networks: expected some of {sorted(NETWORKS)}, got {base!r}"
                f"{near(base, NETWORKS, '')}"
            )
        record, values = getattr(self, base), {}
        if self.network.width and hasattr(record, "width"):
            values["width"] = self.network.width
        try:
            for field_name, equals, text in parts:
                if not equals:
                    raise ValueError("expected network@field=value:field=value")
                # A path keeps its slashes.
                is_text = isinstance(getattr(record, field_name, None), str)
                given = text if is_text else text.replace("/", ",")
                values[field_name] = parsed(record, base, field_name, given)
            return NetworkVariant(name, base, changed(record, base, values))
        except ValueError as error:
            raise ValueError(f"network.networks: {name}: {error}") from error

    @property
    def networks(self) -> list[NetworkSettings]:
        """Return the settings of each network of network.networks."""
        return [self.network_variant(name).settings for name in self.network.networks]

    @property
    def run_frames(self) -> int:
        """Return how many consecutive frames are kept together of a video, for networks of all
        kinds: a frame of a longer run is one too."""
        return max((settings.run_frames for settings in self.networks), default=1)

    @property
    def learns_flow(self) -> bool:
        """Return whether a network learns the flow between these frames."""
        return any(settings.learns_flow for settings in self.networks)

    def with_settings(self, settings: Sequence[str]) -> Self:
        """Return this configuration after `section.field=value` (or fv_vae=PRESET) settings, in
        their order.

        The values of a section are checked together, so their order does not matter.

        Raises:
            ConfigError: a setting that is malformed, unknown, of the wrong type or out of range.
        """
        records: dict[str, Any] = {}
        changes: dict[str, dict[str, object]] = {}
        for setting in settings:
            with at_setting(setting):
                section, name, text = split_setting(setting)
                record = self._section(section)
                if name:
                    changes.setdefault(section, {})[name] = parsed(record, section, name, text)
                else:
                    records[section], changes[section] = _preset(section, text), {}
        for section, values in changes.items():
            ours = [s for s in settings if s.partition(".")[0].strip() == section]
            with at_setting(" --set ".join(ours)):
                record = records.get(section, getattr(self, section))
                records[section] = changed(record, section, values)
        with at_setting(" --set ".join(settings)):
            return dataclasses.replace(self, **records)

    def with_values(self, plain: Mapping[str, Any]) -> Self:
        """Return this configuration with the values of {section: {field: value}}, as `to_json`
        gives them; of fv_vae a preset's name may stand for all its fields.

        Raises:
            ValueError: a section, field or value that this version does not know, or that is out of
                range.
        """
        records: dict[str, Any] = {}
        for section, values in plain.items():
            record = self._section(section)
            if isinstance(values, str):
                records[section] = _preset(section, values)
            elif isinstance(values, Mapping):
                records[section] = changed(record, section, values)
            else:
                raise ValueError(f"{section}: expected fields and their values, got {values!r}")
        return dataclasses.replace(self, **records)

    def _section(self, name: str) -> Any:
        if name not in self.sections():
            raise ValueError(f"no section {name!r}{near(name, self.sections())}")
        return getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for run.json, file footers and digests.

        Sections of networks that are not asked for say nothing: they are left out, as in runs of
        before.
        """
        plain = dataclasses.asdict(self)
        used = {split_entry(name)[0] for name in self.network.networks}
        for section in NETWORKS.keys() - used:
            del plain[section]
        if not used:
            del plain["network"]
        return plain


WENT = {
    ("evaluate", "fusions"): {"chosen"},
    ("classify", "fusions"): {"early", "kernel_weighted", "kernel_selected", "calibrated"},
}
"""{(section, field): values of a list that earlier versions knew}: rules of fusing that were no
better (docs/fusion.md).
"""


def without_what_went(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration in a run.json of any version, without the values in WENT."""
    result = {name: dict(v) if isinstance(v, Mapping) else v for name, v in plain.items()}
    for (section, name), values in WENT.items():
        record = result.get(section)
        if isinstance(record, dict) and isinstance(record.get(name), list):
            record[name] = [value for value in record[name] if value not in values]
    return result


def config_from_json(plain: dict[str, Any]) -> Config:
    """Return the configuration that `Config.to_json` wrote.

    A field that an older version did not write has its default.

    Raises:
        ValueError: a section, field or value that this version does not know.
    """
    known = without_what_went(plain)
    sections = {name: values for name, values in known.items() if name != "recipe"}
    return Config(recipe=plain["recipe"]).with_values(sections)


def digest(*parts: object) -> str:
    """Return twelve hex digits that name the product of these JSON-able parts and records."""

    def plain(value: Any) -> object:
        if isinstance(value, Config):
            # A setting that came later, and is not used, is none of a configuration of before.
            return {
                name: {field.name: values[field.name] for field in said(getattr(value, name))}
                if isinstance(values, dict)
                else values
                for name, values in value.to_json().items()
            }
        is_record = hasattr(value, "__dataclass_fields__")
        return {f.name: getattr(value, f.name) for f in said(value)} if is_record else str(value)

    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _preset(section: str, text: str) -> FvVaeSettings:
    if section != "fv_vae":
        raise ValueError("expected section.field=value, got no field")
    if text not in FV_VAE_PRESETS:
        raise ValueError(
            f"fv_vae: expected one of {sorted(FV_VAE_PRESETS)}, got "
            f"{text!r}{near(text, FV_VAE_PRESETS, '')}"
        )
    return FV_VAE_PRESETS[text]
