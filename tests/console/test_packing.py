"""Pages go over the network packed, and say how long they took."""

from __future__ import annotations

import httpx
from daemons import Daemon


def test_a_page_is_packed_for_who_can_read_it(daemon: Daemon) -> None:
    packed = httpx.get(daemon.url, headers={"Accept-Encoding": "gzip"})
    plain = httpx.get(daemon.url, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) * 3 < int(plain.headers["content-length"])
    assert "Train now" in packed.text
    assert float(packed.headers["server-timing"].removeprefix("total;dur=")) > 0


def test_other_answers_are_left_alone(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url, headers={"Accept-Encoding": "gzip"}) as client:
        assert "content-encoding" not in client.get("/v1/models").headers
        assert "content-encoding" not in client.get("/logs/file").headers
        assert client.get("/console/part/none").status_code == 404
