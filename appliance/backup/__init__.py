"""Backups: all that the box learnt and was told, in one file; and putting it back."""
