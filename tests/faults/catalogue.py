"""Everything that can go wrong in a trial, each as one function: break it, and mend it later."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import redis

from tests.faults.archive import Mood
from tests.faults.site import Site, freeze, kill

Mend = Callable[[], None]
#: When the fault comes: some time in a study's life, before anything is sent, or while there is
#: working data.
When = Literal["any", "first", "working"]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes
    ----------
    breaks
        Does it, and says how it is mended; the random numbers are the seed's.
    hit
        Whether it has met anything yet; the time that it lasts begins there.
    lasts_s
        From and to: how long it stays broken. Nothing to mend: (0, 0).
    single_kill
        A kill of one thing: recovery is measured against the bound of a sweep and a step.
    """

    name: str
    breaks: Callable[[Site, random.Random], Mend]
    when: When = "any"
    lasts_s: tuple[float, float] = (0, 0)
    hit: Callable[[Site], bool] | None = None
    single_kill: bool = False
    needs: Literal["", "small disks", "clock", "PostgreSQL"] = ""

    def possible(self, site: Site) -> bool:
        """Whether this machine lets us, and this site has what it takes."""
        has = {
            "": True,
            "small disks": site.small_disks,
            "clock": site.clock_file is not None,
            "PostgreSQL": site.postgres is not None,
        }
        return has[self.needs]


def _nothing() -> None:
    return None


def _undisturbed(site: Site, rng: random.Random) -> Mend:
    return _nothing


# -- processes ---------------------------------------------------------------------------------


def _killed(name: str) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        site.kill_group(name)
        return _nothing

    return breaks


def _main_killed(name: str) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        kill([site.pid(name)])
        return _nothing

    return breaks


def _child_killed(name: str) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        kill([site.pool_child(name)])
        return _nothing

    return breaks


def _frozen(name: str) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        return site.freeze_group(name)

    return breaks


def _redis_with_old_memory(site: Site, rng: random.Random) -> Mend:
    """It comes back with the memory of a moment ago: what was taken since is there again."""
    password = site.node.secret("broker_password")
    client = redis.Redis(port=site.node.ports["broker"], password=password)
    client.save()
    time.sleep(rng.uniform(0, 1))
    site.kill_group("redis")

    def mend() -> None:
        (site.node.var / "redis" / "dump.rdb").unlink(missing_ok=True)

    return mend


def _everything_killed(site: Site, rng: random.Random) -> Mend:
    site.kill_everything()
    return lambda: _up_again(site)


def _up_again(site: Site) -> None:
    site.node.segnode("up")


def _pacs_killed(site: Site, rng: random.Random) -> Mend:
    site.hospital.kill()
    return site.restart_hospital


def _postgres_killed(site: Site, rng: random.Random) -> Mend:
    assert site.postgres is not None
    site.postgres.kill()
    return site.postgres.start


def _postgres_frozen(site: Site, rng: random.Random) -> Mend:
    assert site.postgres is not None
    return freeze(site.postgres.pid)


# -- the network -------------------------------------------------------------------------------


def _cut(site: Site, rng: random.Random) -> Mend:
    """The first connections break after 1 byte to more than an association request."""
    site.wire.hits = 0
    site.wire.cut_after(rng.choice((1, 300, 3000, 8000, 20000)))
    return site.wire.mend


def _hang(site: Site, rng: random.Random) -> Mend:
    site.wire.hits = 0
    site.wire.hang()
    return site.wire.mend


def _refuse(site: Site, rng: random.Random) -> Mend:
    site.wire.refuse()
    return site.wire.mend


def _wire_hit(site: Site) -> bool:
    return site.wire.hits > 0


def _refused(site: Site) -> bool:
    return any(job.error == "PacsUnavailable" for job in site.newest_jobs())


def _archive_hit(site: Site) -> bool:
    return site.archive.mood.hits > 0


# -- answers of a PACS -------------------------------------------------------------------------


def _answers(status: int, *, keeps: bool) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        site.archive.mood = Mood(status=status, keeps=keeps, answers=rng.randint(1, 3))
        return site.archive.mend

    return breaks


def _rejects(*, permanently: bool) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        site.archive.mood = Mood(rejects=rng.randint(1, 4), permanently=permanently)
        return site.archive.mend

    return breaks


def _silent(site: Site, rng: random.Random) -> Mend:
    site.archive.mood = Mood(silent=True)
    return site.archive.mend


def _of_archive(name: str, breaks: Callable[[Site, random.Random], Mend]) -> Fault:
    return Fault(name, breaks, "first", (3, 8), _archive_hit)


# -- disks and the clock -----------------------------------------------------------------------


def _full(folder: Callable[[Site], Path]) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        ballast = folder(site) / ".ballast"
        with ballast.open("wb", buffering=0) as file:
            for block in (bytes(1 << 20), bytes(4096)):
                try:
                    while True:
                        file.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        return lambda: ballast.unlink(missing_ok=True)

    return breaks


