"""Whether the other end of a local connection is a process of the same user. Linux tells; others do not."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable
from pathlib import Path

Address = tuple[str, int]
"""Host as an IP address, and port."""

_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}
"""The kernel's connections: local address, remote address, and the user who opened the local end."""
_LOCAL, _REMOTE, _USER = 1, 2, 7
"""Columns of a table."""


def is_own_process(client: Address, server: Address) -> bool:
    """Return whether the process at the client's end of a connection runs for this process's user.

    Args:
        client: The client's end, as the server sees it.
        server: The server's end.

    Returns:
        False too where that cannot be told: the client is elsewhere, or the system is not Linux.
    """
    try:
        # A client of IPv4 is listed as such by the kernel, though a server of IPv6 may see it as mapped.
        ends = [_unmapped(ipaddress.ip_address(host)) for host, _ in (client, server)]
        lines = _TABLES[ends[0].version].read_text(encoding="ascii").splitlines()[1:]
    except (ValueError, OSError):
        return False
    if not all(end.is_loopback for end in ends):
        return False
    local, remote = (
        _as_listed(end.packed, port) for end, (_, port) in zip(ends, (client, server), strict=True)
    )
    return _user_of(lines, local, remote) == os.getuid()


def _user_of(lines: Iterable[str], local: str, remote: str) -> int | None:
    for line in lines:
        columns = line.split()
        if columns[_LOCAL] == local and columns[_REMOTE] == remote:
            return int(columns[_USER])
    return None


def _as_listed(packed: bytes, port: int) -> str:
    """Return an address as the kernel prints it: 32-bit words in the machine's byte order, in hex."""
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"


def _unmapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
