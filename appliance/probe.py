"""Asks the daemon of this home for its health: a container's HEALTHCHECK. Exit code 0 or 1, and why.

    python -m appliance.probe

With Python's own library only: it runs every half a minute, for years.
"""

from __future__ import annotations

import http.client
import json
import sys

from appliance.home import Home

SECONDS = 4.0
"""A daemon that answers later than this is of no use to anybody."""
_ANY = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}


def probe(home: Home, seconds: float = SECONDS) -> tuple[bool, str]:
    """Whether the daemon is well, and what it says.

    Args:
        home: whose daemon.
        seconds: how long to wait for an answer.
    """
    try:
        record = json.loads(home.daemon.read_text(encoding="utf-8"))
        host, port = str(record["host"]), int(record["port"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False, "No daemon has come up here."
    connection = None
    try:
        connection = http.client.HTTPConnection(_ANY.get(host, host), port, timeout=seconds)
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status == 200, response.read(2000).decode(errors="replace")
    except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
        return False, f"No answer within {seconds:g} seconds ({type(error).__name__}: {error})."
    finally:
        if connection is not None:
            connection.close()


if __name__ == "__main__":
    well, said = probe(Home.default())
    print(said)
    sys.exit(0 if well else 1)
