"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic import json as json_response

from appliance.api.weights import adapter_of, served_names
from appliance.errors import NotFound

blueprint = Blueprint("models", url_prefix="/v1")


@blueprint.get("/models")
async def list_models(request: Request) -> HTTPResponse:
    """The names a request may use."""
    data = [_model(request, name) for name in await served_names(request)]
    return json_response({"object": "list", "data": data})


@blueprint.get("/models/<model:path>")
async def get_model(request: Request, model: str) -> HTTPResponse:
    """One of them."""
    if model not in await served_names(request):
        raise NotFound(f"There is no model {model!r} here.", param="model", code="model_not_found")
    return json_response(_model(request, model))


def _model(request: Request, name: str) -> dict[str, Any]:
    manifest = request.app.ctx.bundle.manifest
    return {
        "id": name,
        "object": "model",
        "created": int(manifest.created),
        "owned_by": "shammah",
        "root": manifest.name,
        "adapter": adapter_of(request, name),
        "context_length": request.app.ctx.engine.context_length,
    }
