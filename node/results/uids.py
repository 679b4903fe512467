"""UIDs and identity of a result, derived from the job that makes it.

A step that runs twice must make the same instance, not a second one: nothing here is random and
nothing reads a clock. What a UID derives from must be keyed (the job's fact ``result_key``): the
job's own key is a plain hash over hashes of the patient's identifiers, and who reads a UID made of
it could test whether a study that he guesses is behind it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime

_UUID_VERSION_MASK = 0xF << 76
_UUID_VARIANT_MASK = 0x3 << 62


def result_uid(job_key: str, role: str) -> str:
    """The UID of one thing that a job makes; the same for the same job and role, always.

    ``job_key`` is 256 bits that only the hospital zone can make, hexadecimal.

    ``role`` names the thing ("series", "seg", "tracking:2"). The UID is ``2.25.`` and a UUID as an
    integer: SHA-256 of key and role, cut to 128 bits and marked as a version 8 (custom) UUID.

    References
    ----------
    PS3.5 2026b B.2 (UUID-derived UID); RFC 9562 5.8 (UUID version 8).
    """
    digest = hashlib.sha256(f"{job_key}\n{role}".encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = (number & ~_UUID_VERSION_MASK) | (0x8 << 76)
    number = (number & ~_UUID_VARIANT_MASK) | (0x2 << 62)
    return f"2.25.{number}"


@dataclass(frozen=True)
class ResultIdentity:
    """What makes a result object this one: its UIDs, its place in the study, its time.

    Attributes
    ----------
    job_key
        Keyed hash of the job's key; every UID inside the object that is not named here derives
        from it.
    series_instance_uid, sop_instance_uid
        UIDs of the result.
    series_number
        Number of the result's series; :meth:`node.results.objects.Origin.identity` says which.
    series_description
        At most 64 ASCII characters.
    created
        When the job was made; becomes content, series and instance creation date and time.
    software_version
        Version of segnode.
    part
        Number of the instance, where a result of one kind comes as several.
    """

    job_key: str
    series_instance_uid: str
    sop_instance_uid: str
    series_number: int
    series_description: str
    created: datetime
    software_version: str
    part: int = 1

    @classmethod
    def for_job(
        cls,
        job_key: str,
        *,
        series_number: int,
        series_description: str,
        created: datetime,
        software_version: str,
        kind: str = "seg",
    ) -> ResultIdentity:
        """The identity of the job's result of one ``kind``, one series for each kind."""
        return cls(
            job_key=job_key,
            series_instance_uid=result_uid(job_key, f"{kind}:series"),
            sop_instance_uid=result_uid(job_key, f"{kind}:instance"),
            series_number=series_number,
            series_description=series_description,
            created=created,
            software_version=software_version,
        )

    def of_part(self, part: int) -> ResultIdentity:
        """Of the ``part``-th object of the same series, from 1."""
        if part == 1:
            return self
        sop_instance_uid = result_uid(self.job_key, f"{self.sop_instance_uid}:{part}")
        return replace(self, part=part, sop_instance_uid=sop_instance_uid)

    def uid(self, role: str) -> str:
        """A further UID inside this object."""
        return result_uid(self.job_key, role if self.part == 1 else f"{role}:{self.part}")
