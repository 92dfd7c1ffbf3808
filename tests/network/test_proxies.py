"""Whom a request is from: only what trusted proxies say is believed, and only as far as they can know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network.proxies import Client, client_of, networks

TRUSTED = networks("10.0.0.1, 10.1.0.0/16 fd00::/8")


def client(peer: str, **headers: str) -> Client | None:
    values = {name.replace("_", "-"): [text] for name, text in headers.items()}
    return client_of(peer, lambda name: values.get(name, []), TRUSTED)


@pytest.mark.parametrize(
    ("peer", "listed", "found"),
    [
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "127.0.0.1, 203.0.113.9", "203.0.113.9"),  # the client wrote the first itself
        ("10.0.0.1", "203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("10.0.0.1", "10.1.2.3, 10.1.2.4", "10.1.2.3"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::9]:80", "2001:db8::9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("fd00::1", "2001:db8::9", "2001:db8::9"),
        ("10.0.0.1", "rubbish", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1, unknown", "10.0.0.1"),
    ],
)
def test_the_last_that_is_not_trusted_is_the_client(peer: str, listed: str, found: str) -> None:
    said = client(peer, x_forwarded_for=listed)
    assert said is not None
    assert said.address == found
    other = client(peer, forwarded=", ".join(f'for="{item.strip()}"' for item in listed.split(",")))
    assert other is not None
    assert other.address == found


@pytest.mark.parametrize("peer", ["10.0.0.2", "192.168.1.1", "127.0.0.1", "::1", ""])
def test_others_are_not_believed(peer: str) -> None:
    assert client(peer, x_forwarded_for="127.0.0.1", x_forwarded_proto="https") is None
    assert client(peer, forwarded="for=127.0.0.1;proto=https") is None


def test_scheme_and_host_are_those_of_the_client() -> None:
    assert client(
        "10.0.0.1", x_forwarded_for="203.0.113.9", x_forwarded_proto="https", x_forwarded_host="box.example"
    ) == Client("203.0.113.9", True, "box.example")
    assert client("10.0.0.1", forwarded='for=203.0.113.9;proto=https;host="box.example:444"') == Client(
        "203.0.113.9", True, "box.example:444"
    )
    # The outer proxy was reached by HTTPS, the inner one by plain HTTP.
    said = client("10.0.0.1", x_forwarded_for="203.0.113.9, 10.1.0.1", x_forwarded_proto="https, http")
    assert said == Client("203.0.113.9", True, None)
    evil = client("10.0.0.1", x_forwarded_for="203.0.113.9", x_forwarded_host="evil/<script>")
    assert evil is not None
    assert evil.host is None


def test_a_header_that_the_proxy_does_not_know_is_no_way_round_it() -> None:
    """It sets one of the two, and hands on the other as it came: then the proxy itself is the client."""
    both = client("10.0.0.1", x_forwarded_for="203.0.113.9", forwarded="for=198.51.100.1;proto=https")
    assert both == Client("10.0.0.1")
    agreed = client("10.0.0.1", x_forwarded_for="203.0.113.9", forwarded="for=203.0.113.9")
    assert agreed == Client("203.0.113.9")


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=50))
def test_nonsense_is_never_somebody_else(listed: str, forwarded: str, proto: str) -> None:
    said = client("10.0.0.1", x_forwarded_for=listed, forwarded=forwarded, x_forwarded_proto=proto)
    if said is not None:
        assert said.address == "10.0.0.1" or said.address in listed + forwarded or ":" in said.address
