"""De-identify a folder: ``python -m anonymizer IN OUT``.

Every file under IN is taken as a DICOM instance. What passes is written to
OUT/<study>/<series>/<instance>.dcm, all three names pseudonymous; the rest is counted by cause.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from anonymizer.crosswalk import Crosswalk
from anonymizer.deidentify import DeidentifiedInstance, OriginalIdentity, deidentify_instance
from anonymizer.errors import AnonymizerError, BurnedInText, RecipeError
from anonymizer.keys import PseudonymKeys, random_secret, read_or_create_key_file
from anonymizer.options import DEFAULT_OPTIONS, Option, options_named
from anonymizer.profile import Policy, profile_with
from anonymizer.recipe import apply_recipe
from anonymizer.vault import FolderRecords, Keyring, Vault


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if every instance passed, 1 if some did not, 2 if nothing could start."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        return _run(options, console)
    except AnonymizerError as error:
        console.print(f"{error}. {error.remedy}", style="red", markup=False)
        return 2


def _run(options: argparse.Namespace, console: Console) -> int:
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
    if options.recipe:
        policy = apply_recipe(policy, options.recipe)
    secret = read_or_create_key_file(options.key) if options.key else random_secret()
    vault = _vault(options)
    keys = PseudonymKeys.from_secret(secret)
    causes: collections.Counter[tuple[str, str]] = collections.Counter()
    series: dict[str, list[OriginalIdentity]] = {}
    files = sorted(path for path in options.input.rglob("*") if path.is_file())
    for path in track(files, "De-identifying", console=console):
        try:
            result = _deidentified(path, policy, keys, options.previews)
        except AnonymizerError as error:
            causes[type(error).__name__, str(error)] += 1
            continue
        _write(options.output, result)
        series.setdefault(result.series_instance_uid, []).append(result.original)
    if vault is not None:
        for series_instance_uid, originals in series.items():
            crosswalk = Crosswalk.collect(originals)
            study = crosswalk.pseudonymous_study_instance_uid
            vault.seal(study, f"crosswalk-{series_instance_uid}", crosswalk.to_bytes())
    passed = sum(map(len, series.values()))
    Console().print(_table(passed, len(series), causes, policy.digest))
    return 0 if passed == len(files) else 1


def _deidentified(
    path: Path, policy: Policy, keys: PseudonymKeys, previews: Path | None
) -> DeidentifiedInstance:
    """The instance; one held for its pixels is cleaned where there is a folder for previews."""
    try:
        return deidentify_instance(path, policy, keys)
    except BurnedInText:
        if previews is None:
            raise
    from anonymizer.pixel_cleaning import deidentify_with_clean_pixels

    result, cleaned = deidentify_with_clean_pixels(path.read_bytes(), policy, keys)
    previews.mkdir(parents=True, exist_ok=True)
    (previews / f"{result.sop_instance_uid}.png").write_bytes(cleaned.preview_png)
    return result


def _write(folder: Path, result: DeidentifiedInstance) -> None:
    target = folder / result.study_instance_uid / result.series_instance_uid
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{result.sop_instance_uid}.dcm").write_bytes(result.data)


def _vault(options: argparse.Namespace) -> Vault | None:
    if options.vault is None:
        return None
    key_file = options.vault_key or options.vault.with_name(options.vault.name + ".key")
    keyring = Keyring(current="file", keys={"file": read_or_create_key_file(key_file)})
    return Vault(FolderRecords(options.vault), keyring)


def _table(
    passed: int, series: int, causes: collections.Counter[tuple[str, str]], digest: str
) -> Table:
    table = Table(title="De-identification", caption=f"profile {digest[:16]}")
    table.add_column("outcome")
    table.add_column("cause")
    table.add_column("instances", justify="right")
    table.add_row("de-identified", f"{series} series", str(passed))
    for (kind, cause), count in causes.most_common():
        table.add_row(kind, cause, str(count))
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
