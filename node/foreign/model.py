"""A model that is somebody else's program: the same contract as a network's, ``segment``."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from node.errors import (
    OutOfSpace,
    ProgramFailed,
    ProgramInterrupted,
    UnsupportedTransferSyntax,
)
from node.foreign.check import filled, require_runnable
from node.foreign.labels import as_segments
from node.foreign.program import Ended, Limits, run_program
from node.foreign.sandbox import sandboxed
from node.foreign.workfolder import work_folder
from node.manifest import Command, CommandManifest
from node.sdk import LabelMap, Progress, Volume

_PASSED = ("PATH", "LANG", "LC_ALL", "TZ")
"""Variables of the worker that every program gets; none of them is a secret."""
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class CommandModel:
    """A program whose files were checked, ready to segment.

    ``folder`` is the model's; ``threads`` how many the program is told to use.
    """

    manifest: CommandManifest
    folder: Path
    threads: int

    def segment(
        self,
        volume: Volume,
        on_progress: Progress = lambda share: None,
        instances: Sequence[Dataset] = (),
    ) -> LabelMap:
        """Run the program over one series and read its labels.

        Parameters
        ----------
        volume
            The series; written as NIfTI for a program that reads NIfTI.
        on_progress
            Called with 0 while the program runs, for nobody knows how far it is, and with 1 after.
        instances
            The de-identified instances of the series in any order, for a program that reads DICOM;
            they are decompressed in place.

        Raises
        ------
        ProgramFailed
            The program failed, exceeded a limit, or its labels do not fit the series.
        ProgramInterrupted
            It asks to be run later, or was ended by somebody else.
        OutOfSpace
            There is no room for its input.
        UnsupportedTransferSyntax
            An instance cannot be decompressed for a program that reads DICOM.
        """
        command = self.manifest.command
        with work_folder() as work:
            run = _Run(self, work)
            try:
                run.write_input(volume, instances)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OutOfSpace("There is no room for the input of a program") from None
                raise
            _require_success(run.to_end(lambda: on_progress(0.0)), command)
            labels = run.labels(volume)
        on_progress(1.0)
        return LabelMap(labels, volume.sop_instance_uids)


def load_command_model(folder: Path, manifest: CommandManifest, *, threads: int) -> CommandModel:
    """A program that can run here and whose files are those of its manifest.

    Raises
    ------
    ModelFault
        With everything that stands against it.
    """
    require_runnable(folder, manifest)
    return CommandModel(manifest, folder, threads)


class _Run:
    """One run: its folders, its name, its command line."""

    def __init__(self, model: CommandModel, work: Path) -> None:
        self._model, self._work = model, work
        self._command = model.manifest.command
        self._name = f"segnode-{uuid.uuid4().hex}"
        self._input, self._output = work / "input", work / "output"
        for name in ("input", "output", "home", "tmp"):
            (work / name).mkdir()
        self._values = {
            "input": str(self._input),
            "output": str(self._output),
            "model": str(model.folder.resolve()),
            "python": sys.executable,
            "run": self._name,
            "user": f"{os.getuid()}:{os.getgid()}",
            "threads": str(model.threads),
            "memory_mib": str(self._command.memory_limit_mib),
        }

    def write_input(self, volume: Volume, instances: Sequence[Dataset]) -> None:
        """The series as the program reads it; DICOM files are numbered in slice order."""
        if self._command.reads == "nifti":
            from node.foreign.nifti import write_volume

            write_volume(volume, self._input / self._command.input_name)
            return
        number = {uid: place for place, uid in enumerate(volume.sop_instance_uids, start=1)}
        for instance in instances:
            _decompress(instance)
            name = f"{number[str(instance.SOPInstanceUID)]:06d}.dcm"
            instance.save_as(self._input / name, enforce_file_format=True)

    def to_end(self, waiting: Callable[[], None]) -> Ended:
        """Run the program; whatever it left behind is stopped."""
        arguments = [filled(argument, self._values) for argument in self._command.run]
        if self._command.sandbox:
            arguments = sandboxed(arguments, self._work, self._readable())
        limits = Limits(
            self._command.time_limit_s,
            self._command.memory_limit_mib,
            self._command.disk_limit_mib,
        )
        try:
            ended = run_program(
                arguments,
                run=self._name,
                work=self._work,
                environment=self._environment(),
                limits=limits,
                waiting=waiting,
            )
        except ProgramFailed:
            self._stop()
            raise
        if ended.status != 0:
            self._stop()
        return ended

    def labels(self, volume: Volume) -> npt.NDArray[np.uint8]:
        """What the program found, on the grid of the volume."""
        command = self._command
        path = self._result()
        if command.writes == "nifti":
            from node.foreign import nifti

            may_resample = command.other_grid == "resample"
            values = nifti.read_labels(path, volume, may_resample=may_resample)
        else:
            from node.foreign import seg

            values = seg.read_labels(path, volume, command.labels)
        return as_segments(values, command.labels, ignore_others=command.other_labels == "ignore")

    def _result(self) -> Path:
        found = [path for path in self._output.glob(self._command.output) if path.is_file()]
        if len(found) != 1:
            raise ProgramFailed(
                f"The program wrote {len(found)} files {self._command.output}; one is expected",
                remedy="Correct output in [command] of model.toml, or the program's arguments.",
            )
        if not found[0].resolve().is_relative_to(self._output):
            raise ProgramFailed("The program's result is a link out of its folder")
        return found[0]

    def _readable(self) -> list[Path]:
        named = [filled(place, self._values) for place in self._command.readable]
        if any("{python}" in argument for argument in self._command.run):
            named += [sys.prefix, sys.base_prefix]
        return [self._model.folder.resolve(), *map(Path, named)]

    def _environment(self) -> dict[str, str]:
        command = self._command
        own = {name: filled(text, self._values) for name, text in command.environment.items()}
        passed = {*_PASSED, *command.pass_environment}
        return {
            "HOME": str(self._work / "home"),
            "TMPDIR": str(self._work / "tmp"),
            "OMP_NUM_THREADS": str(self._model.threads),
            **{name: os.environ[name] for name in passed if name in os.environ},
            **own,
        }

    def _stop(self) -> None:
        """End what is no child of the program: a container runs under an engine of its own."""
        arguments = [filled(argument, self._values) for argument in self._command.stop]
        if not arguments:
            return
        try:
            subprocess.run(
                arguments,
                env=self._environment(),
                capture_output=True,
                check=False,
                timeout=_STOP_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProgramFailed(
                f"The program failed, and [command.stop] did not end it ({type(error).__name__})",
                remedy="Look on the compute machine for what still runs, and end it.",
            ) from None


def _decompress(instance: Dataset) -> None:
    """In place, to Explicit VR Little Endian: what every program reads."""
    syntax = instance.file_meta.TransferSyntaxUID
    if syntax == DeflatedExplicitVRLittleEndian:
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    elif syntax.is_compressed:
        try:
            instance.decompress(generate_instance_uid=False)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            raise UnsupportedTransferSyntax(
                f"{syntax.name} cannot be decompressed for a program that reads DICOM",
                remedy='Have the sender use another syntax, or use a program with reads = "nifti".',
            ) from None


def _require_success(ended: Ended, command: Command) -> None:
    if ended.status == 0:
        return
    wrote = f"it wrote: {ended.words}" if ended.words else "it wrote nothing"
    told = f"The program failed with exit status {ended.status}; {wrote}"
    if ended.status in command.retry_exit_statuses:
        raise ProgramInterrupted(told)
    raise ProgramFailed(told)
