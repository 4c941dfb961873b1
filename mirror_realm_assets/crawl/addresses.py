"""Which addresses a crawler may connect to: those of the public internet, and hosts that a source names itself.

What belongs here: the verdict about one address. What does not: connecting. Names prove nothing, because they can mean
another address the next moment; so whoever connects asks about the address that the socket is really connected to, at
each attempt and redirect.

An address is public only if all that it stands for is: an IPv6 address may carry an IPv4 address inside, which a
gateway or tunnel takes out again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from mirror_realm_assets.errors import Failed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Reserved ranges that `ipaddress` of Python 3.11 takes for global, with the document that reserves them.
_MORE_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "192.0.0.0/24",  # RFC 6890, protocol assignments
            "192.88.99.0/24",  # RFC 7526, the former anycast of 6to4
            "100.64.0.0/10",  # RFC 6598, carriers' NAT
            "168.63.129.16/32",  # a cloud's own services, reached from every machine in it
        ),
    )
)
_MORE_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "64:ff9b:1::/48",  # RFC 8215, a network's own NAT64
            "fec0::/10",  # RFC 3879, site-local
            "100::/64",  # RFC 6666, discard
            "2001::/23",  # RFC 2928, protocol assignments
            "3fff::/20",  # RFC 9637, documentation
            "5f00::/16",  # RFC 9602, segment routing
        ),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def is_public(address: str | Address) -> bool:
    """Whether an address is on the public internet, with every address that it carries.

    Args:
        address: as a socket tells it; an IPv6 zone (`%eth0`) makes it local.

    Raises:
        ValueError: for what is no address in its canonical form (`127.1`, `0x7f000001` and the like are none).
    """
    if isinstance(address, str):
        if "%" in address:
            return False
        address = ipaddress.ip_address(address)
    within = _within(address)
    if within is not None:
        return _is_global(within)
    tunnelled = address.sixtofour if isinstance(address, ipaddress.IPv6Address) else None
    return _is_global(address) and (tunnelled is None or _is_global(tunnelled))


def require_allowed(address: str, host: str, allowed_hosts: Iterable[str] = ()) -> None:
    """Refuse an address that a crawler may not be connected to.

    Args:
        address: of the peer.
        host: by which it was asked for.
        allowed_hosts: names and addresses that the source lists as internal and means.

    Raises:
        Failed: `address_refused`.
    """
    if host.lower().rstrip(".") in {one.lower().rstrip(".") for one in allowed_hosts}:
        return
    try:
        public = is_public(address)
    except ValueError:
        public = False
    if not public:
        raise Failed("address_refused", f"{host} is at {address}, which is no public address.")


def _is_global(address: Address) -> bool:
    more = _MORE_V4 if isinstance(address, ipaddress.IPv4Address) else _MORE_V6
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in more)
    )


def _within(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address is another form of: mapped, or by a public NAT64 gateway."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
