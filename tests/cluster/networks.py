"""Machines with addresses and cables of their own on this one: network namespaces on a bridge.

Every host is a namespace whose one interface ends in a bridge, which has a namespace of its own. A
cable is pulled at the bridge, so nobody is told: what was sent is lost, and answers do not come.
Needs root and `ip` of iproute2. Only what this module made is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Host:
    """A namespace with an address."""

    namespace: str
    address: str
    port: str

    def command(self, *words: str) -> list[str]:
        """The command that runs `words` on this host, as the same process."""
        return ["ip", "netns", "exec", self.namespace, *words]


@dataclass
class Network:
    """A bridge with hosts; `here` is the address of the machine's own leg."""

    name: str
    prefix: str
    hosts: list[Host] = field(default_factory=list)

    @property
    def here(self) -> str:
        return f"{self.prefix}.1"

    @property
    def bridge(self) -> str:
        return f"{self.name}b"

    def add(self) -> Host:
        """One more host, with a cable that works."""
        number = len(self.hosts) + 2
        host = Host(f"{self.name}n{number}", f"{self.prefix}.{number}", f"{self.name}p{number}")
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        inner = ("peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self.bridge, "link", "add", host.port, "type", "veth", *inner)
        _ip("-n", self.bridge, "link", "set", host.port, "master", "br0", "up")
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", device, "up")
        return host

    def pull(self, host: Host) -> None:
        """Pull the cable of a host."""
        _ip("-n", self.bridge, "link", "set", host.port, "down")

    def plug(self, host: Host) -> None:
        """Plug it in again."""
        _ip("-n", self.bridge, "link", "set", host.port, "up")


@contextmanager
def network() -> Iterator[Network]:
    """A network with no host yet; its namespaces are gone when the block is left."""
    number = os.getpid() % 250
    made = Network(f"vf{os.getpid()}", f"10.213.{number}")
    leg = f"{made.name}h"
    _ip("netns", "add", made.bridge)
    try:
        _ip("-n", made.bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", made.bridge, "link", "set", "br0", "up")
        _ip("link", "add", leg, "type", "veth", "peer", "name", "here", "netns", made.bridge)
        _ip("-n", made.bridge, "link", "set", "here", "master", "br0", "up")
        _ip("addr", "add", f"{made.here}/24", "dev", leg)
        _ip("link", "set", leg, "up")
        yield made
    finally:
        # With a namespace go its interfaces and their other ends, but not at once.
        subprocess.run(["ip", "link", "del", leg], check=False, capture_output=True)
        for name in [*(host.namespace for host in made.hosts), made.bridge]:
            subprocess.run(["ip", "netns", "del", name], check=False)


def why_not() -> str:
    """Why networks cannot be made here; empty where they can."""
    if not shutil.which("ip"):
        return "there is no `ip` of iproute2"
    if os.geteuid() != 0:
        return "network namespaces want root"
    try:
        with network() as made:
            made.add()
    except subprocess.CalledProcessError as error:
        return f"this machine allows no network namespaces: {error.stderr.strip()}"
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
