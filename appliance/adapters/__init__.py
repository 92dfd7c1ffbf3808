"""Adapter files: reading and checking them, the directory they live in, and its watcher."""
