"""What the owner's acts have in common: each answers a form, and is written down."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import Request

OWNER = "owner"


async def audit(request: Request, action: str, **detail: Any) -> None:
    """Note in the audit trail what the owner did, and from where.

    Switches are audited where they happen, whoever asks for them.
    """
    detail["address"] = request.ip
    await asyncio.to_thread(request.app.ctx.store.audit.add, OWNER, f"console.{action}", detail)
