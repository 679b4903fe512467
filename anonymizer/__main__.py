"""De-identify a folder: ``python -m anonymizer IN OUT``.

Every file under IN is taken as a DICOM instance. What passes is written to
OUT/<study>/<series>/<instance>.dcm, all three names pseudonymous; the rest is counted by cause.
"""

from __future__ import annotations

import argparse
import collections
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import DeidentifiedInstance, OriginalIdentity
from anonymizer.errors import AnonymizerError, BurnedInText, FolderError, RecipeError, Rejected
from anonymizer.keys import PseudonymKeys, random_secret, read_or_create_key_file
from anonymizer.options import DEFAULT_OPTIONS, Option, options_named
from anonymizer.profile import Policy, profile_with
from anonymizer.recipe import apply_recipe
from anonymizer.series import Deidentifier
from anonymizer.vault import FolderRecords, Keyring, Vault


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if every instance passed, 1 if some did not, 2 if the work did not go on."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        return _run(options, console)
    except AnonymizerError as error:
        console.print(f"{error}. {error.remedy}", style="red", markup=False)
    except OSError as error:  # without the path that it names
        console.print(f"Stopped: {error.strerror}", style="red", markup=False)
    return 2


@dataclass
class Outcomes:
    """What became of the files so far."""

    at_length: int = 0
    """Instances de-identified element by element, as the first ones of a series are."""
    from_memory: int = 0
    """Instances de-identified with what others of their series had taught."""
    cleaned: int = 0
    """Instances whose pixels were cleaned."""
    copies: int = 0
    """Files with an instance that another file held, too."""
    refused: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """By class of error, and cause."""
    originals: dict[str, dict[str, OriginalIdentity]] = field(default_factory=dict, repr=False)
    """What was written, by pseudonymous Series and SOP Instance UID; the first with its header."""


def _run(options: argparse.Namespace, console: Console) -> int:
    policy = _policy(options)
    files = _files(options.input, options.output)
    secret = read_or_create_key_file(options.key) if options.key else random_secret()
    vault = _vault(options)
    keys = PseudonymKeys.from_secret(secret)
    outcomes = Outcomes()
    try:
        _deidentify(files, options, policy, keys, outcomes, console)
    finally:  # what is in OUT has a way back, even if the work was broken off
        if vault is not None:
            _seal(outcomes, vault)
    shown = Console()
    shown.print(_table(outcomes))
    shown.print(f"profile {policy.digest}", soft_wrap=True)
    return 1 if outcomes.refused else 0


def _policy(options: argparse.Namespace) -> Policy:
    chosen = options.option or [option.value for option in DEFAULT_OPTIONS]
    policy = profile_with(options_named(chosen))
    if policy.retains_uids and options.vault:
        raise RecipeError(
            "With retain-uids there is no way back to seal: the UIDs are the original ones",
            remedy="Leave out --vault or the option.",
        )
    if (Option.CLEAN_PIXEL_DATA in policy.options) != (options.previews is not None):
        raise RecipeError(
            "clean-pixel-data and --previews go together: somebody has to look at what was blanked",
            remedy="Give both, or neither.",
        )
    return apply_recipe(policy, options.recipe) if options.recipe else policy


def _files(source: Path, target: Path) -> list[Path]:
    """Every file under ``source``, in the order of their names."""
    if not source.is_dir():
        raise FolderError("IN is not a folder")
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise FolderError("IN and OUT lie in each other: originals and outputs would mix")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if not files:
        raise FolderError("There is no file in IN")
    return files


def _deidentify(
    files: list[Path],
    options: argparse.Namespace,
    policy: Policy,
    keys: PseudonymKeys,
    outcomes: Outcomes,
    console: Console,
) -> None:
    deidentifier = Deidentifier(policy, keys)
    for path in track(files, "De-identifying", console=console):
        try:
            data = path.read_bytes()
        except OSError as error:
            outcomes.refused["Unreadable", f"The file: {error.strerror}"] += 1
            continue
        reused, cleaned = deidentifier.reused, False
        try:
            try:
                result = deidentifier.deidentify(data)
            except BurnedInText:
                if options.previews is None:
                    raise
                result, cleaned = _with_clean_pixels(data, policy, keys, options.previews), True
            is_new = _write(options.output, result, outcomes)
        except AnonymizerError as error:
            outcomes.refused[type(error).__name__, str(error)] += 1
            continue
        if not is_new:
            outcomes.copies += 1
        elif cleaned:
            outcomes.cleaned += 1
        elif deidentifier.reused > reused:
            outcomes.from_memory += 1
        else:
            outcomes.at_length += 1


