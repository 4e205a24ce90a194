"""Who may call: a token from the environment, and protection of a local platform against web pages.

Without `GRAFT_TOKEN` the platform listens on loopback only and accepts a request only when its `Host` is a
loopback name (so a web page cannot reach it by rebinding a DNS name) and its `Origin`, where a browser sends
one, is the platform itself (so a web page cannot post to it).
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from graft.errors import AccessDenied, StartError
from retrieval.types import DEFAULT_TENANT

TOKEN_COOKIE = "graft_token"
"""Cookie that carries the token of a browser session."""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Access:
    """Decides whether a request may pass."""

    token: str | None = field(default=None, repr=False)
    """Secret every request must carry; None allows loopback callers without one."""

    @classmethod
    def from_environment(cls, host: str) -> Access:
        """Return the rule for a server that listens on `host`.

        Raises:
            StartError: `host` can be reached from other machines and no GRAFT_TOKEN is set.
        """
        token = os.environ.get("GRAFT_TOKEN") or None
        if token is None and not is_loopback(host):
            raise StartError(
                f"server.host={host} can be reached from other machines; set GRAFT_TOKEN to a long random "
                "secret first, or keep server.host=127.0.0.1"
            )
        return cls(token)

    def tenant(self, headers: Mapping[str, str]) -> str:
        """Return whose request this is.

        Args:
            headers: Request headers, names in lower case.

        Raises:
            AccessDenied: The token is missing or wrong, or a web page of another origin sent the request.
        """
        origin = headers.get("origin")
        if origin and origin != "null" and urlsplit(origin).netloc != headers.get("host"):
            raise AccessDenied(
                f"requests from the web page {origin} are refused; open the platform's own address"
            )
        if self.token is None:
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
            if not is_loopback(host):
                raise AccessDenied(
                    f"host {host!r} is not this machine; use http://127.0.0.1, or set GRAFT_TOKEN"
                )
            return DEFAULT_TENANT
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            cookie = SimpleCookie(headers.get("cookie", "")).get(TOKEN_COOKIE)
            given = cookie.value if cookie else ""
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise AccessDenied(
                "token missing or wrong; send it as `Authorization: Bearer ...`, or open /login?token=..."
            )
        return DEFAULT_TENANT
