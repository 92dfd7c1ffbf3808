"""Talking to the daemon that runs on this home, if one does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from appliance.errors import ShammahError, Unavailable
from appliance.home import Home
from appliance.lock import is_held

if TYPE_CHECKING:
    import httpx

TIMEOUT = 300.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}


@dataclass(frozen=True)
class Daemon:
    """A running daemon, reached over loopback with its local token; `https` is a port of its, if any."""

    pid: int
    url: str
    token: str
    https: int | None = None

    def get(self, path: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Read from its API."""
        return self._call("GET", path, None, timeout)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask its API to do something."""
        return self._call("POST", path, body or {})

    def delete(self, path: str) -> dict[str, Any]:
        """Ask its API to remove something."""
        return self._call("DELETE", path, None)

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float = TIMEOUT
    ) -> dict[str, Any]:
        import httpx

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            response = _client().request(
                method, self.url + path, json=body, headers=headers, timeout=httpx.Timeout(timeout, connect=5)
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The daemon (process {self.pid}) does not answer at {self.url}: {error}."
            ) from error
        try:
            data = response.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise Unavailable(f"The daemon answered {path} with status {response.status_code} and no JSON.")
        if response.is_error and "error" in data:
            raise ShammahError(
                str(data["error"].get("message", data["error"])), code=data["error"].get("code")
            )
        return data


@cache
def _client() -> httpx.Client:
    import httpx

    # A proxy set for this shell has no business with loopback, and plain HTTP needs no certificates:
    # loading them costs more than all the rest of a call.
    return httpx.Client(trust_env=False, verify=False, timeout=httpx.Timeout(300, connect=5))


def find_daemon(home: Home) -> Daemon | None:
    """The daemon that serves `home`; None when none does, also after a crash left its file behind."""
    try:
        data = json.loads(home.daemon.read_text(encoding="utf-8"))
        pid, port = int(data["pid"]), int(data["port"])
        host, token = str(data["host"]), str(data["token"])
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise Unavailable(f"{home.daemon} belongs to another user: run this as the daemon's user.") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not _alive(home, pid):
        return None
    host = _ANY.get(host, host)
    https = data.get("https")
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return Daemon(pid, url, token, https if isinstance(https, int) else None)


def need_daemon(home: Home) -> Daemon:
    """The daemon that serves `home`.

    Raises:
        Unavailable: there is none.
    """
    daemon = find_daemon(home)
    if daemon is None:
        raise Unavailable(f"No daemon runs on {home.root}. Start one with `shammah daemon`.")
    return daemon


def _alive(home: Home, pid: int) -> bool:
    """Whether a daemon has the home. The times of processes do not tell: they move with the clock."""
    import psutil

    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        return is_held(home)
    except (psutil.Error, OSError, ValueError, OverflowError):  # what was written down is no process's number
        return False
