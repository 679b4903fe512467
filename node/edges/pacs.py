"""A PACS reached by DIMSE: C-ECHO, C-STORE, C-FIND and C-MOVE as SCU.

Storage commitment is asked by Orthanc (``node.edges.orthanc``): a PACS answers it on an association
of its own, to the AE title and port that it knows. Here we only find out whether it is offered.

No message names an instance, a study or a series by its UID.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from node.edges.dicom_tls import DicomTls, TlsFound, objection, shake_hands, tls_context
from node.edges.store_status import SOP_CLASS_NOT_SUPPORTED, not_answered, store_status
from node.errors import DeliveryRefused, PacsUnavailable
from node.ports import Answer, StoreStatus

VERIFICATION = UID("1.2.840.10008.1.1")
STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
STUDY_ROOT_MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")

#: pynetdicom's own thread looks for messages between ours. Without a rest it may do so when it
#: should have stopped, and take our answer for itself: seen twice in 4,000 sends on a busy machine.
_LET_IT_REST_S = 0.005

_MAX_CONTEXTS = 128  # odd presentation context ids in one byte, PS3.8 9.3.2.2
_REJECTED_PERMANENT = 1  # PS3.8 Table 9-21, Result
_CALLED_AE_NOT_RECOGNIZED = (1, 7)  # (source, reason) of the same table
_CALLING_AE_NOT_RECOGNIZED = (1, 3)


@dataclass(frozen=True)
class DicomDestination:
    """Where a PACS listens, and who we are to it."""

    name: str
    ae_title: str
    host: str
    port: int
    calling_ae_title: str = "SEGNODE"
    tls: DicomTls | None = None
    connection_timeout_s: float = 10
    association_timeout_s: float = 30
    #: How long the PACS may think about one message.
    dimse_timeout_s: float = field(kw_only=True)


@dataclass(frozen=True)
class Negotiation:
    """What a destination accepted of what was proposed (``segnode pacs check NAME``).

    ``storage`` holds (SOP Class UID, Transfer Syntax UID) → accepted, in the order proposed.
    """

    verification: bool
    study_root_find: bool
    storage_commitment: bool
    study_root_move: bool
    storage: dict[tuple[str, str], bool] = field(default_factory=dict)


class DicomPacs:
    """One PACS; every call opens and releases an association of its own."""

    def __init__(self, destination: DicomDestination) -> None:
        self._destination = destination

    def echo(self) -> None:
        """Return when the PACS answers C-ECHO (PS3.4 Annex A)."""
        with self._association([build_context(VERIFICATION)]) as association:
            self._require(association, VERIFICATION)
            status = association.send_c_echo()
            if "Status" not in status:
                raise self._unavailable("did not answer C-ECHO")
            if status.Status != 0x0000:
                raise self._refused(f"answered 0x{status.Status:04X} to C-ECHO")

    def encryption(self) -> TlsFound | None:
        """What a TLS handshake shows; None where plain text is spoken.

        Raises
        ------
        PacsUnavailable
            One side does not trust the other, or nobody answers.
        """
        to = self._destination
        if to.tls is None:
            return None
        try:
            return shake_hands(to.host, to.port, to.tls, to.connection_timeout_s)
        except OSError as error:
            raise self._unavailable(
                objection(error) or "could not be reached",
                remedy="Compare certificate_authority, certificate and private_key in segnode.toml "
                "with what the PACS shows and trusts.",
            ) from None

    def store(self, instances: Sequence[bytes]) -> tuple[StoreStatus, ...]:
        """Send Part 10 streams on one association; one status each, in order.

        An instance whose SOP class or transfer syntax the PACS does not take is answered 0x0122
        without being sent; the others still go. When the association breaks, what was answered
        before stands, and the rest is to be tried again; so it is after a PACS has said that it is
        out of resources.

        Raises
        ------
        PacsUnavailable
            No association: nothing was sent.
        DeliveryRefused
            The PACS does not talk to us at all.

        References
        ----------
        PS3.4 2026b Annex B; PS3.7 2026b 9.1.1.
        """
        if not instances:
            return ()
        datasets = [dcmread(BytesIO(instance)) for instance in instances]
        try:
            with self._association(_contexts_for(datasets)) as association:
                return tuple(_stored(association, datasets))
        except _NothingAccepted:
            return tuple(
                store_status(str(dataset.SOPInstanceUID), SOP_CLASS_NOT_SUPPORTED)
                for dataset in datasets
            )

    def find_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs of the series that the PACS says it holds (IMAGE level).

        Raises
        ------
        DeliveryRefused
            The PACS does not answer queries at this level; see :meth:`count_instances`.

        References
        ----------
        PS3.4 2026b C.4.1, C.6.2 (Study Root).
        """
        matches = self._find("IMAGE", study_instance_uid, series_instance_uid, "SOPInstanceUID")
        return frozenset(str(match.SOPInstanceUID) for match in matches)

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int | None:
        """How many instances of the series the PACS says it holds (SERIES level).

        For a PACS that answers down to series only: weaker than naming the instances. None when it
        holds the series and does not count; 0 when it does not hold it.
        """
        keyword = "NumberOfSeriesRelatedInstances"
        matches = self._find("SERIES", study_instance_uid, series_instance_uid, keyword)
        if not matches:
            return 0
        counts = [match.get(keyword) for match in matches]
        known = [int(count) for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def move_instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uids: Sequence[str],
        destination_ae_title: str,
    ) -> int:
        """Have the PACS send instances to an AE title that it knows; how many it has sent.

        Without ``sop_instance_uids``, the whole series.

        Raises
        ------
        DeliveryRefused
            The PACS offers no C-MOVE, or refuses this one: it may not know the AE title.

        References
        ----------
        PS3.4 2026b C.4.2, C.6.2.2 (Study Root).
        """
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE" if sop_instance_uids else "SERIES"
        query.StudyInstanceUID = study_instance_uid
        query.SeriesInstanceUID = series_instance_uid
        if sop_instance_uids:
            query.SOPInstanceUID = list(sop_instance_uids)
        sent = 0
        with self._association([build_context(STUDY_ROOT_MOVE)]) as association:
            self._require(association, STUDY_ROOT_MOVE)
            for answer, _ in association.send_c_move(query, destination_ae_title, STUDY_ROOT_MOVE):
                if "Status" not in answer:
                    raise self._unavailable("did not answer C-MOVE")
                sent = int(answer.get("NumberOfCompletedSuboperations") or sent)
                if answer.Status == 0xA801:
                    raise self._refused("does not know the AE title to send to (0xA801)")
                if answer.Status not in (0x0000, 0xB000, 0xFF00):
                    raise self._refused(f"answered 0x{answer.Status:04X} to C-MOVE")
        return sent

    def negotiate(
        self, sop_classes: Sequence[str], transfer_syntaxes: Sequence[str]
    ) -> Negotiation:
        """Propose every SOP class with every transfer syntax, and send nothing.

        Raises
        ------
        ValueError
            More combinations than one association can propose (125).
        """
        storage = [(sop, syntax) for sop in sop_classes for syntax in transfer_syntaxes]
        services = (VERIFICATION, STUDY_ROOT_FIND, STORAGE_COMMITMENT, STUDY_ROOT_MOVE)
        if len(storage) + len(services) > _MAX_CONTEXTS:
            raise ValueError("one association can propose 125 pairs of SOP class and syntax")
        contexts = [build_context(service) for service in services]
        contexts += [build_context(sop, syntax) for sop, syntax in storage]
        try:
            with self._association(contexts) as association:
                accepted = _accepted(association)
        except _NothingAccepted:
            accepted = set()
        offered = {abstract_syntax for abstract_syntax, _ in accepted}
        return Negotiation(
            verification=VERIFICATION in offered,
            study_root_find=STUDY_ROOT_FIND in offered,
            storage_commitment=STORAGE_COMMITMENT in offered,
            study_root_move=STUDY_ROOT_MOVE in offered,
            storage={pair: pair in accepted for pair in storage},
        )

    def _find(self, level: str, study: str, series: str, returned_keyword: str) -> list[Dataset]:
        model = STUDY_ROOT_FIND
        query = Dataset()
        query.QueryRetrieveLevel = level
        query.StudyInstanceUID = study
        query.SeriesInstanceUID = series
        setattr(query, returned_keyword, None)
        matches = []
        with self._association([build_context(model)]) as association:
            self._require(association, model)
            for answer, identifier in association.send_c_find(query, model):
                if "Status" not in answer:
                    raise self._unavailable("did not answer C-FIND")
                if answer.Status in (0xFF00, 0xFF01):
                    if identifier is not None and _is_of_series(identifier, series):
                        matches.append(identifier)
                elif 0xA700 <= answer.Status <= 0xA7FF:
                    raise self._unavailable("is out of resources for C-FIND")
                elif answer.Status != 0x0000:
                    raise self._refused(f"answered 0x{answer.Status:04X} to C-FIND at {level}")
        if level == "IMAGE":
            matches = [match for match in matches if match.get("SOPInstanceUID")]
        return matches

    @contextmanager
    def _association(self, contexts: list[PresentationContext]) -> Iterator[Association]:
        to = self._destination
        entity = AE(ae_title=to.calling_ae_title)
        entity.connection_timeout = to.connection_timeout_s
        entity.acse_timeout = to.association_timeout_s
        entity.dimse_timeout = to.dimse_timeout_s
        entity.network_timeout = to.dimse_timeout_s
        context = self._tls_context()
        association = entity.associate(
            to.host,
            to.port,
            contexts=contexts,
            ae_title=to.ae_title,
            tls_args=None if context is None else (context, to.host),
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_without_delay)],
        )
        if not association.is_established:
            raise self._why_not_established(association)
        try:
            yield association
        except RuntimeError:  # what pynetdicom raises when the association ended before a message
            if association.is_established:
                raise
            raise self._unavailable("ended the association") from None
        finally:
            if association.is_established:
                association.release()

    def _tls_context(self) -> ssl.SSLContext | None:
        if self._destination.tls is None:
            return None
        try:
            return tls_context(self._destination.tls)
        except OSError as error:  # ssl.SSLError among them
            raise DeliveryRefused(
                f"The certificates for PACS {self._destination.name} cannot be read "
                f"({type(error).__name__})",
                remedy="Correct certificate_authority, certificate and private_key in "
                "segnode.toml: PEM files that the node can read.",
            ) from None

    def _why_not_established(self, association: Association) -> Exception:
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            reason = (answer.result_source, answer.diagnostic)
            if reason == _CALLED_AE_NOT_RECOGNIZED:
                return self._refused("does not know the called AE title (its own)")
            if reason == _CALLING_AE_NOT_RECOGNIZED:
                return self._refused("does not know our calling AE title")
            if answer.result == _REJECTED_PERMANENT:
                return self._refused("rejected the association permanently")
            return self._unavailable("rejected the association for now")
        if association.rejected_contexts:
            return _NothingAccepted(self._destination.name)
        self.encryption()  # a handshake of our own says what is wrong with TLS
        return self._unavailable("could not be reached, or ended the connection at once")

    def _require(self, association: Association, sop_class: UID) -> None:
        if sop_class not in {abstract_syntax for abstract_syntax, _ in _accepted(association)}:
            raise self._refused(f"does not offer {sop_class.name}")

    def _unavailable(self, what: str, remedy: str | None = None) -> PacsUnavailable:
        return PacsUnavailable(f"PACS {self._destination.name} {what}", remedy=remedy)

    def _refused(self, what: str) -> DeliveryRefused:
        return DeliveryRefused(f"PACS {self._destination.name} {what}")


