"""What can go wrong, sorted by what the system does next.

::

    NodeError
    ├── Rejected        this object can never succeed: stop, keep, report
    │   ├── GeometryError             slices do not form one volume
    │   ├── UnsupportedTransferSyntax no decoder for the pixel data
    │   ├── Gone                      Orthanc no longer has it: a person deleted it
    │   ├── DamagedInstance           the bytes cannot be read as the object they claim to be
    │   ├── UnsuitableInput           the model's contract refuses this series
    │   ├── NoMatchingModel           no routing rule wants this series
    │   ├── EmptyResult               the model found nothing to segment
    │   ├── DeliveryRefused           the destination answered with a permanent failure
    │   ├── ModelFault                a model package is missing, altered or broke its contract
    │   └── ProgramFailed             somebody else's program failed, or its labels cannot be used
    ├── Quarantined     it may not leave the node: hold for a person
    │   ├── IdentityUnsafe            an identifier would leak, or a reference does not resolve
    │   └── ReplacedSinceReview       an image is not the one that a person has looked at
    ├── NotDelivered    a destination does not keep the results: a person corrects it, then retries
    ├── Incomplete      something is missing and has not come: hold until it does
    ├── DamagedArtifact working data are gone or altered: made again from Orthanc's copy
    ├── NotPossible     a person asked for what a job's state does not allow: nothing changes
    └── Unavailable     try again later
        ├── OrthancUnavailable
        ├── LedgerUnavailable
        ├── PacsUnavailable
        ├── LeaseLost                 another worker has taken the step over: stop, record nothing
        ├── NotAllArrived             something of the series is missing and may still come
        ├── NotYetProven              delivered, and the destination has not confirmed it yet
        ├── ProgramInterrupted        somebody else's program was ended, or asks to be run later
        └── OutOfSpace

Retrying on :class:`Unavailable` is the whole retry policy; no handler reads a message.

A message says what is wrong and where, with tags and keywords; ``remedy`` says what a person can
do. Neither ever holds a value from the patient: they are stored, logged and shown.
"""

from __future__ import annotations


class NodeError(Exception):
    """A failure with its cause (``str(error)``) and what a person can do about it (``remedy``)."""

    default_remedy = "See the node's log for this job, then retry it."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy or self.default_remedy


class Rejected(NodeError):
    """This object can never succeed as it is: stop, keep it, report why."""

    default_remedy = "Correct the series at its source and send it again."


class GeometryError(Rejected):
    """The instances do not form one evenly spaced volume."""

    default_remedy = "Send the complete series again, or choose a series without gaps or tilt."


class UnsupportedTransferSyntax(Rejected):
    """No decoder here reads the transfer syntax."""

    default_remedy = "Have the sender use Explicit VR Little Endian or a lossless syntax."


class Gone(Rejected):
    """Orthanc no longer has the object: a person, or a rule of the site, has deleted it."""

    default_remedy = "Send the series to the node again."


class DamagedInstance(Rejected):
    """The bytes cannot be read as the object that they claim to be."""

    default_remedy = (
        "Delete the instance in Orthanc, then send it again from its source: while the received "
        "copy is kept, another one of the same SOP Instance UID is dropped."
    )


class UnsuitableInput(Rejected):
    """The model's contract refuses this series."""

    default_remedy = "Choose a series that meets the model's input contract (`segnode models`)."


class NoMatchingModel(Rejected):
    """No routing rule wants this series."""

    default_remedy = "Nothing to do, unless a rule in segnode.toml should have matched."


class EmptyResult(Rejected):
    """The model found nothing to segment, so there is no object to return."""

    default_remedy = "Nothing to do if the anatomy is not in the series; otherwise report the case."


class DeliveryRefused(Rejected):
    """The destination answered with a status that a retry cannot change."""

    default_remedy = "Correct the destination (`segnode pacs check NAME`), then retry the job."


class ModelFault(Rejected):
    """A model package is missing, altered, or broke its own contract."""

    default_remedy = "Reinstall the model folder and check it with `segnode models`."


class ProgramFailed(Rejected):
    """Somebody else's program failed on this series, or what it wrote cannot be used."""

    default_remedy = "Run the program by hand on such a series; correct it or its model.toml."


class Quarantined(NodeError):
    """It may not leave the node: hold it for a person."""

    default_remedy = "Inspect the series in Orthanc; retry only after correcting the cause."


class IdentityUnsafe(Quarantined):
    """An identifier would leak, or a reference does not resolve in the original study."""


class ReplacedSinceReview(Quarantined):
    """An image that a person has looked at is not the one that is there now."""

    default_remedy = "Retry the job: its images are examined again, for a person to look at."


class NotDelivered(NodeError):
    """A destination does not keep the results; what the others keep stands."""

    default_remedy = "Correct the destination (`segnode pacs check NAME`), then retry the job."


class Incomplete(NodeError):
    """Something of the series is missing, was waited for, and has not come."""

    default_remedy = (
        "Send the missing instances: the job starts anew. Or retry the job: it then takes the "
        "series as it is."
    )


class DamagedArtifact(NodeError):
    """Working data are gone or not what was written: they are made again from Orthanc's copy."""

    default_remedy = "The node makes them again by itself; check the disk of its artifact folder."


class NotPossible(NodeError):
    """A person asked for something that a job's state does not allow; nothing was changed."""

    default_remedy = "`segnode jobs` lists all jobs and their states."


class Unavailable(NodeError):
    """Something outside did not answer: try again later."""

    default_remedy = "The node tries again by itself; check that the other system is up."


class OrthancUnavailable(Unavailable):
    """Orthanc did not answer."""


class LedgerUnavailable(Unavailable):
    """The node's database did not answer, or was locked for too long."""

    default_remedy = "Check the database (`segnode doctor`); the node goes on when it answers."


class PacsUnavailable(Unavailable):
    """The destination did not answer, or asked to be tried again later.

    ``retry_after_s`` is when, if it said so. ``sent``: what was sent may have arrived all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        retry_after_s: float | None = None,
        sent: bool = False,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s, self.sent = retry_after_s, sent


class LeaseLost(Unavailable):
    """Another worker has taken the step over; what this one records goes nowhere."""


class NotAllArrived(Unavailable):
    """Something of the series is missing, and may still come."""

    default_remedy = "The node waits and asks the source; send the rest if it was forgotten."


class NotYetProven(Unavailable):
    """The destination has accepted the objects and has not confirmed keeping them."""

    default_remedy = "The node asks again by itself; check storage commitment at the destination."


class ProgramInterrupted(Unavailable):
    """Somebody else's program was ended by the system, or asks to be run again later."""

    default_remedy = "The node tries again by itself; check memory and GPU of the compute worker."


class OutOfSpace(Unavailable):
    """No room to write."""

    default_remedy = "Free disk space on the node; it then continues by itself."
