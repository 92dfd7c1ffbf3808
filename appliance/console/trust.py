"""What a device has to install to trust this box, and how. Public: it is needed before anybody can log in.

An authority's certificate is no secret. Who fetches it by plain HTTP compares the fingerprint with the one
that the box itself shows.
"""

from __future__ import annotations

import asyncio
import plistlib
import uuid
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from appliance.console.render import page
from appliance.errors import NotFound, Unavailable
from appliance.network.authority import Authority, fingerprint, read_authority
from appliance.network.certificates import describe
from appliance.network.names import in_url
from appliance.network.plain import host_asked_for
from appliance.origin import is_loopback

PREFIX = "/trust"
_SPACE = uuid.UUID("5f0f3a0e-6f0c-4c39-9d8a-0f6c1f1f3b52")
"""Profiles of the same authority have the same identifiers, so that one replaces the other."""


@dataclass(frozen=True)
class TrustView:
    """What the page shows.

    Attributes:
        port: of HTTPS; None when it is not served.
        address: where the box is reached by HTTPS.
        certificate: the one in service, None while there is none.
        fingerprint: of the authority to install; None when there is nothing to install.
        ends: when the authority does.
    """

    port: int | None
    address: str
    certificate: dict[str, Any] | None
    fingerprint: str | None
    ends: float | None


def add_routes(blueprint: Blueprint) -> None:
    """Put `/trust` on the blueprint."""
    blueprint.add_route(show, PREFIX, methods=["GET"], name="trust")
    blueprint.add_route(as_pem, f"{PREFIX}/ca.pem", methods=["GET"], name="trust_pem")
    blueprint.add_route(as_der, f"{PREFIX}/ca.crt", methods=["GET"], name="trust_der")
    blueprint.add_route(as_profile, f"{PREFIX}/ca.mobileconfig", methods=["GET"], name="trust_profile")


async def show(request: Request) -> HTTPResponse:
    """The page."""
    ctx = request.app.ctx
    port, serving = ctx.network.https_port, ctx.network.certificates.serving
    own = None
    if serving is not None and not serving.supplied:
        own = (await _authority(request)).certificate
    host = host_asked_for(request)
    if is_loopback(host):
        host = ctx.network.host or host
    view = TrustView(
        port=port,
        address=in_url(host, port or 0),
        certificate=describe(serving.certificate, supplied=serving.supplied) if serving else None,
        fingerprint=fingerprint(own) if own else None,
        ends=own.not_valid_after_utc.timestamp() if own else None,
    )
    return page(request, "trust.html", section="devices", view=view)


async def as_pem(request: Request) -> HTTPResponse:
    """The authority's certificate for programs."""
    return _file((await _authority(request)).pem, "application/x-pem-file", "shammah-ca.pem")


async def as_der(request: Request) -> HTTPResponse:
    """The same for Android, Windows and browsers."""
    return _file((await _authority(request)).der, "application/x-x509-ca-cert", "shammah-ca.crt")


async def as_profile(request: Request) -> HTTPResponse:
    """The same as a profile for Apple's devices."""
    authority = await _authority(request)
    name = f"{request.app.ctx.config.console.name}: certificate authority"
    mark = fingerprint(authority.certificate)
    profile = {
        "PayloadContent": [
            {
                "PayloadCertificateFileName": "shammah-ca.crt",
                "PayloadContent": authority.der,
                "PayloadDisplayName": name,
                "PayloadIdentifier": f"shammah.authority.{mark}",
                "PayloadType": "com.apple.security.root",
                "PayloadUUID": str(uuid.uuid5(_SPACE, f"{mark} certificate")).upper(),
                "PayloadVersion": 1,
            }
        ],
        "PayloadDescription": "Lets this device trust the box on your network.",
        "PayloadDisplayName": name,
        "PayloadIdentifier": f"shammah.profile.{mark}",
        "PayloadType": "Configuration",
        "PayloadUUID": str(uuid.uuid5(_SPACE, mark)).upper(),
        "PayloadVersion": 1,
    }
    return _file(plistlib.dumps(profile), "application/x-apple-aspen-config", "shammah-ca.mobileconfig")


async def _authority(request: Request) -> Authority:
    try:
        return await asyncio.to_thread(read_authority, request.app.ctx.home)
    except Unavailable as error:  # where the file lies concerns nobody who is not logged in
        raise NotFound("The certificate authority of this box cannot be read; its log says why.") from error


def _file(body: bytes, kind: str, name: str) -> HTTPResponse:
    return raw(body, content_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
