"""The registry of networks: name -> class. A new network is one file and one line here, and its
record of settings.

No torch until a class is asked for: names are checked with the settings.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from encoders.networks.base import Network

NETWORKS: dict[str, tuple[str, type[NetworkSettings]]] = {
    "tsn": ("encoders.networks.tsn.Tsn", TsnSettings),
    "tdn": ("encoders.networks.tdn.Tdn", TdnSettings),
    "actionflownet": ("encoders.networks.flow.actionflownet.ActionFlowNet", ActionFlowSettings),
    "conv_pooling": ("encoders.networks.over_time.conv_pooling.ConvPooling", PoolingSettings),
    "late_pooling": ("encoders.networks.over_time.late_pooling.LatePooling", PoolingSettings),
    "slow_pooling": ("encoders.networks.over_time.slow_pooling.SlowPooling", WindowSettings),
    "local_pooling": ("encoders.networks.over_time.local_pooling.LocalPooling", WindowSettings),
    "time_conv": ("encoders.networks.over_time.time_conv.TimeConv", TimeConvSettings),
    "googlenet_conv": ("encoders.networks.over_time.googlenet_conv.GoogLeNetConv", PoolingSettings),
    "lstm": ("encoders.networks.over_time.lstm.Lstm", LstmSettings),
}
"""{name: (module.Class, its settings)}, in the order of the documentation."""


def network_class(name: str) -> type[Network]:
    """Return the class of a network."""
    module, _, attribute = NETWORKS[name][0].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
