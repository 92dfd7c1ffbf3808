"""Figures of parts that a box may be without: told while the part is there."""

from __future__ import annotations

from typing import Any

from appliance.metrics.exposition import Metrics


def offer(metrics: Metrics, ctx: Any) -> None:
    """Offer them all; each is looked up in the app's context when it is read."""

    def backup_time() -> float | None:
        upkeep = getattr(ctx, "upkeep", None)
        return None if upkeep is None else upkeep.backups.state.last

    def backup_failed() -> float | None:
        upkeep = getattr(ctx, "upkeep", None)
        return None if upkeep is None else float(upkeep.backups.state.failed is not None)

    def disk_low() -> float | None:
        upkeep = getattr(ctx, "upkeep", None)
        return None if upkeep is None else float(upkeep.state.low)

    def store_damaged() -> float | None:
        upkeep = getattr(ctx, "upkeep", None)
        return None if upkeep is None else float(upkeep.state.damaged is not None)

    def certificate_ends() -> float | None:
        network = getattr(ctx, "network", None)
        serving = None if network is None else network.certificates.serving
        return None if serving is None else float(serving.certificate.not_valid_after_utc.timestamp())

    for name, text, read in (
        ("backup_time_seconds", "When the newest automatic backup was made.", backup_time),
        ("backup_failed", "1 when the last automatic backup failed.", backup_failed),
        ("disk_low", "1 while less disk is free than the settings want.", disk_low),
        ("store_damaged", "1 when the database was found damaged.", store_damaged),
        ("certificate_expiry_timestamp_seconds", "When the certificate in service ends.", certificate_ends),
    ):
        metrics.offer(f"shammah_{name}", text, read)
