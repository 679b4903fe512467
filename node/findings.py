"""What a check found: of the node, of a destination, of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["good", "note", "wrong"]
    subject: str
    found: str
    remedy: str = ""
