"""The owner's pages: see what the box does and learned, correct it, promote, roll back."""

from appliance.console.blueprint import blueprint, setup

__all__ = ["blueprint", "setup"]
