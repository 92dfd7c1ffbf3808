"""Shammah: a small appliance that serves a local language model and learns from its use."""

__version__ = "0.1.0"
