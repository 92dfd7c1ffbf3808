"""Backups: all that the box learned and was told, in one file; and putting it back."""
