"""Settings: what is wrong stops the start and is named; the example documents everything."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from node import service, settings
from node.pipeline import STEPS
from node.settings import BadSettings, DicomPeer, Settings, load
from node.wiring import Hospital

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "segnode.example.toml"
LISTS = ("dicom_peers", "dicomweb_peers", "rules")


def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Settings:
    file = tmp_path / "segnode.toml"
    file.write_text(text)
    monkeypatch.setenv("SEGNODE_CONFIG", str(file))
    return load()


def documented() -> dict[str, Any]:
    """The example, with what stands behind a comment sign."""
    return tomllib.loads(re.sub(r"(?m)^# ?(?=[a-z_]+ = )", "", EXAMPLE.read_text()))


def documented_settings() -> set[str]:
    """Dotted names in the example, those behind a comment sign included."""
    names = set()

    def walk(prefix: str, table: object) -> None:
        if isinstance(table, list):
            for one in table:
                walk(prefix, one)
        elif isinstance(table, dict):
            for key, value in table.items():
                names.add(prefix + key)
                walk(f"{prefix}{key}.", value)

    walk("", documented())
    return names


def known_settings(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of every field, sections followed."""
    names = set()
    for name, field in model.model_fields.items():
        names.add(prefix + name)
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            for inner in (candidate, *getattr(candidate, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    names |= known_settings(inner, f"{prefix}{name}.")
    return names


def test_the_example_documents_every_setting_and_no_other() -> None:
    """Adding a setting without a word about it fails here, and so does a stale word."""
    assert documented_settings() == known_settings(Settings)


def test_the_example_is_a_configuration_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied as it is, it starts."""
    found = loaded(tmp_path, monkeypatch, EXAMPLE.read_text())
    assert found.rules[0].model == "ct_lungs"


def test_the_defaults_in_the_example_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each section is that of an empty file; each peer and rule, one that says what it must."""
    shown = loaded(tmp_path, monkeypatch, EXAMPLE.read_text())
    plain = loaded(tmp_path, monkeypatch, "")
    for name in Settings.model_fields:
        if name not in LISTS:
            assert getattr(shown, name) == getattr(plain, name), name
    for one in (one for name in LISTS for one in getattr(shown, name)):
        fields = type(one).model_fields.items()
        musts = {name: getattr(one, name) for name, field in fields if field.is_required()}
        assert one == type(one)(**musts), one.name


def test_the_defaults_behind_a_comment_sign_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows from other settings or from the steps is as the example says."""
    shown, plain = documented(), loaded(tmp_path, monkeypatch, "")
    assert shown["deadlines_s"] == {step.name: step.deadline_s for step in STEPS}
    for name in ("secrets", "artifacts", "exports", "vault"):
        assert Path(shown[f"{name}_dir"]) == plain.folder(name)
    ahead = Hospital(plain).terms.at_most["gpu"]
    assert shown["workers"]["compute_ahead"] == ahead


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container sets ports without a file."""
    monkeypatch.setenv("SEGNODE_DICOM__PORT", "11112")
    assert loaded(tmp_path, monkeypatch, "[dicom]\nport = 104").dicom.port == 11112


def test_a_named_file_that_is_missing_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without peers and rules would start, receive nothing and say nothing."""
    monkeypatch.setenv("SEGNODE_CONFIG", "/nowhere/segnode.toml")
    with pytest.raises(BadSettings, match="SEGNODE_CONFIG"):
        load()


RULE = """
[[rules]]
name = "r"
model = "ct_lungs"
when = [{condition}]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dicom]\nport = 70000", "dicom.port"),
        ("[dicom]\nae_title = 'SEVENTEEN_LETTERS'", "dicom.ae_title"),
        ("[dicom]\nprot = 104", "dicom.prot"),
        (RULE.format(condition='{tag = "PatientAgge", equals = "1"}'), "PatientAgge"),
        (RULE.format(condition='{tag = "Modality"}'), "rules.0.when.0"),
        (RULE.format(condition='{tag = "Modality", matches = "("}'), "regular expression"),
        (RULE.format(condition='{geometry = "colour", equals = 1}'), "rules.0.when.0.geometry"),
        (
            RULE.format(condition='{tag = "Modality", equals = "CT"}')
            + 'destinations = ["nowhere"]',
            "nowhere",
        ),
    ],
)
def test_a_bad_value_stops_the_start_and_names_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """The person who wrote the line finds it."""
    with pytest.raises(BadSettings, match=re.escape(said)):
        loaded(tmp_path, monkeypatch, text)


def test_a_rule_that_names_an_unknown_model_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is not installed is found out before a patient waits for it."""
    text = RULE.format(condition='{tag = "Modality", equals = "CT"}').replace(
        "ct_lungs", "ct_liver"
    )
    found = loaded(tmp_path, monkeypatch, f'models_dir = "{REPOSITORY / "models"}"\n' + text)
    with pytest.raises(BadSettings, match=r"rules\.0 \(r\).*ct_liver"):
        _ = Hospital(found).models


def test_an_error_never_repeats_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password typed into the wrong field does not land in a log."""
    with pytest.raises(BadSettings) as raised:
        loaded(tmp_path, monkeypatch, "[dicom]\nport = 'hunter2-secret'")
    assert "hunter2" not in str(raised.value)
    assert settings.BadSettings.default_remedy in raised.value.remedy


@pytest.mark.parametrize(
    ("results", "said"),
    [(["sr"], 'add "seg"'), ([], "at least 1"), (["seg", "seg"], "two results"), (["x"], "'seg'")],
)
def test_a_destination_that_cannot_be_served_stops_the_start(results: list[str], said: str) -> None:
    """A report without the Segmentation it refers to, no kind at all, a kind that is none."""
    with pytest.raises(ValidationError, match=said):
        DicomPeer(name="p", ae_title="P", host="h", port=104, results=results)


@pytest.mark.parametrize(
    ("dicom", "peer", "wrong"),
    [
        ({"tls": True}, {}, "`certificate` and `private_key`"),
        ({"tls": True, "certificate": "c", "private_key": "k"}, {}, "certificate_authority"),
        ({}, {"tls": True}, "`certificate` and `private_key`"),
        ({"certificate": "c", "private_key": "k"}, {"tls": True}, "peer pacs: TLS needs"),
    ],
)
def test_tls_without_its_certificates_stops_the_start(
    dicom: dict[str, object], peer: dict[str, object], wrong: str
) -> None:
    """Nobody finds out at night that a PACS is called in plain text after all, or not at all."""
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 104, **peer}
    with pytest.raises(ValidationError, match=wrong):
        Settings.model_validate({"dicom": dicom, "dicom_peers": [pacs]})


def test_tls_that_the_node_cannot_set_up_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port of an Orthanc that something else starts would go on speaking plain text."""
    text = (
        '[dicom]\ntls = true\ncertificate = "a"\nprivate_key = "b"\ncertificate_authority = "c"\n'
        '[orthanc]\nurl = "http://orthanc:8042"\n'
    )
    with pytest.raises(BadSettings, match=r"dicom\.tls"):
        next(service.up(loaded(tmp_path, monkeypatch, text)))
