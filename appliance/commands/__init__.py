"""The verbs of the `shammah` command, one module per group.

Modules import click at most at their top: `shammah --help` must answer at once, and what a verb
needs is loaded when it runs.
"""
