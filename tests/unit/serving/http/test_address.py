"""Sockets that are bound at once, and the address that people are shown."""

from __future__ import annotations

import socket

import pytest

from deeprec.errors import ConfigError
from deeprec.serving.http.address import bind, is_loopback, url


def test_a_bound_port_is_kept_from_others() -> None:
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        bound.listen()
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .*name another"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "host." * 60, "192.0.2.1"])
def test_an_address_that_cannot_be_listened_on_is_one_sentence(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind(host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_all_addresses_are_both_families() -> None:
    try:
        bound = bind("::", 0)
    except ConfigError:
        pytest.skip("no IPv6 here")
    with bound:
        bound.listen()
        port = bound.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5) as called:
                assert called.getpeername()[1] == port


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("shop.example", "http://shop.example:80"),
    ],
)
def test_the_address_that_is_shown_can_be_called(host: str, shown: str) -> None:
    assert url(host, 80) == shown


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "::", "shop")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
