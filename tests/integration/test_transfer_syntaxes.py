"""A series comes in and a SEG goes back, whatever transfer syntax its sender likes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from tests.orthanc_server import OrthancServer
from tests.running_node import DEMO_CT, RunningNode, Study, made_up_study, segmentations

SLICES = DEMO_CT[40:58]

#: Transfer syntax, the DCMTK program that writes it, and how storescu proposes it.
SYNTAXES: Sequence[tuple[UID, Sequence[str], str]] = (
    (ImplicitVRLittleEndian, ("dcmconv", "+ti"), "-xi"),
    (ExplicitVRLittleEndian, ("dcmconv", "+te"), "-xe"),
    (ExplicitVRBigEndian, ("dcmconv", "+tb"), "-xb"),
    (DeflatedExplicitVRLittleEndian, ("dcmconv", "+td"), "-xd"),
    (RLELossless, ("dcmcrle",), "-xr"),
    (JPEGLosslessSV1, ("dcmcjpeg", "+e1"), "-xs"),
    (JPEG2000Lossless, (), "-xv"),
)


def written_in(study: Study, syntax: UID, program: Sequence[str]) -> Study:
    """The study with every file in another transfer syntax, its pixel values unchanged."""
    for file in study.files:
        if program:
            native = file.with_suffix(".native")
            subprocess.run(["/usr/bin/dcmdjpls", str(file), str(native)], check=True)
            name, *options = program
            subprocess.run([f"/usr/bin/{name}", *options, str(native), str(file)], check=True)
            native.unlink()
        else:  # DCMTK has no encoder for JPEG 2000
            instance = pydicom.dcmread(file)
            instance.decompress()
            instance.compress(syntax)
            instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID
            instance.save_as(file)
        assert pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    return study


@pytest.mark.parametrize(
    ("syntax", "program", "option"), SYNTAXES, ids=[one[0].keyword for one in SYNTAXES]
)
def test_a_series_in_this_transfer_syntax_comes_back_as_a_seg(
    node: RunningNode,
    pacs: OrthancServer,
    tmp_path: Path,
    syntax: UID,
    program: Sequence[str],
    option: str,
) -> None:
    """Received, de-identified, decoded, segmented and returned; JPEG-LS is the other tests' own."""
    study = written_in(made_up_study(tmp_path / "ct", SLICES), syntax, program)
    sent = node.receive(study, options=[option])
    assert sent.returncode == 0, sent.stderr
    instance = node.orthanc(f"/series/{node.series_id(study)}").json()["Instances"][0]
    assert node.orthanc(f"/instances/{instance}/metadata/TransferSyntax").text == syntax
    job = node.wait_for(study)
    assert (job["state"], job["cause"]) == ("confirmed", "")
    [seg] = segmentations(pacs, study)
    assert len(seg) > 100_000
