"""Where commands print: as wide as the terminal is at that moment."""

from __future__ import annotations

from rich.console import Console


def out() -> Console:
    """What was asked for."""
    return Console()


def err() -> Console:
    """Progress, and what is wrong."""
    return Console(stderr=True)
