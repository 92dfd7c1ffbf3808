"""What the owner's acts have in common: each answers a form, and is written down."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sanic import Request

from appliance.errors import Unavailable

logger = logging.getLogger(__name__)

OWNER = "owner"


async def audit(request: Request, action: str, **detail: Any) -> None:
    """Note in the audit trail what the owner did, and from where.

    Switches are audited where they happen, whoever asks for them.
    """
    detail["address"] = request.ip
    try:
        await asyncio.to_thread(request.app.ctx.store.audit.add, OWNER, f"console.{action}", detail)
    except Unavailable as error:  # it is done; on a full disk it was perhaps to make room
        logger.warning("Not in the audit trail (%s): %s %s", error.message, action, detail)
