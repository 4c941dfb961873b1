"""Which addresses a crawler may be connected to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.crawl.addresses import is_public, require_allowed
from mirror_realm_assets.errors import Failed

PUBLIC = (
    "8.8.8.8",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
)
PRIVATE = (
    "0.0.0.0",  # noqa: S104 - nothing is bound
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",  # metadata of a cloud, within carriers' NAT
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of a cloud
    "fdff::1",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)
    require_allowed(address, "photos.example")


@pytest.mark.parametrize("address", PRIVATE)
def test_all_others_are_refused_whatever_the_host_is_called(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(Failed) as caught:
        require_allowed(address, "photos.example")
    assert caught.value.code == "address_refused"


@pytest.mark.parametrize("text", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.01", "", "localhost"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Failed):
        require_allowed(text, "photos.example")


def test_a_host_that_the_source_means_is_allowed_and_only_that_one() -> None:
    require_allowed("10.0.0.7", "NAS.home.", ["nas.home"])
    with pytest.raises(Failed):
        require_allowed("10.0.0.7", "other.home", ["nas.home"])
    with pytest.raises(Failed):
        require_allowed("10.0.0.7", "evil-nas.home", ["nas.home"])


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_each_of_its_forms(address: ipaddress.IPv4Address) -> None:
    assert is_public(f"::ffff:{address}") == is_public(address)
    assert is_public(f"64:ff9b::{address}") == is_public(address)
    high, low = divmod(int(address), 1 << 16)
    assert is_public(f"2002:{high:x}:{low:x}::1") == is_public(address)


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(address)