def _artifact_spoiled(how: str) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            files = [p for p in site.artifacts.rglob("*") if p.suffix in (".dcm", ".npz")]
            if files:
                with contextlib.suppress(FileNotFoundError):  # purged since
                    _spoil(rng.choice(sorted(files)), how, rng)
                    return _nothing
            time.sleep(0.02)
        raise TimeoutError("there was no artifact")

    def _spoil(path: Path, how: str, rng: random.Random) -> None:
        if how == "gone":
            path.unlink()
        elif how == "truncated":
            os.truncate(path, rng.randrange(path.stat().st_size))
        else:
            data = bytearray(path.read_bytes())
            start = rng.randrange(len(data) - 64)
            for position in range(start, start + 64):
                data[position] ^= 0xFF
            path.write_bytes(data)

    return breaks


def _clock(seconds: int) -> Callable[[Site, random.Random], Mend]:
    def breaks(site: Site, rng: random.Random) -> Mend:
        site.set_clock(seconds)
        return lambda: site.set_clock(0)

    return breaks


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("none", _undisturbed),
        Fault("kill orthanc", _killed("orthanc"), single_kill=True),
        Fault("kill redis, memory lost", _killed("redis"), single_kill=True),
        Fault("kill redis, old memory", _redis_with_old_memory, lasts_s=(4, 4), single_kill=True),
        Fault("kill hospital worker", _killed("worker"), single_kill=True),
        Fault("kill hospital worker, not its children", _main_killed("worker"), single_kill=True),
        Fault("kill hospital pool child", _child_killed("worker"), single_kill=True),
        Fault("kill delivery worker", _killed("delivery"), single_kill=True),
        Fault("kill delivery pool child", _child_killed("delivery"), single_kill=True),
        Fault("kill compute worker", _killed("compute"), single_kill=True),
        Fault("kill compute worker, not its children", _main_killed("compute"), single_kill=True),
        Fault("kill compute pool child", _child_killed("compute"), single_kill=True),
        Fault("kill watch", _killed("watch"), single_kill=True),
        Fault("kill console", _killed("console"), single_kill=True),
        Fault("kill everything", _everything_killed, lasts_s=(0.2, 3)),
        Fault("freeze orthanc", _frozen("orthanc"), lasts_s=(2, 15)),
        Fault("freeze redis", _frozen("redis"), lasts_s=(2, 15)),
        Fault("freeze hospital worker", _frozen("worker"), lasts_s=(2, 20)),
        Fault("freeze delivery worker", _frozen("delivery"), lasts_s=(2, 20)),
        Fault("freeze compute worker", _frozen("compute"), lasts_s=(2, 20)),
        Fault("freeze watch", _frozen("watch"), lasts_s=(2, 15)),
        Fault("kill PACS", _pacs_killed, lasts_s=(0.5, 5)),
        Fault("cut connection", _cut, "first", (1, 1), _wire_hit),
        Fault("hanging connection", _hang, "first", (1, 8), _wire_hit),
        Fault("connection refused", _refuse, "first", (0.5, 6), _refused),
        _of_archive("association rejected for now", _rejects(permanently=False)),
        _of_archive("association rejected for good", _rejects(permanently=True)),
        _of_archive("status 0xA700", _answers(0xA700, keeps=False)),
        _of_archive("status 0xA900", _answers(0xA900, keeps=False)),
        _of_archive("status 0xC000", _answers(0xC000, keeps=False)),
        _of_archive("status 0x0111", _answers(0x0111, keeps=True)),
        _of_archive("status 0xB000", _answers(0xB000, keeps=True)),
        _of_archive("success, and not kept", _answers(0x0000, keeps=False)),
        _of_archive("no commitment report", _silent),
        Fault("artifacts' disk full", _full(lambda site: site.artifacts), lasts_s=(1, 6),
              needs="small disks"),
        Fault("node's disk full", _full(lambda site: site.node.var), lasts_s=(1, 6),
              needs="small disks"),
        Fault("artifact altered", _artifact_spoiled("altered"), "working"),
        Fault("artifact truncated", _artifact_spoiled("truncated"), "working"),
        Fault("artifact gone", _artifact_spoiled("gone"), "working"),
        Fault("clock an hour ahead", _clock(3600), lasts_s=(2, 6), needs="clock"),
        Fault("clock an hour behind", _clock(-3600), lasts_s=(2, 6), needs="clock"),
        Fault("kill PostgreSQL", _postgres_killed, lasts_s=(0.2, 10), needs="PostgreSQL"),
        Fault("freeze PostgreSQL", _postgres_frozen, lasts_s=(2, 15), needs="PostgreSQL"),
    )
}  # fmt: skip
