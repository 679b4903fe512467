"""Runs of bytes that recur from one instance to the next, and the attributes between them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anonymizer.actions import Patient
from anonymizer.encoding import LONG_VRS, Element
from anonymizer.part10 import SOP_INSTANCE_UID
from anonymizer.scan import Irregular, Place, scan_element
from anonymizer.varying import Rule

_LONG = frozenset(vr.encode("ascii") for vr in LONG_VRS)
_UNPACK = {2: struct.Struct("<H").unpack_from, 4: struct.Struct("<L").unpack_from}


class Step(NamedTuple):
    """A run of bytes that recurs, and the attribute after it, which varies."""

    run: bytes
    """Up to and with the tag and VR of the attribute."""
    tag: int
    tag_bytes: int
    """Of its tag and VR."""
    length_bytes: int
    unpack_length: Callable[[bytes, int], tuple[Any, ...]]
    rule: Rule


class Matched(NamedTuple):
    """What was found in an instance in which every run recurs."""

    outputs: list[bytes]
    """What becomes of each attribute that varies, in their order; of ``others`` not yet."""
    others: dict[int, Element]
    """What no rule settled, by its place in ``outputs``. VRs may be a choice (``US or SS``)."""
    sop_instance_uid: str
    """Empty if it is not among them."""
    end: int


@dataclass(frozen=True)
class Runs:
    """Elements that follow each other without a gap, some of which vary."""

    steps: tuple[Step, ...] = field(repr=False)
    last_run: bytes = field(repr=False)
    implicit: bool

    def matched(self, data: bytes, position: int, patient: Patient) -> Matched | None:
        """What varies in the elements from ``position``; None unless everything else recurs.

        Raises
        ------
        Irregular, struct.error
            What varies is not in the plain form.
        """
        outputs: list[bytes] = []
        others: dict[int, Element] = {}
        sop_instance_uid = ""
        for run, tag, tag_bytes, length_bytes, unpack_length, rule in self.steps:
            if not data.startswith(run, position):
                return None
            position += len(run)
            (length,) = unpack_length(data, position)
            start = position + length_bytes
            try:
                end, output = rule.settled(data, start, length, patient)
            except Irregular:
                element, end = scan_element(data, position - tag_bytes, implicit=self.implicit)
                others[len(outputs)], output = element, b""
            else:
                if tag == SOP_INSTANCE_UID:
                    sop_instance_uid = data[start:end].rstrip(b"\0").decode("ascii")
            outputs.append(output)
            position = end
        if not data.startswith(self.last_run, position):
            return None
        return Matched(outputs, others, sop_instance_uid, position + len(self.last_run))


def runs_of(
    data: bytes,
    places: Sequence[Place],
    may_vary: frozenset[int],
    rule: Callable[[int, bytes, int], Rule],
    *,
    implicit: bool,
) -> Runs:
    """The runs of ``data`` if the attributes ``may_vary`` do.

    ``rule`` is asked for the rule of an attribute with its tag, its tag and VR as they stand in the
    bytes, and the width of its length. There is at least one place, and no gap between them.
    """
    steps: list[Step] = []
    run_start = places[0].start
    for tag, start, end in places:
        if tag in may_vary:
            tag_bytes, length_bytes = _header_widths(data, start, implicit)
            run = data[run_start : start + tag_bytes]
            settled_by = rule(tag, run[-tag_bytes:], length_bytes)
            unpack = _UNPACK[length_bytes]
            steps.append(Step(run, tag, tag_bytes, length_bytes, unpack, settled_by))
            run_start = end
    return Runs(tuple(steps), data[run_start : places[-1].end], implicit)


def _header_widths(data: bytes, start: int, implicit: bool) -> tuple[int, int]:
    """Bytes of tag and VR, and of the length after them (PS3.5 7.1.2, 7.1.3)."""
    if implicit:
        return 4, 4
    return (8, 4) if data[start + 4 : start + 6] in _LONG else (6, 2)
