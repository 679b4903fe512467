"""One de-identifier over one folder, in a process of its own: CPU time and peak memory as JSON.

    deidentifiers.py TOOL IN OUT

Run by ``bench/deidentify.py`` with the interpreter that has TOOL. The first file is de-identified
once before the clock starts, so that tables are loaded and imports done.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).resolve().parents[1] / "anonymizer" / "profiles" / "ps315_e1_1.json"
Run = Callable[[Path, Path], None]


def plain_copy() -> Run:
    """The floor: nothing is de-identified."""

    def run(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)

    return run


def ours() -> Run:
    """This repository, as the node calls it: one object per series."""
    sys.path.insert(0, str(PROFILE.parents[2]))
    from anonymizer import Deidentifier, PseudonymKeys, basic_policy

    deidentifier = Deidentifier(basic_policy(), PseudonymKeys.from_secret(bytes(32)))

    def run(source: Path, target: Path) -> None:
        result = deidentifier.deidentify(source)
        with target.open("wb") as file:
            file.writelines((result.header, result.pixel_data))

    return run


def ours_one_by_one() -> Run:
    """This repository without the memory of a series."""
    sys.path.insert(0, str(PROFILE.parents[2]))
    from anonymizer import PseudonymKeys, basic_policy, deidentify_instance

    policy, keys = basic_policy(), PseudonymKeys.from_secret(bytes(32))

    def run(source: Path, target: Path) -> None:
        result = deidentify_instance(source, policy, keys)
        with target.open("wb") as file:
            file.writelines((result.header, result.pixel_data))

    return run


def deid() -> Run:
    """pydicom/deid with every row of Table E.1-1 as a line of its recipe."""
    import hashlib
    import logging

    from deid.config import DeidRecipe
    from deid.dicom.parser import DicomParser

    logging.disable(logging.CRITICAL)

    def new_uid(item: Any, value: Any, field: Any, dicom: Any, element: Any = None) -> str:
        original = str(getattr(field, "element", field).value)
        return "2.25." + str(int(hashlib.sha256(original.encode()).hexdigest()[:30], 16))

    def run(source: Path, target: Path) -> None:
        parser = DicomParser(str(source), recipe=DeidRecipe(str(recipe)))
        parser.define("new_uid", new_uid)
        parser.parse(strip_sequences=False, remove_private=True)
        parser.dicom.save_as(target)

    recipe = Path(os.environ["BENCH_RECIPE"])
    recipe.write_text(_deid_recipe(), "utf-8")
    return run


def _deid_recipe() -> str:
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    lines = ["FORMAT dicom", "", "%header", ""]
    for row in json.loads(PROFILE.read_text("utf-8"))["rows"]:
        try:
            tag = int(row["tag"].replace(",", ""), 16)
            vr, keyword = dictionary_VR(tag), keyword_for_tag(tag)
        except (ValueError, KeyError):
            continue
        if row.get("rtn_long_modif_dates") == "C" and vr in ("DA", "DT"):
            lines.append(f"JITTER {keyword} -37")
        elif row.get("rtn_long_modif_dates") == "C":
            continue
        elif "U" in row["basic"] and vr == "UI":
            lines.append(f"REPLACE {keyword} func:new_uid")
        elif "U*" in row["basic"]:
            continue
        elif "Z" in row["basic"]:
            lines.append(f"BLANK {keyword}")
        elif row["basic"] == "D" and vr not in ("SQ", "OB"):
            lines.append(f"REPLACE {keyword} ANON")
        else:
            lines.append(f"REMOVE {keyword}")
    return "\n".join(lines) + "\n"


def dicognito() -> Run:
    """dicognito with a fixed seed."""
    import pydicom
    from dicognito.anonymizer import Anonymizer

    anonymizer = Anonymizer(seed="bench")

    def run(source: Path, target: Path) -> None:
        dataset = pydicom.dcmread(source)
        anonymizer.anonymize(dataset)
        dataset.save_as(target)

    return run


def dicom_anonymizer() -> Run:
    """KitwareMedical's, with its newest table."""
    from dicomanonymizer import simpledicomanonymizer

    def rules() -> Any:
        return simpledicomanonymizer.initialize_actions("dicomfields_2026c")

    def run(source: Path, target: Path) -> None:
        simpledicomanonymizer.anonymize_dicom_file(str(source), str(target), base_rules_gen=rules)

    return run


def idiscore() -> Run:
    """idiscore with its default profile."""
    import pydicom
    from idiscore.defaults import create_default_core

    core = create_default_core()

    def run(source: Path, target: Path) -> None:
        core.deidentify(pydicom.dcmread(source)).save_as(target)

    return run


TOOLS: dict[str, Callable[[], Run]] = {
    "file copy": plain_copy,
    "segnode": ours,
    "segnode, no series memory": ours_one_by_one,
    "deid": deid,
    "dicognito": dicognito,
    "dicom-anonymizer": dicom_anonymizer,
    "idiscore": idiscore,
}


def measured(tool: str, source: Path, target: Path) -> dict[str, float]:
    """CPU seconds for all files of ``source``, and the peak memory of this process in MB."""
    warnings.simplefilter("ignore")
    run = TOOLS[tool]()
    files = sorted(source.glob("*.dcm"))
    target.mkdir(parents=True)
    run(files[0], target / "first.dcm")
    (target / "first.dcm").unlink()
    before, started = time.process_time(), time.perf_counter()
    for file in files:
        run(file, target / file.name)
    cpu_s, wall_s = time.process_time() - before, time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's before exec
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    return {"cpu_s": cpu_s, "wall_s": wall_s, "peak_mb": peak_kb / 1024, "instances": len(files)}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
