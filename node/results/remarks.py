"""What a person should know of a Segmentation that is right and still may not be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom.dataset import Dataset

from node.kinds import ResultKind

#: Above these, Weasis 4.6 shows nothing (Weasis 680), and OHIF needs half a minute and more.
MANY_FRAMES, TOO_MANY_FRAMES = 400, 1000


def remarks(kind: ResultKind, segmentations: Sequence[Dataset]) -> Iterator[str]:
    """One sentence for each thing, with what can be done.

    Frames of a BINARY Segmentation follow one another without padding (PS3.5 8.1.1), so a frame
    whose pixels do not fill whole bytes begins inside one: Orthanc cannot serve it.
    """
    columns = int(segmentations[0].Columns)
    if kind is ResultKind.SEG and columns % 8:
        yield (
            f"The images have {columns} columns, no multiple of 8: Orthanc cannot serve the frames "
            'of their Segmentation, nor OHIF show them. segmentation_type = "auto" sends such '
            "destinations a label map instead; other archives take it as it is."
        )
    frames = max(int(one.NumberOfFrames) for one in segmentations)
    if frames > MANY_FRAMES:
        slow = f", and above {TOO_MANY_FRAMES} others are slow" if frames > TOO_MANY_FRAMES else ""
        yield (
            f"A Segmentation of this result has {frames} frames: Weasis 4.6 shows none of more "
            f"than {MANY_FRAMES}{slow}. `groups` in [results] of the model's manifest splits it."
        )
