"""Where a series came from, asked how much of it there is, and for what has not arrived.

What it sends arrives like anything else: in Orthanc, in the changes feed, and makes a new job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.edges.dicomweb import DicomWebPacs
from node.edges.pacs import DicomPacs

#: UIDs in one C-MOVE: a value of VR UI holds 64 kB in explicit VR, a thousand of the longest.
_IN_ONE_MOVE = 500


@dataclass(frozen=True)
class DicomSource:
    """A PACS that answers C-FIND, and sends to the node by C-MOVE."""

    name: str
    pacs: DicomPacs
    node_ae_title: str

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int | None:
        """How many it holds; None when it does not count, 0 when it has none of the series."""
        return self.pacs.count_instances(study_instance_uid, series_instance_uid)

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """Which it holds."""
        return self.pacs.find_instances(study_instance_uid, series_instance_uid)

    def send(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Sequence[str]
    ) -> int:
        """Have it send these, or the whole series where none are named; how many it sent."""
        starts = range(0, len(sop_instance_uids), _IN_ONE_MOVE) or [0]
        return sum(
            self.pacs.move_instances(
                study_instance_uid,
                series_instance_uid,
                sop_instance_uids[start : start + _IN_ONE_MOVE],
                self.node_ae_title,
            )
            for start in starts
        )


@dataclass(frozen=True)
class DicomWebSource:
    """A service that answers QIDO-RS and WADO-RS; what it has, ``keep`` hands to Orthanc."""

    name: str
    pacs: DicomWebPacs
    keep: Callable[[bytes], object]

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int | None:
        """How many it holds; None when it does not count, 0 when it has none of the series."""
        return self.pacs.count_instances(study_instance_uid, series_instance_uid)

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """Which it holds."""
        return self.pacs.find_instances(study_instance_uid, series_instance_uid)

    def send(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Sequence[str]
    ) -> int:
        """Fetch these, or the whole series where none are named; how many came."""
        wanted = sop_instance_uids or sorted(
            self.find_instances(study_instance_uid, series_instance_uid)
        )
        for uid in wanted:
            self.keep(self.pacs.instance(study_instance_uid, series_instance_uid, uid))
        return len(wanted)
