"""Every transfer syntax comes in, by C-STORE and by STOW-RS, exactly as it was sent."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE

from node.edges.orthanc import Orthanc
from node.edges.orthanc_config import DicomPeer
from tests.orthanc_server import REPOSITORY, OrthancServer

HERE = "127.0.0.1"
DATA = REPOSITORY.parent / "shared" / "data"
SYNTAXES = DATA / "ts_one_ct_15_syntaxes_cornerstone3d"
HTJ2K = DATA / "pydicom_data_odd" / "HTJ2KLossless_08_RGB.dcm"
LABEL_MAP_SEG = DATA / "seg_sr_highdicom" / "seg_image_sm_control_labelmap.dcm"
FILES = sorted(file for file in SYNTAXES.glob("*") if file.name != "SOURCE.txt")
pytestmark = pytest.mark.skipif(not FILES, reason="no ../shared/data beside this clone")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancServer]:
    """The node's Orthanc with one sender."""
    sender = DicomPeer("scanner", "SCANNER", HERE, 11112)
    folder = tmp_path_factory.mktemp("orthanc")
    with OrthancServer(folder, ae_title="NODE", peers=[sender]) as started:
        yield started


@pytest.fixture(scope="module")
def orthanc(server: OrthancServer) -> Iterator[Orthanc]:
    """The node's client of it."""
    with closing(Orthanc(server.url, *server.auth)) as client:
        yield client


def c_store(server: OrthancServer, instance: Dataset) -> int:
    """Status of a C-STORE that proposes the instance's own transfer syntax alone."""
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(instance.SOPClassUID, instance.file_meta.TransferSyntaxUID)
    association = ae.associate(HERE, server.dicom_port, ae_title="NODE")
    assert association.is_established, "association or its transfer syntax refused"
    try:
        return int(association.send_c_store(instance).Status)
    finally:
        association.release()


def stow(server: OrthancServer, data: bytes) -> int:
    """HTTP status of a STOW-RS request (PS3.18 10.5) with one instance."""
    boundary = uuid.uuid4().hex
    body = b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n--%b--\r\n" % (
        boundary.encode(), data, boundary.encode(),
    )  # fmt: skip
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    headers = {"Content-Type": content_type, "Accept": "application/dicom+json"}
    return server.post("/dicom-web/studies", content=body, headers=headers).status_code


def as_new_instance(file: Path) -> Dataset:
    """The file's object under a UID of its own, with the identifiers that Orthanc requires."""
    instance = dcmread(file)
    instance.SOPInstanceUID = f"2.25.{uuid.uuid4().int}"
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not instance.get(keyword):
            setattr(instance, keyword, "2.25.1")
    return instance


def as_bytes(instance: Dataset) -> bytes:
    """Its Part 10 stream."""
    buffer = BytesIO()
    instance.save_as(buffer)
    return buffer.getvalue()


def received(orthanc: Orthanc, server: OrthancServer, instance: Dataset) -> tuple[str, bytes]:
    """Orthanc's transfer syntax and bytes of what it keeps under the instance's UID."""
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": instance.SOPInstanceUID}}
    (instance_id,) = server.post("/tools/find", json=query).json()
    syntax = orthanc.metadata(instance_id)["TransferSyntax"]
    return syntax, orthanc.instance_file(instance_id)


def values(data: bytes) -> list[tuple[int, object]]:
    """Tag and value of every element. Not its VR: three files give compressed Pixel Data VR OW,
    which PS3.5 A.4 forbids, and Orthanc writes OB.
    """
    return [(element.tag, element.value) for element in dcmread(BytesIO(data))]


ALL = [*FILES, HTJ2K, LABEL_MAP_SEG]


@pytest.mark.parametrize("file", ALL, ids=[file.name[-48:] for file in ALL])
def test_c_store_keeps_syntax_and_data_set(
    server: OrthancServer, orthanc: Orthanc, file: Path
) -> None:
    """Proves that Orthanc takes the syntax and transcodes nothing."""
    instance = as_new_instance(file)
    assert c_store(server, instance) == 0x0000
    syntax, data = received(orthanc, server, instance)
    assert syntax == instance.file_meta.TransferSyntaxUID
    assert values(data) == values(as_bytes(instance))


@pytest.mark.parametrize("file", ALL, ids=[file.name[-48:] for file in ALL])
def test_stow_keeps_every_byte(server: OrthancServer, orthanc: Orthanc, file: Path) -> None:
    """Proves the same for DICOMweb, byte for byte."""
    instance = as_new_instance(file)
    data = as_bytes(instance)
    assert stow(server, data) == 200
    assert received(orthanc, server, instance) == (instance.file_meta.TransferSyntaxUID, data)


@pytest.mark.parametrize("file", ALL, ids=[file.name[-48:] for file in ALL])
def test_header_of_every_syntax_reads_like_the_whole_object(
    server: OrthancServer, orthanc: Orthanc, file: Path
) -> None:
    """Proves that the cut before the pixel data is right, deflated and big endian included."""
    instance = as_new_instance(file)
    header = orthanc.instance_header(orthanc.store(as_bytes(instance)))
    read = dcmread(BytesIO(header), stop_before_pixels=True)
    assert read == dcmread(BytesIO(as_bytes(instance)), stop_before_pixels=True)


def test_calling_ae_title_and_address_are_kept_with_a_received_object(
    server: OrthancServer, orthanc: Orthanc
) -> None:
    """Proves what "send it back to where it came from" relies on."""
    instance = as_new_instance(FILES[0])
    assert c_store(server, instance) == 0x0000
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": instance.SOPInstanceUID}}
    (instance_id,) = server.post("/tools/find", json=query).json()
    metadata = orthanc.metadata(instance_id)
    assert metadata["Origin"] == "DicomProtocol"
    assert metadata["RemoteAET"] == "SCANNER"
    assert metadata["CalledAET"] == "NODE"
    assert metadata["RemoteIP"] == HERE