def _with_clean_pixels(
    data: bytes, policy: Policy, keys: PseudonymKeys, previews: Path
) -> DeidentifiedInstance:
    """An instance held for its pixels, cleaned, with a picture of what was blanked."""
    from anonymizer.pixel_cleaning import deidentify_with_clean_pixels

    result, cleaned = deidentify_with_clean_pixels(data, policy, keys)
    previews.mkdir(parents=True, exist_ok=True)
    (previews / f"{result.sop_instance_uid}.png").write_bytes(cleaned.preview_png)
    return result


def _write(folder: Path, result: DeidentifiedInstance, outcomes: Outcomes) -> bool:
    """Write an instance; False if this run has written the very same before.

    Raises
    ------
    Rejected
        It has written another one of that UID.
    """
    parent = folder / result.study_instance_uid / result.series_instance_uid
    parent.mkdir(parents=True, exist_ok=True)
    target = parent / f"{result.sop_instance_uid}.dcm"
    written = outcomes.originals.setdefault(result.series_instance_uid, {})
    if result.sop_instance_uid in written:
        if target.read_bytes() == result.data:
            return False
        raise Rejected(
            "Two different instances have one SOP Instance UID (0008,0018)",
            remedy="Find out which is right.",
        )
    with target.open("wb") as file:
        file.writelines((result.header, result.pixel_data))
    original = replace(result.original, header=b"") if written else result.original
    written[result.sop_instance_uid] = original
    return True


def _seal(outcomes: Outcomes, vault: Vault) -> None:
    for series_instance_uid, originals in outcomes.originals.items():
        crosswalk = Crosswalk.collect(originals.values())
        study = crosswalk.pseudonymous_study_instance_uid
        vault.seal(study, f"crosswalk-{series_instance_uid}", crosswalk.to_bytes())


def _vault(options: argparse.Namespace) -> Vault | None:
    if options.vault is None:
        return None
    key_file = options.vault_key or options.vault.with_name(options.vault.name + ".key")
    keyring = Keyring(current="file", keys={"file": read_or_create_key_file(key_file)})
    return Vault(FolderRecords(options.vault), keyring)


def _table(outcomes: Outcomes) -> Table:
    table = Table(title="De-identification")
    table.add_column("outcome")
    table.add_column("how, or why not")
    table.add_column("files", justify="right")
    ways = (
        (outcomes.from_memory, "fast: with what others of the series taught"),
        (outcomes.at_length, "at length"),
        (outcomes.cleaned, "with clean pixels: look at the previews"),
        (outcomes.copies, "a copy of another file, written once"),
    )
    for count, way in ways:
        if count:
            table.add_row("de-identified", way, f"{count:,}")
    for (kind, cause), count in outcomes.refused.most_common():
        table.add_row(kind, cause, f"{count:,}")
    series, instances = len(outcomes.originals), sum(map(len, outcomes.originals.values()))
    table.add_section()
    table.add_row("written", f"{series:,} series", f"{instances:,}")
    table.add_row("refused", "", f"{outcomes.refused.total():,}")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anonymizer",
        description="De-identify every DICOM instance of a folder (PS3.15 basic profile).",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="folder with DICOM instances")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--option",
        action="append",
        metavar="NAME",
        help="an option of PS3.15 E.3, again for each; without any: "
        f"{Option.RETAIN_MODIFIED_DATES.value}. One of: "
        + ", ".join(option.value for option in Option),
    )
    parser.add_argument(
        "--previews",
        type=Path,
        metavar="DIR",
        help="with clean-pixel-data: pictures of what was blanked, regions outlined; "
        "look at them before anything leaves",
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="the site's own rules (*.deid)")
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="secret behind the pseudonyms, made if absent; "
        "without it a new one is used once and forgotten",
    )
    parser.add_argument("--vault", type=Path, metavar="DIR", help="keep the way back, sealed, here")
    parser.add_argument(
        "--vault-key", type=Path, metavar="FILE", help="its key (default: DIR.key), made if absent"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
