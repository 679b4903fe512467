"""`segnode doctor`: look at everything, say what to do."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator

from node import service, vault_keys
from node.destination_check import echoed
from node.errors import NodeError
from node.manifest import CommandManifest
from node.runtimes.network import verified_weights
from node.settings import Settings
from node.tables import Finding
from node.wiring import Hospital

_TOOLS = {
    "bwrap": "runs Orthanc in its own root",
    "redis-server": "the broker",
}
_LOW_DISK_BYTES = 5 * 2**30


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything that the node needs, from programs to peers."""
    hospital = Hospital(settings)
    yield from _programs(settings)
    yield from _disk(settings)
    yield from _secrets(hospital)
    yield from _keys(hospital)
    yield from _models(hospital)
    yield from _recipe(hospital)
    yield from _rules(settings)
    yield from _parts(hospital)
    for name in hospital.destinations:
        yield echoed(hospital, name)


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


def _disk(settings: Settings) -> Iterator[Finding]:
    settings.var_dir.mkdir(parents=True, exist_ok=True)
    usage = shutil.disk_usage(settings.var_dir)
    text = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f}"
    if usage.free < _LOW_DISK_BYTES:
        yield Finding("wrong", "disk", text, "Free space: the node needs at least 5 GiB.")
    else:
        yield Finding("good", "disk", text)


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
