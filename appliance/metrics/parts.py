"""Figures that other rooms keep, looked up in the app's context when they are read."""

from __future__ import annotations

from typing import Any

from appliance.metrics.exposition import Metrics


def offer(metrics: Metrics, ctx: Any) -> None:
    """Offer them all; what has not come to be yet, such as a certificate, is not told."""
    upkeep = ctx.upkeep

    def certificate_ends() -> float | None:
        serving = ctx.network.certificates.serving
        return None if serving is None else float(serving.certificate.not_valid_after_utc.timestamp())

    for name, text, read in (
        (
            "backup_time_seconds",
            "When the newest automatic backup was made.",
            lambda: upkeep.backups.state.last,
        ),
        (
            "backup_failed",
            "1 when the last automatic backup failed.",
            lambda: float(upkeep.backups.state.failed is not None),
        ),
        (
            "disk_low",
            "1 while less disk is free than the settings want.",
            lambda: float(upkeep.state.low),
        ),
        (
            "store_damaged",
            "1 when the database was found damaged.",
            lambda: float(upkeep.state.damaged is not None),
        ),
        ("certificate_expiry_timestamp_seconds", "When the certificate in service ends.", certificate_ends),
    ):
        metrics.offer(f"shammah_{name}", text, read)
