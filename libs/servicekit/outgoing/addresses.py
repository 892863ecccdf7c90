"""Which addresses may be connected to: any Admin of any organisation may type a URL.

Three classes: public ones; private ones, which what is the operator's own reaches; and those that
nobody reaches unless the operator names them: this machine, its links, and what is reserved. An
IPv6 address that stands for an IPv4 address is that address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


FORBIDDEN: Final = "ADDRESS_REFUSED"


class NotConnectedError(Exception):
    """There is no connection; `reason` is UPPER_SNAKE, `FORBIDDEN` where the rules refuse it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reach(Enum):
    """Who may connect to an address, the widest first."""

    PUBLIC = "public"
    PRIVATE = "private"
    NEVER = "never"


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


_PRIVATE: Final = _networks(
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"
)
_NEVER: Final = _networks(
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24",
    "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
    "240.0.0.0/4",
    # Where clouds answer their machines.
    "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::/32", "fd20:ce::/32",
    "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16",
)  # fmt: skip
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
_TRUSTED_PORTS: Final = frozenset({80, 443, 514, 601, 6514})
_FIRST_FREE_PORT: Final = 1024


def meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or address in _TRANSLATED:
        return low
    if address in _COMPATIBLE and int(address) > 1:
        return low
    return address


def _tunnelled(address: Address) -> IPv4Address | None:
    """The IPv4 address that an ISATAP address ends with: its network counts, too."""
    if isinstance(address, IPv6Address) and (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def reach(address: Address) -> Reach:
    """Who may connect to an address."""
    found = meant(address)
    inside = _tunnelled(found)
    if inside is not None:
        return max(_reach(found), _reach(inside), key=list(Reach).index)
    return _reach(found)


def _reach(found: Address) -> Reach:
    if any(found in network for network in _NEVER):
        return Reach.NEVER
    if any(found in network for network in _PRIVATE):
        return Reach.PRIVATE
    if isinstance(found, IPv6Address) and found not in _GLOBAL_IPV6:
        return Reach.NEVER
    return Reach.PUBLIC


@dataclass(frozen=True, slots=True)
class Named:
    """What the operator allows by name: a host or a network, with a port."""

    host: str
    network: Network | None
    port: int

    @classmethod
    def read(cls, text: str) -> Named:
        """Reads `HOST:PORT`, `CIDR:PORT` or `[IPV6-CIDR]:PORT`.

        Raises:
            ValueError: it is none of them.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{text!r}: must be HOST:PORT, CIDR:PORT or [CIDR]:PORT")
        host = host.removeprefix("[").removesuffix("]").lower()
        try:
            return cls("", ipaddress.ip_network(host, strict=False), int(port))
        except ValueError:
            if not host or "/" in host or ":" in host:
                raise ValueError(f"{text!r}: must name a host or a network") from None
            return cls(host, None, int(port))


def read_allowed(text: str) -> tuple[Named, ...]:
    """Reads a list with commas.

    Raises:
        ValueError: as `Named.read`.
    """
    return tuple(Named.read(part) for part in text.split(",") if part.strip())


def read_denied(text: str) -> tuple[Network, ...]:
    """Reads networks with commas.

    Raises:
        ValueError: one is no network.
    """
    return tuple(
        ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip()
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be connected to, by the operator's settings."""

    private: Literal["root", "all", "none"] = "root"
    allowed: Sequence[Named] = ()
    denied: Sequence[Network] = ()
    deny_setting: str = ""
    """The setting that `denied` comes from, for messages."""
    ports: frozenset[int] = _TRUSTED_PORTS
    """Those below 1024 that are connected to."""

    def names_host(self, host: str, port: int) -> bool:
        """Whether the operator allows a host by its name."""
        return any(n.host and n.host == host.lower() and n.port == port for n in self.allowed)

    def refusal(self, address: Address, port: int, *, root: bool, plain_http: bool) -> str:
        """Why an address is not connected to; empty when it is.

        Args:
            address: what a name was resolved to.
            port: the port.
            root: whether the root tenant asks, which is the operator.
            plain_http: whether what is sent could be read on the way.
        """
        found = meant(address)
        # A network of the operator speaks of the address as it is written, and as it is meant.
        if any(
            n.network is not None
            and n.port == port
            and (address in n.network or found in n.network)
            for n in self.allowed
        ):
            return ""
        named = {address, found, _tunnelled(found) or found}
        if any(one in network for network in self.denied for one in named):
            return f"its address is denied by {self.deny_setting}"
        reached = reach(address)
        if reached is Reach.NEVER:
            return "its address is this machine's, a link's or reserved"
        if port < _FIRST_FREE_PORT and port not in self.ports:
            return f"port {port} is not one of {', '.join(map(str, sorted(self.ports)))}"
        if reached is Reach.PRIVATE:
            if self.private == "all" or (self.private == "root" and root):
                return ""
            return "its address is private"
        return "http:// is only for private addresses" if plain_http else ""
