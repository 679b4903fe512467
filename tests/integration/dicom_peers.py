"""Real peers on loopback: Orthanc as a PACS, DCMTK's storescp, and small DICOM objects to send."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)

REPOSITORY = Path(__file__).resolve().parents[2]
STUDY = "2.25.71"
SERIES = "2.25.72"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ct_instance(
    number: int, *, syntax: str = ExplicitVRLittleEndian, sop_class: str = CTImageStorage
) -> bytes:
    """One CT slice as a Part 10 stream."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.SOPClassUID = sop_class
    instance.SOPInstanceUID = f"2.25.{7000 + number}"
    instance.StudyInstanceUID, instance.SeriesInstanceUID = STUDY, SERIES
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


@dataclass(frozen=True)
class OrthancPeer:
    """A running Orthanc."""

    dicom_port: int
    http_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def instance_uids(self) -> set[str]:
        """What it holds, by its own REST interface."""
        listed = self._get("/instances?expand")
        return {item["MainDicomTags"]["SOPInstanceUID"] for item in listed}

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(  # noqa: S310
            self.url + path, headers={"Authorization": "Basic c2VnOnNlY3JldA=="}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)


def orthanc_root() -> Path:
    """Where `make setup` unpacked Orthanc; skips the test where it did not."""
    root = Path(os.environ.get("SEGNODE_ORTHANC_ROOT", REPOSITORY / ".orthanc"))
    if not (root / "usr/sbin/Orthanc").exists() or shutil.which("bwrap") is None:
        if "CI" in os.environ:
            pytest.fail("no Orthanc: run `make setup`")
        pytest.skip("no Orthanc: run `make setup`")
    return root


@contextmanager
def running_orthanc(folder: Path) -> Iterator[OrthancPeer]:
    """Orthanc as a PACS that takes everything, with DICOMweb, user ``seg`` and ``secret``."""
    root = orthanc_root()
    peer = OrthancPeer(dicom_port=free_port(), http_port=free_port())
    (folder / "orthanc.json").write_text(
        json.dumps(
            {
                "DicomAet": "HOSPITAL",
                "DicomCheckCalledAet": True,
                "DicomPort": peer.dicom_port,
                "HttpPort": peer.http_port,
                "DicomAlwaysAllowFind": True,
                # As older PACS do, which have never heard of this class.
                "RejectSopClasses": [LABEL_MAP_SEGMENTATION],
                "AuthenticationEnabled": True,
                "RegisteredUsers": {"seg": "secret"},
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            }
        )
    )
    command = ["bwrap", "--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc"]
    command += ["--die-with-parent", "--bind", str(folder), str(folder)]
    command += ["Orthanc", str(folder / "orthanc.json")]
    environment = {"PATH": os.environ["PATH"], "TCP_NODELAY": "1", "LC_ALL": "C.UTF-8"}
    with (folder / "orthanc.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _wait_until_listening(peer.http_port, process)
            yield peer
        finally:
            process.terminate()
            process.wait(timeout=60)


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
