"""How a connection speaks HTTP, where the framework's own way is not what the protocol says.

A client of HTTP/1.0 knows nothing of chunks: a body whose length is not known ends with the connection. HEAD
gets the head of what GET would get, and the handler of an endless body is ended there. A request that could
not even be read is still from somebody; and each one is told when it is over, however it ended.
"""

from __future__ import annotations

from asyncio import CancelledError

from sanic.headers import format_http1_response
from sanic.helpers import has_message_body
from sanic.http import Http, Stage

from appliance.network.request import BoxRequest


class HeadSent(CancelledError):
    """All that HEAD asks for is sent: whoever has more to say is stopped as if the client had left."""


class BoxHttp(Http):
    """The requests of a connection, one after another."""

    async def http1(self) -> None:
        """Serve the connection until it ends."""
        try:
            await super().http1()  # type: ignore[no-untyped-call]
        finally:
            self._over()

    def init_for_request(self) -> None:
        """Make ready for the next request."""
        self._over()
        super().init_for_request()  # type: ignore[no-untyped-call]

    def create_empty_request(self) -> None:
        """Stand in for a request that could not be read: at least it is known who has sent it.

        Its address may be just what could not be read.
        """
        self.url = None
        super().create_empty_request()
        self.request.conn_info = self.protocol.conn_info

    async def http1_request_header(self) -> None:
        """Read the head of the next request."""
        await super().http1_request_header()  # type: ignore[no-untyped-call]
        if self.request.version == "1.0":
            self.expecting_continue = False  # it would not know what that answer is

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Send the head, and the body as far as it is there."""
        whole = end_stream or bool(not data and self.response.body)
        if whole or not has_message_body(self.response.status):  # type: ignore[no-untyped-call]
            return await super().http1_response_header(data, end_stream)
        sized = "content-length" in self.response.headers
        if self.head_only:
            self.keep_alive = False
        if sized or self.request.version != "1.0":
            await super().http1_response_header(data, end_stream)
        else:
            self.keep_alive = False
            self.response.headers["connection"] = "close"
            head = format_http1_response(self.response.status, self.response.processed_headers)
            await self._send(head if self.head_only else head + data)
            self.stage, self.response_func = Stage.RESPONSE, self._until_closed
        if self.head_only:
            self._ended()
            raise HeadSent
        return None

    async def _until_closed(self, data: bytes, end_stream: bool) -> None:
        if data:
            await self._send(data)
        if end_stream:
            self._ended()

    def _ended(self) -> None:
        self.stage, self.response_func = Stage.IDLE, None  # type: ignore[assignment]

    def _over(self) -> None:
        request = getattr(self, "request", None)
        if isinstance(request, BoxRequest):
            request.over()
