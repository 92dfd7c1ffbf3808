"""Requests that know whom they are from, through the proxies that the owner trusts."""

from __future__ import annotations

from typing import Any

from sanic import Request

from appliance.network.proxies import Client, client_of, is_trusted, networks
from appliance.network.routes import plain
from appliance.origin import unmapped


class BoxRequest(Request):
    """A request. `ip`, `scheme` and `host` are those of the client, not of a trusted proxy before the box.

    Sanic's own attributes are replaced, and not others put beside them: whoever asks for the address of a
    request must not have to know that there may be a proxy.
    """

    _client: Client | None
    __slots__ = ("_client",)

    @property
    def path(self) -> str:
        """The address in its plain form: what is checked is what is routed."""
        raw: bytes | None = self._parsed_url.path
        return plain(raw.decode()) if raw else "/"  # http://host alone has none

    @property
    def unreadable(self) -> bool:
        """Whether it stands for bytes that are no request: there is nothing in it to judge anybody by."""
        return not self.head

    def over(self) -> None:
        """It is answered, or never will be."""

    @property
    def peer(self) -> str:
        """The socket's remote address."""
        return unmapped(str(self.conn_info.client_ip)) if self.conn_info else ""

    @property
    def by_proxy(self) -> bool:
        """Whether the peer is a proxy that the owner trusts."""
        return is_trusted(self.peer, networks(self.app.ctx.config.server.trusted_proxies))

    @property
    def ip(self) -> str:
        client = self._through()
        return client.address if client else self.peer

    @property
    def forwarded(self) -> dict[str, Any]:
        """What `scheme` and `host` go by."""
        client = self._through()
        said: dict[str, Any] = {}
        if client and client.https is not None:
            said["proto"] = "https" if client.https else "http"
        if client and client.host:
            said["host"] = client.host
        return said

    def _through(self) -> Client | None:
        try:
            return self._client
        except AttributeError:
            trusted = networks(self.app.ctx.config.server.trusted_proxies)
            self._client = client_of(self.peer, lambda name: self.headers.getall(name, ()), trusted)
            return self._client
