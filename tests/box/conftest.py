"""Containers for the tests of the box; see podman.py."""

from box.podman import containers, podman

__all__ = ["containers", "podman"]
