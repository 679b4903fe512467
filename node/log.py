"""Logs: an event and fields, as JSON lines on standard output.

Only the fields of ``ALLOWED`` are written, because a log is read by people who may not know the
patient: names, IDs, dates, accession numbers, descriptions, file names and original UIDs are
identifiers. A foreign library's exception is written as its class and place, never its text.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

ALLOWED = frozenset(
    {
        "event", "level", "timestamp", "process",
        "job_id", "step", "state", "attempt", "chore", "between", "outcome", "error", "place",
        "model", "rule", "destination", "ae_title", "queue", "series_count",
        "instances", "seconds", "percent", "bytes", "status", "port", "changes", "jobs", "leases",
    }
)  # fmt: skip


def _only_allowed(
    _logger: Any, _method: str, fields: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    return {name: value for name, value in fields.items() if name in ALLOWED}


def place_of(error: BaseException) -> str:
    """Where an exception was raised (``file:line``), which is safe to write; its text is not."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "unknown"
    last = frames[-1]
    return f"{last.filename.rsplit('/', 2)[-1]}:{last.lineno}"


def configure(process: str, *, quiet: bool = False) -> None:
    """Write this process's log as JSON lines; foreign loggers only from WARNING, without text.

    ``quiet`` writes nothing below an error: a person is looking at a progress bar.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.ERROR if quiet else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr if quiet else sys.stdout),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(handlers=[_Scrubbed()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)  # pydicom's warnings quote values
    # pynetdicom writes queries and datasets at its lower levels.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


class _Scrubbed(logging.Handler):
    """Foreign log records: where they come from, never what they say."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        structlog.get_logger().warning(
            f"{record.name} reports {record.levelname.lower()}",
            place=f"{record.filename}:{record.lineno}",
            error=error,
        )


def get() -> Any:
    """The logger of this process."""
    return structlog.get_logger()
