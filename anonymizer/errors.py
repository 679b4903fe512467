"""What can go wrong, sorted by what the caller does next.

::

    AnonymizerError
    ├── Rejected        this instance can never be de-identified: stop, keep, report
    │   ├── Unreadable          the bytes are not a complete DICOM instance
    │   ├── Unsupported         a SOP Class, transfer syntax or encoding that no rule covers
    │   └── StudyDestroyed      its data key was destroyed: there is no way back any more
    ├── Quarantined     it may not leave: hold it for a person
    │   ├── BurnedInText        the pixels may show who the patient is
    │   ├── ResidualIdentifier  an identifier survived in the output
    │   ├── PseudonymRemains    a pseudonym survived in an object that goes back
    │   ├── ReferenceMismatch   a reference does not resolve in the original study
    │   ├── CrosswalkMissing    the vault holds nothing for this study
    │   └── VaultError          a sealed record does not open
    │       ├── RecordAltered       altered, or not the record that was sealed in this place
    │       ├── RecordTruncated     shorter or longer than it was written
    │       ├── WrongKey            the key of that name is not the one that sealed it
    │       └── KeyMissing          the key that it names is not here
    ├── OcrUnavailable  tesseract is wanted and not installed
    ├── FolderError     python -m anonymizer cannot read or write where it should: nothing starts
    ├── KeyFileError    a key file is missing, malformed, or readable by others
    ├── EpochChanged    the pseudonym key is not the one that its epoch began with
    └── RecipeError     a recipe or profile cannot be understood: nothing starts

Messages name tags and keywords, never a value: they are stored, logged and shown.
"""

from __future__ import annotations


class AnonymizerError(Exception):
    """A failure with its cause (``str(error)``) and what a person can do about it (``remedy``)."""

    default_remedy = "Correct the cause and try again."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy or self.default_remedy


class Rejected(AnonymizerError):
    """This instance can never be de-identified as it is: stop, keep it, report why."""


class Unreadable(Rejected):
    """The bytes are not one complete DICOM instance."""

    default_remedy = "Send the instance again from its source; the received copy is kept."


class Unsupported(Rejected):
    """No rule covers the SOP Class, the transfer syntax or an encoding in the instance."""

    default_remedy = "Send CT, MR, CR, DX or PET images in a standard transfer syntax."


class StudyDestroyed(Rejected):
    """The study's data key was destroyed on purpose: nothing leads back to the patient."""

    default_remedy = (
        "Nothing to do: this was asked for. docs/security.md says how to take the study in again."
    )


class Quarantined(AnonymizerError):
    """It may not leave: hold it for a person."""

    default_remedy = "Have a person inspect the instance before anything else is done with it."


class BurnedInText(Quarantined):
    """The pixels may show who the patient is."""

    default_remedy = (
        "Look at the image; if it shows no identifying text, set Burned In Annotation "
        "(0028,0301) to NO at the source and send it again."
    )


class ResidualIdentifier(Quarantined):
    """An identifier of this patient was found in the de-identified output."""

    default_remedy = "Remove the named attribute by a line in the site's recipe, then retry."


class PseudonymRemains(Quarantined):
    """A pseudonymous value was found in an object that goes back to the hospital."""

    default_remedy = "Report this with the attribute named above; the object stays here."


class ReferenceMismatch(Quarantined):
    """A reference does not resolve in the study that the object was derived from."""

    default_remedy = "Process the series again; the object refers to other instances."


class CrosswalkMissing(Quarantined):
    """The vault holds no crosswalk, so the object cannot be given back its patient."""

    default_remedy = "Restore the vault from its backup, or process the original series again."


class VaultError(Quarantined):
    """A sealed record does not open."""

    default_remedy = "Restore the record and its key from the backup; do not edit vault files."


class RecordAltered(VaultError):
    """A sealed record was altered, or was sealed for another study, type or tenant."""

    default_remedy = "Restore the named record of this study from the vault's backup, then retry."


class RecordTruncated(VaultError):
    """A sealed record has not the length that it was written with."""

    default_remedy = "Restore the named record of this study from the vault's backup, then retry."


class WrongKey(VaultError):
    """The key-encryption key of that name is not the one that sealed the data key."""

    default_remedy = "Put the original key back under its name, then retry."


class KeyMissing(VaultError):
    """The key-encryption key that a data key is sealed with is not here."""

    default_remedy = "Put the named key back from its backup, then retry (`segnode keys list`)."


class OcrUnavailable(AnonymizerError):
    """Text in pixels cannot be looked for: tesseract is not installed."""

    default_remedy = "Install tesseract (Debian: apt-get install tesseract-ocr)."


class FolderError(AnonymizerError):
    """The folders to read from and to write to cannot be used."""

    default_remedy = "Name a folder with DICOM instances, and a second one apart from it."


class KeyFileError(AnonymizerError):
    """A key file is missing, malformed, or readable by others than its owner."""

    default_remedy = "Make the key file readable by its owner only (chmod 600)."


class EpochChanged(AnonymizerError):
    """The pseudonym key is not the one that its epoch began with: nothing starts."""

    default_remedy = (
        "Put the original key back. To change it on purpose, begin a new epoch with "
        "`segnode keys new-epoch`."
    )


class RecipeError(AnonymizerError):
    """A recipe or profile names something that does not exist: refuse to start."""

    default_remedy = "Correct the named line of the recipe."
