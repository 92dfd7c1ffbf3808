"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance.api.generation import check_model, served_names

blueprint = Blueprint("models", url_prefix="/v1")


@blueprint.get("/models")
async def list_models(request: Request) -> HTTPResponse:
    """The names a request may use."""
    data = [_model(request, name) for name in served_names(request)]
    return json_response({"object": "list", "data": data})


@blueprint.get("/models/<model:path>")
async def get_model(request: Request, model: str) -> HTTPResponse:
    """One of them."""
    check_model(request, model)
    return json_response(_model(request, model))


def _model(request: Request, name: str) -> dict[str, Any]:
    manifest = request.app.ctx.bundle.manifest
    return {
        "id": name,
        "object": "model",
        "created": int(manifest.created),
        "owned_by": "shammah",
        "root": manifest.name,
        "adapter": request.app.ctx.engine.adapter,
        "context_length": request.app.ctx.engine.context_length,
    }
