"""Where a server listens: sockets that are bound at once, and the address that people are shown.

A port is bound before anything is loaded and handed on as it is, so that nobody else can take it meanwhile, and an
address that cannot be listened on is said at once. Connections are taken when the application is there.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

from deeprec.errors import ConfigError

BACKLOG = 2048
"""Connections that wait to be taken."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; any free port for 0, and ``::`` takes IPv4 too where the system has both.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; name another --host or --port") from error
    bound.set_inheritable(False)
    return bound


def url(host: str, port: int) -> str:
    """The address to call a server at from this machine: one that listens on every address is called by loopback."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return f"http://{'127.0.0.1' if address.version == 4 else '[::1]'}:{port}"
        if address.version == 6:
            return f"http://[{host}]:{port}"
    return f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, out of reach for others."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
