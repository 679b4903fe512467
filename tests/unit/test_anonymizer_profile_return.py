"""Whatever options a site chooses, a result finds its way back to the patient."""

from __future__ import annotations

import io

import pydicom
import pytest

from anonymizer import (
    check_released,
    deidentify_instance,
    deidentify_series,
    reidentify_object,
)
from anonymizer.options import Option
from anonymizer.profile import profile_with
from tests.identified_ct import PATIENT_ID, STUDY, STUDY_DATE, ct_instance, part10
from tests.unit.test_anonymizer_reidentify import KEYS, derived

NOT_IN_THE_NODE = {Option.RETAIN_UIDS, Option.CLEAN_PIXEL_DATA}
SETS = {
    "none": frozenset[Option](),
    "all-full-dates": frozenset(Option) - NOT_IN_THE_NODE - {Option.RETAIN_MODIFIED_DATES},
    "all-modified-dates": frozenset(Option) - NOT_IN_THE_NODE - {Option.RETAIN_FULL_DATES},
    **{option.value: frozenset({option}) for option in Option if option not in NOT_IN_THE_NODE},
}


@pytest.mark.parametrize("name", SETS)
def test_segmentation_made_under_these_options_gets_its_patient_back(name: str) -> None:
    """Original identity and dates restored, every reference resolved, the gate content."""
    instances = [
        part10(ct_instance(number, InstitutionName="Overbrook", StudyDescription="Thorax"))
        for number in (1, 2, 3)
    ]
    data, crosswalk = derived(instances, profile_with(SETS[name]))
    released = reidentify_object(data, crosswalk)
    check_released(released, crosswalk)
    ds = pydicom.dcmread(io.BytesIO(released))
    assert (ds.PatientID, ds.StudyInstanceUID, ds.StudyDate) == (PATIENT_ID, STUDY, STUDY_DATE)
    assert ds.StudyDescription == "Thorax"
    assert "PatientIdentityRemoved" not in ds


@pytest.mark.parametrize("name", SETS)
def test_series_engine_gives_the_same_bytes_under_these_options(name: str) -> None:
    """What is reused from slice to slice changes nothing, whatever is kept or cleaned."""
    instances = []
    for number in range(1, 7):
        ds = ct_instance(
            number,
            InstitutionName="Overbrook",
            StudyDescription="Thorax axial Zhivago",
            ImageComments=f"slice {number} 5mm" if number < 5 else "Featherstone",
            DeviceSerialNumber="SN-1",
            PatientAge="097Y",
            AcquisitionTime=f"1011{number:02}",
        )
        block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", str(100 * number))
        block.add_new(0xF0, "LO", "Featherstone")
        instances.append(part10(ds))
    policy = profile_with(SETS[name])
    one_by_one = [deidentify_instance(data, policy, KEYS).data for data in instances]
    as_series = [result.data for result in deidentify_series(instances, policy, KEYS)]
    assert as_series == one_by_one
