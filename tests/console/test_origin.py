from __future__ import annotations

import pytest

from appliance.origin import is_loopback, same_origin, trusted_loopback


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST", "localhost."]
)
def test_names_of_this_machine(name: str) -> None:
    assert is_loopback(name)


@pytest.mark.parametrize(
    "name", ["", "192.168.1.2", "0.0.0.0", "::", "::ffff:192.168.1.2", "localhost.evil.example", "box"]
)
def test_other_names(name: str) -> None:
    assert not is_loopback(name)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080", "[::1]"])
def test_this_machine_is_trusted(host: str) -> None:
    assert trusted_loopback("127.0.0.1", {"host": host})


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("192.168.1.2", {"host": "127.0.0.1"}),
        # A page whose name was re-pointed at 127.0.0.1.
        ("127.0.0.1", {"host": "evil.example:8080"}),
        ("127.0.0.1", {}),
        # A reverse proxy on this machine speaks for everybody.
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "203.0.113.9"}),
        ("127.0.0.1", {"host": "localhost", "forwarded": "for=203.0.113.9"}),
        ("127.0.0.1", {"host": "localhost", "x-real-ip": "203.0.113.9"}),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-proto": "https"}),
        ("127.0.0.1", {"host": "localhost", "via": "1.1 proxy"}),
    ],
)
def test_others_are_not_trusted(peer: str, headers: dict[str, str]) -> None:
    assert not trusted_loopback(peer, headers)


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {"sec-fetch-site": "cross-site"}, True),
        ("POST", {"sec-fetch-site": "same-origin"}, True),
        ("POST", {"sec-fetch-site": "cross-site"}, False),
        ("POST", {"sec-fetch-site": "same-site"}, False),
        ("POST", {"sec-fetch-site": "cross-site", "origin": "http://box:80", "host": "box:80"}, False),
        ("POST", {"origin": "http://box:8080", "host": "box:8080"}, True),
        ("POST", {"origin": "http://box:8081", "host": "box:8080"}, False),
        ("POST", {"origin": "http://evil.example", "host": "box:8080"}, False),
        ("POST", {"origin": "null", "host": "box:8080"}, False),
        ("POST", {"origin": "null", "host": ""}, False),
        ("POST", {"host": "box:8080"}, False),
        ("DELETE", {"host": "box:8080"}, False),
    ],
)
def test_requests_of_other_sites(method: str, headers: dict[str, str], expected: bool) -> None:
    assert same_origin(method, headers) is expected
