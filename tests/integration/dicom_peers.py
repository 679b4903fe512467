"""Real peers on loopback: Orthanc as a PACS, DCMTK's storescp, and small DICOM objects to send."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)

from node.edges.orthanc_config import DicomPeer
from tests.orthanc_server import OrthancServer, free_port

STUDY = "2.25.71"
SERIES = "2.25.72"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"


def ct_instance(
    number: int,
    *,
    syntax: str = ExplicitVRLittleEndian,
    sop_class: str = CTImageStorage,
    series: str = SERIES,
) -> bytes:
    """One CT slice as a Part 10 stream."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.SOPClassUID = sop_class
    instance.SOPInstanceUID = f"2.25.{7000 + number}"
    instance.StudyInstanceUID, instance.SeriesInstanceUID = STUDY, series
    instance.PatientID, instance.PatientName = "PSEUDO1", "PSEUDO^ONE"
    instance.Modality = "CT"
    instance.InstanceNumber = number
    instance.Rows, instance.Columns = 32, 24
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.BitsAllocated = instance.BitsStored = 16
    instance.HighBit, instance.PixelRepresentation = 15, 1
    pixels = np.random.default_rng(number).integers(-1000, 1000, (32, 24), dtype=np.int16)
    instance.PixelData = pixels.tobytes()
    instance["PixelData"].VR = "OW"
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == RLELossless:
        instance.compress(RLELossless)
    else:
        instance.file_meta.TransferSyntaxUID = syntax
    stream = BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def seg_instance(*, sop_class: str = SegmentationStorage) -> bytes:
    """The least that a PACS takes for a Segmentation (its content is tested elsewhere)."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID = sop_class
    instance.SOPInstanceUID = "2.25.7999"
    instance.StudyInstanceUID, instance.SeriesInstanceUID = STUDY, "2.25.73"
    instance.PatientID, instance.PatientName = "PSEUDO1", "PSEUDO^ONE"
    instance.Modality = "SEG"
    instance.Rows, instance.Columns, instance.NumberOfFrames = 32, 24, 1
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.BitsAllocated = instance.BitsStored = 1
    instance.HighBit = instance.PixelRepresentation = 0
    instance.PixelData = bytes(range(96))
    instance["PixelData"].VR = "OB"
    stream = BytesIO()
    instance.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@contextmanager
def running_orthanc(folder: Path) -> Iterator[OrthancServer]:
    """Orthanc as the PACS ``HOSPITAL``, with DICOMweb; the node may send to it and query it."""
    node = DicomPeer("node", "SEGNODE", "127.0.0.1", free_port(), may_query=True)
    # As older PACS do, which have never heard of this class.
    older = {"RejectSopClasses": [LABEL_MAP_SEGMENTATION]}
    with OrthancServer(folder, ae_title="HOSPITAL", peers=[node], config_overrides=older) as pacs:
        yield pacs


def instance_uids(orthanc: OrthancServer) -> set[str]:
    """What it holds, by its own REST interface."""
    listed = orthanc.get("/instances?expand").json()
    return {item["MainDicomTags"]["SOPInstanceUID"] for item in listed}


@contextmanager
def running_storescp(folder: Path, *options: str) -> Iterator[int]:
    """DCMTK's storescp writing into ``folder``; yields its port."""
    port = free_port()
    command = ["/usr/bin/storescp", "--output-directory", str(folder), *options, str(port)]
    environment = {"PATH": os.environ["PATH"], "TCP_NODELAY": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        _wait_until_listening(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"the peer ended at once with status {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the peer did not listen within a minute")
