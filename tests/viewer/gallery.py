"""Writes docs/gallery.md and its pictures: the demo's CT and its results as a viewer shows them.

``segnode process`` makes the results, an Orthanc keeps them, the newest OHIF of ``ohif.lock`` shows
them. Nothing is drawn here. Run by ``make gallery``.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage, SegmentationStorage

from tests.conftest import NO_BRIDGE
from tests.orthanc_server import OrthancServer
from tests.viewer.cases import part10
from tests.viewer.ohif import HOME, REPOSITORY, VERSIONS, Reader, chromium, require_viewer
from tests.viewer.origin import one_origin

DOCS = REPOSITORY / "docs"
DEMO_CT = REPOSITORY / "deploy" / "demo" / "ct"
MODEL = "ct_lungs"
MOST_BYTES = 300_000
IN_THREE_DIMENSIONS = "mprAnd3DVolumeViewport"

PAGE = """\
# Gallery

The demo's CT and what the node returns for it, made by `make gallery`: `segnode process` with the
model `{model}` makes the results; OHIF {version}, as published, shows them in Chromium. Outlines
and numbers are the model's; nobody corrected them, and they are not for diagnosis. That the pixels
lie where they should is measured by `make test-viewer`.

The CT is patient CMB-CRC-MSB-01068 of the collection CMB-CRC (Cancer Moonshot Biobank, Colorectal
Cancer) of The Cancer Imaging Archive, [doi:10.7937/DJG7-GZ87](https://doi.org/10.7937/DJG7-GZ87),
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). Masks, contours and text were added.

## The Segmentation over its source, in OHIF

![A slice with both lungs coloured](img/gallery-2d.png)

## The same Segmentation in three planes and as surfaces, in OHIF

![Three planes and a 3D view with both lungs as surfaces](img/gallery-3d.png)

## As a Secondary Capture, for a PACS that shows no Segmentation

The stored picture as it is: contours, a fill of a fifth, what it is and what it is not for.

![A slice with contours and text burned in](img/gallery-capture.png)

## As a Basic Text SR, for people who read reports

In OHIF:

![The text of the report](img/gallery-text-sr.png)

As DCMTK's `dsrdump` prints it:

```
{report}
```
"""


@dataclass(frozen=True)
class Study:
    """One series and its results."""

    source: list[Dataset]
    results: list[Dataset]

    def results_of(self, sop_class: str) -> list[Dataset]:
        """The results of one SOP class, in instance order; at least one."""
        found = [result for result in self.results if result.SOPClassUID == sop_class]
        assert found, "segnode process wrote no such result"
        return sorted(found, key=lambda result: int(result.InstanceNumber))


def main() -> None:
    """Write the page."""
    executable = require_viewer()
    with tempfile.TemporaryDirectory() as scratch:
        study = Study(read(DEMO_CT), process(DEMO_CT, Path(scratch) / "results"))
        pictures = shown(study, executable, Path(scratch) / "orthanc")
        report = dumped(study.results_of(BasicTextSRStorage)[0], Path(scratch) / "report.dcm")
    for name, picture in (pictures | {"capture": captured(study)}).items():
        (DOCS / "img" / f"gallery-{name}.png").write_bytes(small(picture))
    (DOCS / "gallery.md").write_text(
        PAGE.format(model=MODEL, version=VERSIONS[0], report=report), encoding="utf-8"
    )
    print("gallery: docs/gallery.md")


def read(folder: Path) -> list[Dataset]:
    """Every instance in a folder, at any depth."""
    return [dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


def process(folder: Path, out: Path) -> list[Dataset]:
    """What the node makes of a folder: SEG, Secondary Capture and Basic Text SR."""
    wanted = [word for kind in ("seg", "capture", "text_sr") for word in ("--result", kind)]
    segnode = (sys.executable, "-m", "node.cli")
    subprocess.run(
        [*segnode, "process", folder, "--model", MODEL, "--out", out, *wanted],
        cwd=REPOSITORY,
        check=True,
    )
    return read(out)


def shown(study: Study, executable: str, storage: Path) -> dict[str, Image.Image]:
    """The pages of the viewer, by name of the picture."""
    with (
        OrthancServer(storage, bridge=NO_BRIDGE) as orthanc,
        one_origin(HOME / VERSIONS[0], orthanc.url, orthanc.auth) as origin,
        chromium(executable, width=1200, height=760) as context,
    ):
        for instance in (*study.source, *study.results):
            orthanc.upload(part10(instance))
        with Reader(context, origin) as reader:
            flat = read_in_two_dimensions(study, reader)
        with Reader(context, origin) as reader:
            return flat | read_in_three_dimensions(study, reader)


def read_in_two_dimensions(study: Study, reader: Reader) -> dict[str, Image.Image]:
    """The Segmentation over a slice, and the report."""
    reader.open_study(study.source[0].StudyInstanceUID)
    reader.open_segmentation(study.results_of(SegmentationStorage)[0].SeriesDescription)
    reader.scroll_to(middle(study).ImagePositionPatient)
    over_a_slice = reader.page_picture()
    reader.open_document(study.results_of(BasicTextSRStorage)[0].SeriesDescription)
    return {"2d": over_a_slice, "text-sr": reader.page_picture()}


def read_in_three_dimensions(study: Study, reader: Reader) -> dict[str, Image.Image]:
    """The Segmentation in three planes and as surfaces."""
    reader.open_study(study.source[0].StudyInstanceUID, IN_THREE_DIMENSIONS)
    reader.open_segmentation(study.results_of(SegmentationStorage)[0].SeriesDescription)
    return {"3d": reader.page_picture()}


def middle(study: Study) -> Dataset:
    """The source slice in the middle of what the captures show."""
    captures = study.results_of(SecondaryCaptureImageStorage)
    chosen = captures[len(captures) // 2].SourceImageSequence[0].ReferencedSOPInstanceUID
    return next(source for source in study.source if source.SOPInstanceUID == chosen)


def captured(study: Study) -> Image.Image:
    """The stored picture in the middle."""
    captures = study.results_of(SecondaryCaptureImageStorage)
    return Image.fromarray(np.asarray(captures[len(captures) // 2].pixel_array))


def dumped(report: Dataset, file: Path) -> str:
    """The report in DCMTK's words, without its header."""
    file.write_bytes(part10(report))
    arguments = ["--number-nested-items", "--print-long-values", "--no-document-header"]
    said = subprocess.run(
        ["/usr/bin/dsrdump", *arguments, file],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return said.stdout.strip()


def small(picture: Image.Image) -> bytes:
    """As PNG of at most :data:`MOST_BYTES`."""
    while True:
        stream = io.BytesIO()
        picture.convert("RGB").quantize(128).save(stream, "PNG", optimize=True)
        if stream.tell() <= MOST_BYTES:
            return stream.getvalue()
        picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10))


if __name__ == "__main__":
    main()