def _stored(association: Association, datasets: Sequence[Dataset]) -> Iterator[StoreStatus]:
    """One after the other, until the PACS has had enough."""
    broken = ""
    for dataset in datasets:
        uid = str(dataset.SOPInstanceUID)
        if broken:
            yield not_answered(uid, broken, sent=False)
        elif not _has_context(association, dataset):
            yield store_status(uid, SOP_CLASS_NOT_SUPPORTED)
        else:
            try:
                code = association.send_c_store(dataset).get("Status")
                time.sleep(_LET_IT_REST_S)
            except RuntimeError:  # pynetdicom's word for an association that has ended
                code = None
            if code is None:
                why = "no answer: the association ended, or the time was up"
                yield not_answered(uid, why, sent=True)
                broken = "not sent: the association had ended"
                continue
            status = store_status(uid, int(code))
            if status.answer is Answer.BUSY:
                broken = f"not sent after {status.said}"
            yield status


class _NothingAccepted(DeliveryRefused):
    """The PACS answered, and took none of the presentation contexts."""

    def __init__(self, name: str) -> None:
        super().__init__(f"PACS {name} accepted no SOP class with any transfer syntax proposed")


def _send_without_delay(event: Event) -> None:
    """Nagle's algorithm and delayed acknowledgements cost 40 ms for every message."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _contexts_for(datasets: Sequence[Dataset]) -> list[PresentationContext]:
    """Each SOP class with exactly the syntaxes that it comes in, one context for each.

    A context with several syntaxes would let the PACS choose one that an instance is not in. What
    is not compressed is offered in the default syntax too, as PS3.5 10.1 demands.
    """
    pairs: dict[tuple[UID, UID], None] = {}
    for dataset in datasets:
        syntax = dataset.file_meta.TransferSyntaxUID
        pairs[dataset.SOPClassUID, syntax] = None
        if not syntax.is_compressed and syntax.is_little_endian:
            pairs[dataset.SOPClassUID, ImplicitVRLittleEndian] = None
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs]


def _has_context(association: Association, dataset: Dataset) -> bool:
    accepted = _accepted(association)
    syntax = dataset.file_meta.TransferSyntaxUID
    convertible = not syntax.is_compressed and syntax.is_little_endian
    return (dataset.SOPClassUID, syntax) in accepted or (
        convertible and (dataset.SOPClassUID, ImplicitVRLittleEndian) in accepted
    )


def _accepted(association: Association) -> set[tuple[str, str]]:
    return {
        (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in association.accepted_contexts
    }


def _is_of_series(identifier: Dataset, series_instance_uid: str) -> bool:
    """Some PACS ignore a key that they do not index and return the whole study."""
    return str(identifier.get("SeriesInstanceUID") or series_instance_uid) == series_instance_uid
