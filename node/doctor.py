"""`segnode doctor`: look at everything, say what to do."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from typing import Literal

from node import service, upkeep, vault_keys
from node.destination_check import echoed
from node.edges.arrivals import Arrivals, settle_s
from node.edges.orthanc_storage import Disk
from node.edges.space import Forecast
from node.errors import NodeError
from node.findings import Finding
from node.manifest import CommandManifest
from node.runtimes.network import verified_weights
from node.settings import Settings
from node.wiring import Hospital

_TOOLS = {
    "bwrap": "runs Orthanc in its own root",
    "redis-server": "the broker",
}
_SOON_DAYS = 7


def examine(settings: Settings, *, repair: bool = False) -> Iterator[Finding]:
    """Everything that the node needs, from programs to peers, and whether its parts agree.

    With ``repair``, disagreements are mended where that is safe.
    """
    hospital = Hospital(settings)
    yield from _programs(settings)
    yield from _disk(hospital)
    yield from _secrets(hospital)
    yield from _keys(hospital)
    yield from _models(hospital)
    yield from _recipe(hospital)
    yield from _rules(settings)
    yield from senders(hospital)
    yield from _parts(hospital)
    for name in hospital.destinations:
        yield echoed(hospital, name)
    yield from _agreement(hospital, repair=repair)


def senders(hospital: Hospital) -> Iterator[Finding]:
    """Who is waited for longer than the site has set, because it is known to pause."""
    receive = hospital.settings.receive
    for sender, pause_s in Arrivals(hospital.ledger.database).pauses_s().items():
        waited_s = settle_s(pause_s, receive.quiet_s, receive.longest_quiet_s)
        if waited_s > receive.quiet_s:
            yield Finding(
                "note", f"sender {sender}" if sender else "senders over HTTP",
                f"pauses for {pause_s:.0f} s within a series: waited for {waited_s:.0f} s",
            )  # fmt: skip


def _programs(settings: Settings) -> Iterator[Finding]:
    for tool, use in _TOOLS.items():
        if shutil.which(tool):
            yield Finding("good", tool, f"installed; {use}")
        else:
            yield Finding("wrong", tool, f"not installed; {use}", "Run `make setup`.")
    if settings.orthanc.url is None and not os.access(settings.orthanc.launcher, os.X_OK):
        yield Finding(
            "wrong", "Orthanc", f"{settings.orthanc.launcher} cannot be run", "Run `make setup`."
        )


def _disk(hospital: Hospital) -> Iterator[Finding]:
    """By what Orthanc sees of the disks; by ``var_dir`` alone when it does not run."""
    settings = hospital.settings
    settings.var_dir.mkdir(parents=True, exist_ok=True)
    try:
        state = hospital.orthanc_storage.state()
    except NodeError:
        usage = shutil.disk_usage(settings.var_dir)
        keep = settings.storage.keep_free_bytes
        yield _disk_finding(Forecast(Disk("var", usage.free, usage.total, keep), None, None))
        return
    for one in upkeep.space_log(hospital).forecasts(state.disks):
        yield _disk_finding(one)
    folder = settings.var_dir / "orthanc" / "storage"
    if state.unreadable:
        yield Finding(
            "wrong", "files",
            f"{len(state.unreadable)} files in Orthanc's storage are no instances",
            "They were never acknowledged, or Orthanc has another object of the same UID. Look at "
            f"them in {folder / 'segnode-unreadable'}; delete what nobody misses.",
        )  # fmt: skip


def _disk_finding(one: Forecast) -> Finding:
    disk = one.disk
    text = f"{_gib(disk.free_bytes)} free of {_gib(disk.total_bytes)}"
    if disk.is_full:
        return Finding(
            "wrong", "disk", f"{text}: senders are answered with out of resources (0xA700)",
            f"Free space on the disk of {disk.folder}: the node keeps "
            f"{_gib(disk.keep_free_bytes)} ([storage] keep_free_gib).",
        )  # fmt: skip
    if one.bytes_per_day is not None:
        text += f"; {_gib(abs(one.bytes_per_day))} a day "
        text += "more" if one.bytes_per_day > 0 else "less"
    if one.days_left is None:
        return Finding("good", "disk", text)
    text += f", full in about {one.days_left:.0f} days"
    if one.days_left < _SOON_DAYS:
        return Finding(
            "wrong", "disk", text, "Make room, or keep less: [retention] in segnode.toml."
        )
    return Finding("good", "disk", text)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _secrets(hospital: Hospital) -> Iterator[Finding]:
    for name in service.SECRETS:
        path = hospital.secret_path(name)
        if not path.exists():
            yield Finding("note", name, "not made yet", "`segnode up` makes it.")
        elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding("wrong", name, "others can read it", f"chmod 600 {path}")
        else:
            yield Finding("good", name, "only its owner can read it")


def _keys(hospital: Hospital) -> Iterator[Finding]:
    none = not hospital.vault_keys.names() and not hospital.pseudonym_secrets.names()
    if none and not hospital.vault.records.studies():
        yield Finding("note", "keys", "not made yet", "`segnode up` makes them.")
        return
    for use in vault_keys.key_uses(hospital):
        if use.place == "missing" or use.problem:
            yield Finding(
                "wrong", f"key {use.name}", use.problem,
                "Put it back from its backup, mode 600, then `segnode keys list`.",
            )  # fmt: skip
        else:
            current = "seals new studies; " if use.current else ""
            yield Finding("good", f"key {use.name}", f"{current}{use.data_keys} data keys need it")
    try:
        epoch = hospital.pseudonym_keys.epoch
    except NodeError as error:
        yield Finding("wrong", "pseudonym key", str(error), error.remedy)
    else:
        yield Finding("good", "pseudonym key", f"the one that epoch {epoch} began with")


def _models(hospital: Hospital) -> Iterator[Finding]:
    try:
        models = hospital.models
    except NodeError as error:
        yield Finding("wrong", "models", str(error), error.remedy)
        return
    for name, manifest in models.items():
        if isinstance(manifest, CommandManifest):
            yield Finding("good", f"model {name}", "a program; it is checked where it runs")
            continue
        try:
            verified_weights(hospital.settings.models_dir / name, manifest)
        except NodeError as error:
            yield Finding("wrong", f"model {name}", str(error), error.remedy)
        else:
            yield Finding("good", f"model {name}", "weights are the published ones (SHA-256)")


def _recipe(hospital: Hospital) -> Iterator[Finding]:
    recipe = hospital.settings.deidentify.recipe
    try:
        _ = hospital.policy
    except Exception as error:  # noqa: BLE001 - shown to the person who wrote the recipe
        yield Finding("wrong", "de-identification", str(error), "Correct the recipe.")
    else:
        over = f", with {recipe.name} over it" if recipe else ""
        yield Finding("good", "de-identification", f"PS3.15 basic profile{over}")


def _rules(settings: Settings) -> Iterator[Finding]:
    if settings.rules:
        yield Finding("good", "rules", ", ".join(rule.name for rule in settings.rules))
    else:
        yield Finding(
            "note", "rules", "none: every series is kept and none is processed",
            "Write [[rules]] in segnode.toml; segnode.example.toml shows how.",
        )  # fmt: skip


def _parts(hospital: Hospital) -> Iterator[Finding]:
    for part in service.parts(hospital):
        try:
            answers = part.answers()
        except NodeError:
            answers = False
        if answers:
            yield Finding("good", part.name, "answers")
        else:
            log = hospital.settings.var_dir / part.log
            yield Finding("wrong", part.name, "does not answer", f"Run `segnode up`; see {log}.")


def _agreement(hospital: Hospital, *, repair: bool) -> Iterator[Finding]:
    try:
        hospital.orthanc.system()
    except NodeError:
        yield Finding("note", "agreement", "not looked at: the node does not run")
        return
    found = False
    for one in upkeep.reconciler(hospital).disagreements():
        found = True
        if one.repair is None:
            level: Literal["wrong", "note"] = "wrong" if one.grave else "note"
            yield Finding(level, one.between, one.found, one.remedy)
        elif repair:
            one.repair()
            yield Finding("good", one.between, f"{one.found}: {one.remedy}")
        else:
            yield Finding("wrong", one.between, one.found, "`segnode doctor --repair` mends it.")
    if not found:
        yield Finding(
            "good", "agreement", "Orthanc, ledger, broker, artifacts, vault and PACS say the same"
        )
