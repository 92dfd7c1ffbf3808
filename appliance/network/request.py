"""Requests that know whom they are from, through the proxies that the owner trusts."""

from __future__ import annotations

from typing import Any

from sanic import Request
from sanic.cookies.request import CookieRequestParameters
from sanic.request.parameters import RequestParameters

from appliance.errors import TooLarge
from appliance.network.aside import LARGE, beside
from appliance.network.forms import MAX_FORM, Fields, is_form, read_form
from appliance.network.proxies import Client, client_of, is_trusted, networks
from appliance.network.routes import plain
from appliance.origin import unmapped
from appliance.reading import MAX_JSON


class BoxRequest(Request):
    """A request. `ip`, `scheme` and `host` are those of the client, not of a trusted proxy before the box.

    Sanic's own attributes are replaced, and not others put beside them: whoever asks for the address of a
    request must not have to know that there may be a proxy. So are its readers of bodies, forms and cookies,
    which have no bounds.
    """

    _client: Client | None
    _fields: Fields
    __slots__ = ("_client", "_fields")

    async def receive_body(self) -> None:
        """Read a body that is wanted whole; a form is taken apart here, where that can be done beside."""
        if self.body:
            return
        kind = self.headers.get("content-type", "")
        form = is_form(kind)
        most = MAX_FORM if form else MAX_JSON
        received = bytearray()
        async for piece in self.stream:  # type: ignore[union-attr]
            received += piece
            if len(received) > most:
                what = "A form without a file" if form else "A body"
                raise TooLarge(f"{what} has at most {most // 1_000_000} MB here. Nothing was done.")
        self.body = bytes(received)
        if form:
            large = len(received) > LARGE
            self._fields = await beside(read_form, self.body, kind) if large else read_form(self.body, kind)

    def get_form(self, keep_blank_values: bool = False) -> RequestParameters:
        """The form, without files: those are taken by `console/upload.py` alone."""
        found: dict[str, list[str]] = {}
        for name, value in getattr(self, "_fields", ()):
            if value or keep_blank_values:
                found.setdefault(name, []).append(value)
        self.parsed_form, self.parsed_files = RequestParameters(found), RequestParameters()
        return self.parsed_form

    def get_cookies(self) -> RequestParameters:
        """The cookies. None of ours has escapes; Sanic looks for them in time of the square of the length."""
        found: dict[str, list[str]] = {}
        for item in self.headers.get("cookie", "").split(";"):
            name, given, value = item.partition("=")
            if given:
                found.setdefault(name.strip(), []).append(value.strip().strip('"'))
        self.parsed_cookies = CookieRequestParameters(found)
        return self.parsed_cookies

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
