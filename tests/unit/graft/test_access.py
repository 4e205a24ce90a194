from __future__ import annotations

import pytest

from graft.access import Access
from graft.errors import AccessDenied, StartError

LOCAL = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:1", "[::1]:7860", "127.9.9.9"])
def test_loopback_host_passes_without_token(host):
    assert Access().tenant({"host": host}) == "default"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:7860"},
        {},
        {**LOCAL, "origin": "http://evil.example"},
        {**LOCAL, "origin": "http://127.0.0.1:9999"},
    ],
)
def test_rebound_host_and_foreign_origin_are_refused(headers):
    with pytest.raises(AccessDenied):
        Access().tenant(headers)


def test_own_origin_passes():
    assert Access().tenant({**LOCAL, "origin": "http://127.0.0.1:7860"}) == "default"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer right"},
        {"authorization": "bearer right"},
        {"cookie": "a=b; graft_token=right"},
    ],
)
def test_token_passes_from_header_or_cookie(headers):
    assert Access("right").tenant({"host": "graft.example", **headers}) == "default"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        LOCAL,
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"cookie": "graft_token=wrong"},
    ],
)
def test_missing_or_wrong_token_is_refused(headers):
    with pytest.raises(AccessDenied):
        Access("right").tenant(headers)


def test_open_address_needs_a_token(monkeypatch):
    monkeypatch.delenv("GRAFT_TOKEN", raising=False)
    with pytest.raises(StartError, match="set GRAFT_TOKEN"):
        Access.from_environment("0.0.0.0")
    monkeypatch.setenv("GRAFT_TOKEN", "secret")
    access = Access.from_environment("0.0.0.0")
    assert access.token == "secret"
    assert "secret" not in repr(access)
