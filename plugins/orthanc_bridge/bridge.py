# Copyright (C) 2026 segnode engineers
# SPDX-License-Identifier: AGPL-3.0-only
"""The bridge inside Orthanc: nudges the node, and serves the node's console behind Orthanc's login.

Orthanc's embedded Python runs this file, so it uses the standard library only and holds no
decision. Nothing is lost when it fails: the node reads Orthanc's ``/changes`` by itself, and a
nudge only shortens the wait. It reads these environment variables:

``SEGNODE_CONSOLE_URL``             the node's console, for example ``http://127.0.0.1:8043``
``SEGNODE_CONSOLE_TOKEN_FILE``      the file that holds the console's token
``SEGNODE_ORTHANC_STORAGE``         the folder of received objects
``SEGNODE_ORTHANC_INDEX``           the folder of Orthanc's index (SQLite)
``SEGNODE_ORTHANC_KEEP_FREE_BYTES`` what stays free on every disk of these folders, and …
``SEGNODE_ORTHANC_KEEP_FREE_IN``    … of these (``:`` between them)

Two things can be done nowhere else. Only here is the index open to a reader, before Orthanc locks
it: what it does not know of the files in the storage is put aside, for the node to import again.
And only here is an object refused before it is written.
"""

import atexit
import http.client
import ipaddress
import json
import os
import re
import sqlite3
import sys
import threading
import urllib.parse
from pathlib import Path

import orthanc

ROOT = "/segnode"
ASSETS = Path(__file__).resolve().parent / "assets"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: What is passed on to the node. Everything else is 404, whatever the node could answer.
ALLOWED = tuple(
    (method, re.compile(path))
    for method, path in (
        ("GET", r"/jobs"),
        ("GET", r"/jobs/[0-9a-f]{32}"),
        ("GET", r"/jobs/[0-9a-f]{32}/overlay\.png"),
        ("GET", r"/jobs/[0-9a-f]{32}/review"),
        ("GET", r"/jobs/[0-9a-f]{32}/review/[0-9]{1,4}-[0-9]{1,4}\.png"),
        ("POST", r"/jobs/[0-9a-f]{32}/(retry|cancel|release)"),
        ("GET", r"/models"),
        ("GET", r"/storage"),
        ("GET", r"/flow"),
        ("POST", r"/flow/(queue|destination)/[A-Za-z0-9_-]{1,64}/(pause|resume)"),
        ("POST", r"/studies/[0-9a-f]{8}(-[0-9a-f]{8}){4}/process"),
    )
)
ALLOWED_QUERY = ("study", "state", "limit")
MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 32 * 1024 * 1024

#: The state of a connection in /proc/net/tcp.
ESTABLISHED = "01"

NUDGE_EVERY_S = 0.25
NUDGE_TIMEOUT_S = 2
PROXY_TIMEOUT_S = 10
#: Each proxied call occupies one of Orthanc's HTTP threads while the node thinks about it.
MAX_PROXIED_CALLS = 8

#: Below the storage, beside Orthanc's own folders, which have names of two digits.
ORPHANS, UNREADABLE = "segnode-orphans", "segnode-unreadable"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: PS3.4 B.2.3, C-STORE: refused, out of resources. 0 accepts the object.
OUT_OF_RESOURCES = 0xA700
#: The ways in over HTTP: Orthanc's own, and STOW-RS.
UPLOADS = re.compile(r"/instances|/dicom-web/studies(/[0-9.]+)?")

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "same-origin",
}


class NodeSilent(Exception):
    """The node's console gave no answer; the message says what to do."""


def ask_node(method, path, body=None, *, timeout_s):
    """One request to the node's console: status, content type and body of its answer."""
    address = urllib.parse.urlsplit(os.environ.get("SEGNODE_CONSOLE_URL", ""))
    connection = http.client.HTTPConnection(
        address.hostname or "127.0.0.1", address.port or 80, timeout=timeout_s
    )
    try:
        # Read each time: the token changes when the node is set up anew.
        token = Path(os.environ.get("SEGNODE_CONSOLE_TOKEN_FILE", "")).read_text("ascii").strip()
        headers = {"Authorization": f"Bearer {token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        content = answer.read(MAX_ANSWER_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NodeSilent(type(error).__name__) from error
    finally:
        connection.close()
    if len(content) > MAX_ANSWER_BYTES:
        raise NodeSilent("AnswerTooLong")
    return answer.status, answer.getheader("Content-Type", ""), content


def open_associations(tables=("/proc/self/net/tcp", "/proc/self/net/tcp6")):
    """Address -> how many connections from there to Orthanc's DICOM port are open.

    Who still has one may go on with a series that pauses. Empty where the system has no such table.
    """
    port = json.loads(orthanc.GetConfiguration())["DicomPort"]
    found = {}
    for table in tables:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            local, remote, state = line.split()[1:4]
            if state == ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
                address = address_of(remote.rpartition(":")[0])
                found[address] = found.get(address, 0) + 1
    return found


def address_of(digits):
    """An address of /proc/net/tcp in words: hexadecimal, each 32 bits in the machine's order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)


class Nudger:
    """Tells the node that something arrived: at most four times a second, never from a callback.

    A nudge that fails is dropped. The log says once that the node is silent, and once that it
    answers again.
    """

    def __init__(self):
        self._due = threading.Event()
        self._stopped = threading.Event()
        self._silent = False
        self._thread = threading.Thread(target=self._run, name="segnode-nudge", daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        """End the thread: Orthanc is about to unload the Python that it runs on."""
        self._stopped.set()
        self._due.set()
        self._thread.join(NUDGE_TIMEOUT_S + 1)

    def nudge(self):
        """Return at once; the node hears of it within a quarter of a second."""
        self._due.set()

    def _run(self):
        while True:
            self._due.wait()
            self._due.clear()
            if self._stopped.is_set():
                return
            try:
                status, _, _ = ask_node("POST", "/nudge", timeout_s=NUDGE_TIMEOUT_S)
                self._note(f"HTTP {status}" if status >= 300 else "")
            except NodeSilent as error:
                self._note(str(error))
            self._stopped.wait(NUDGE_EVERY_S)

    def _note(self, failure):
        if bool(failure) == self._silent:
            return
        self._silent = bool(failure)
        if failure:
            orthanc.LogWarning(
                f"segnode: the node does not answer ({failure}); it will find what arrives now in "
                "the changes feed when it is back (`segnode status`)"
            )
        else:
            orthanc.LogWarning("segnode: the node answers")


class Admission:
    """Refuses objects while a disk that the node writes to has less free than it must keep.

    ``statvfs`` reads no disk: it never blocks, and takes microseconds.
    """

    def __init__(self, folders, keep_free_bytes):
        self._folders, self._keep_free_bytes = tuple(folders), keep_free_bytes
        self._refusing = False

    def disks(self):
        """Each disk once: a folder on it, and its bytes."""
        seen = {}
        for folder in self._folders:
            try:
                device, disk = Path(folder).stat().st_dev, os.statvfs(folder)
            except OSError:  # Orthanc says what is wrong with it, when it writes
                continue
            seen.setdefault(device, {
                "folder": folder,
                "free_bytes": disk.f_bavail * disk.f_frsize,
                "total_bytes": disk.f_blocks * disk.f_frsize,
                "keep_free_bytes": self._keep_free_bytes,
            })  # fmt: skip
        return list(seen.values())

    def refuses(self):
        """Whether there is no room for one more object."""
        full = [one for one in self.disks() if one["free_bytes"] < one["keep_free_bytes"]]
        if bool(full) != self._refusing:
            self._refusing = bool(full)
            if full:
                orthanc.LogWarning(
                    f"segnode: out of resources: the disk of {full[0]['folder']} has less free "
                    "than [storage] keep_free_gib; senders are told so and send again later"
                )
            else:
                orthanc.LogWarning("segnode: there is room again")
        return self._refusing

    def c_store(self, _instance):
        """Orthanc's filter of C-STORE: the DIMSE status, 0 to accept."""
        return OUT_OF_RESOURCES if self.refuses() else 0

    def http(self, uri, **request):
        """Orthanc's filter of HTTP requests: False is answered with 403, and no other status."""
        if request["method"] not in (orthanc.HttpMethod.POST, orthanc.HttpMethod.PUT):
            return True
        # What the node imports again is on the disk already.
        if not UPLOADS.fullmatch(uri) or request["headers"].get("x-segnode-import") == "1":
            return True
        return not self.refuses()


class Leftovers:
    """Files in the storage that the index does not know, and the other way round.

    The index is not flushed with every object: a power cut takes its last seconds, and the files
    stay. They are found while Orthanc starts, before it locks the index or listens, and moved
    within the disk. Nothing is deleted here but what the node says it has imported.
    """

    def __init__(self, storage, index):
        self._storage, self._database = Path(storage), Path(index) / "index"
        self._fileless = set()

    def put_aside(self):
        """Move what the index does not know; note instances whose file is gone."""
        files = {
            one.name: one.path
            for first in folders_in(self._storage)
            for second in folders_in(first)
            for one in os.scandir(second)
            if UUID.fullmatch(one.name)
        }
        known = self._known() if self._database.exists() else {}
        orphans = [name for name in files if name not in known]
        for name in orphans:
            self._move(Path(files[name]), ORPHANS, name)
        if known and not folders_in(self._storage):  # Orthanc leaves the folders of what is lost
            orthanc.LogError(
                f"segnode: the index knows {len(known)} files and {self._storage} has no folder of "
                "Orthanc's: is its disk mounted? Stop Orthanc, mount it and start again"
            )
            return
        self._fileless = {known[name] for name in known if name not in files}
        if orphans or self._fileless:
            orthanc.LogWarning(
                f"segnode: {len(orphans)} files are not in the index and will be imported again; "
                f"{len(self._fileless)} instances of the index have no file"
            )

    def _known(self):
        """Name of each file that the index knows → Orthanc's id of its instance."""
        # Read-write, as Orthanc opens it: what is still in its journal belongs to it.
        connection = sqlite3.connect(self._database)
        try:
            return dict(connection.execute(
                "SELECT uuid, publicId FROM AttachedFiles JOIN Resources ON id = internalId"
            ))  # fmt: skip
        finally:
            connection.close()

    def fileless(self):
        """Ids of instances in the index whose file was gone at the start."""
        return sorted(self._fileless)

    def deleted(self, instance_id):
        """It has left the index, and may come again."""
        self._fileless.discard(instance_id)

    def listed(self, folder):
        """Names of the files in ``ORPHANS`` or ``UNREADABLE``."""
        try:
            names = [one.name for one in os.scandir(self._storage / folder)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if UUID.fullmatch(name))

    def read(self, name):
        """An orphan's bytes."""
        return (self._storage / ORPHANS / name).read_bytes()

    def imported(self, name):
        """The node has it from Orthanc, byte by byte: the second copy goes."""
        (self._storage / ORPHANS / name).unlink()

    def unreadable(self, name):
        """The node cannot make an instance of it: kept for a person."""
        self._move(self._storage / ORPHANS / name, UNREADABLE, name)

    def _move(self, path, folder, name):
        (self._storage / folder).mkdir(mode=0o700, exist_ok=True)
        path.rename(self._storage / folder / name)


def folders_in(folder):
    """Orthanc's own folders: names of two hexadecimal digits."""
    return [one.path for one in os.scandir(folder) if re.fullmatch("[0-9a-f]{2}", one.name)]


def from_console_page(headers):
    """Whether a request that changes something comes from our own page.

    Orthanc checks no origin, and a browser sends its login with any site's form. It lets a foreign
    site send neither our header nor a false ``Sec-Fetch-Site`` or ``Origin``.
    """
    if headers.get("x-segnode-console") != "1":
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    if origin is not None:  # plain HTTP: the browser leaves Sec-Fetch-Site out
        return urllib.parse.urlsplit(origin).netloc == headers.get("host")
    return True


class Console:
    """Answers everything below ``/segnode``; Orthanc has checked the login before."""

    def __init__(self, assets, admission, leftovers):
        self._assets, self._admission, self._leftovers = assets, admission, leftovers
        self._free_calls = threading.BoundedSemaphore(MAX_PROXIED_CALLS)

    def answer(self, output, uri, **request):
        """Orthanc's REST callback. Runs on one of Orthanc's HTTP threads."""
        for name, value in HEADERS.items():
            output.SetHttpHeader(name, value)
        path = uri[len(ROOT) :]
        if path == "/api" or path.startswith("/api/"):
            self._proxy(output, path[len("/api") :], request)
        elif path == "/storage" or path.startswith("/storage/"):
            self._storage(output, path[len("/storage/") :], request)
        elif request["method"] != "GET":
            output.SendMethodNotAllowed("GET")
        elif path == "/associations":
            output.AnswerBuffer(json.dumps(open_associations()), "application/json")
        elif path in ("", "/"):
            output.Redirect(f"{ROOT}/index.html")
        elif path[1:] in self._assets:
            content, content_type = self._assets[path[1:]]
            output.AnswerBuffer(content, content_type)
        else:
            refuse(output, 404, "There is no such page in the console.", "Open /segnode/.")

    def _storage(self, output, path, request):
        """What the node asks about disks and files: only Orthanc's side sees them everywhere."""
        name, _, verb = path.partition("/")
        try:
            if request["method"] == "GET" and not path:
                state = {
                    "disks": self._admission.disks(),
                    "refusing": self._admission.refuses(),
                    "orphans": self._leftovers.listed(ORPHANS),
                    "unreadable": self._leftovers.listed(UNREADABLE),
                    "fileless": self._leftovers.fileless(),
                }
                output.AnswerBuffer(json.dumps(state), "application/json")
            elif not UUID.fullmatch(name):
                refuse(output, 404, "There is no such file.", "See docs/console.md.")
            elif request["method"] == "GET" and not verb:
                output.AnswerBuffer(self._leftovers.read(name), "application/dicom")
            elif request["method"] != "POST" or verb not in ("imported", "unreadable"):
                output.SendMethodNotAllowed("GET,POST")
            elif not from_console_page(request["headers"]):
                refuse(output, 403, "This call did not come from the node.", "See docs/console.md.")
            else:
                getattr(self._leftovers, verb)(name)
                output.AnswerBuffer("{}", "application/json")
        except FileNotFoundError:
            refuse(output, 404, "There is no such file any more.", "Nothing to do.")
        except OSError as error:
            refuse(output, 500, f"The storage fails ({type(error).__name__}).", "Look at its disk.")

    def _proxy(self, output, path, request):
        method = request["method"]
        if not any(method == verb and route.fullmatch(path) for verb, route in ALLOWED):
            refuse(output, 404, "The console has no such call.", "See docs/console.md.")
            return
        if method != "GET" and not from_console_page(request["headers"]):
            refuse(
                output, 403, "This call did not come from the console's own page.",
                "Open /segnode/ and use its buttons; scripts send X-Segnode-Console: 1.",
            )  # fmt: skip
            return
        body = request.get("body") or None
        if body is not None and len(body) > MAX_REQUEST_BYTES:
            refuse(output, 413, "The request is too long.", "Name one model and one series.")
            return
        query = {k: v for k, v in request.get("get", {}).items() if k in ALLOWED_QUERY}
        if query:
            path += "?" + urllib.parse.urlencode(query)
        if not self._free_calls.acquire(blocking=False):
            refuse(
                output, 503, "The node is slow: too many console calls wait for it.",
                "Wait a moment; if it lasts, look at `segnode status`.",
            )  # fmt: skip
            return
        try:
            status, content_type, content = ask_node(method, path, body, timeout_s=PROXY_TIMEOUT_S)
        except NodeSilent as error:
            refuse(
                output, 503, f"The node does not answer ({error}).",
                "Orthanc goes on receiving. Start the node with `segnode up`; "
                "`segnode status` says which process is down.",
            )  # fmt: skip
            return
        finally:
            self._free_calls.release()
        if status in (401, 403):  # ours, not the user's: a 401 would ask for Orthanc's password
            refuse(
                output, 503, "The node refuses the bridge's token.",
                "Start Orthanc and the node from the same setup: `segnode down`, `segnode up`.",
            )  # fmt: skip
        elif status == 200:
            output.AnswerBuffer(content, safe_type(content_type))
        else:  # Orthanc sends every other status as text/plain
            output.SendHttpStatus(status, content)


def safe_type(content_type):
    """The node's content type, if it is one that a browser never runs."""
    kind = content_type.split(";")[0].strip().lower()
    return kind if kind in ("application/json", "image/png") else "application/octet-stream"


def refuse(output, status, message, remedy):
    """An answer in the words of the node's own: what is wrong, and what to do."""
    output.SendHttpStatus(status, json.dumps({"message": message, "remedy": remedy}).encode())


def load_assets(folder):
    """The console's files by name, with their content type."""
    return {
        file.name: (file.read_bytes(), CONTENT_TYPES[file.suffix])
        for file in sorted(folder.iterdir())
        if file.suffix in CONTENT_TYPES
    }


def connect():
    """Register everything with Orthanc; return the REST callback, which must be kept."""
    storage, index = (os.environ[f"SEGNODE_ORTHANC_{name}"] for name in ("STORAGE", "INDEX"))
    others = os.environ.get("SEGNODE_ORTHANC_KEEP_FREE_IN", "").split(":")
    keep_free_bytes = int(os.environ.get("SEGNODE_ORTHANC_KEEP_FREE_BYTES") or 0)
    admission = Admission([storage, index, *filter(None, others)], keep_free_bytes)
    leftovers = Leftovers(storage, index)
    try:
        leftovers.put_aside()
    except (OSError, sqlite3.Error) as error:  # Orthanc itself says more, when it opens them
        orthanc.LogError(f"segnode: files and index were not compared ({type(error).__name__})")
    nudger, console = Nudger(), Console(load_assets(ASSETS), admission, leftovers)
    nudger.start()
    atexit.register(nudger.stop)  # runs when Orthanc finalizes its Python
    arrivals = {orthanc.ChangeType.NEW_INSTANCE, orthanc.ChangeType.ORTHANC_STARTED}

    def on_change(change, _level, resource):
        if change == orthanc.ChangeType.DELETED:
            leftovers.deleted(resource)
        if change in arrivals:
            nudger.nudge()

    orthanc.RegisterOnChangeCallback(on_change)
    orthanc.RegisterIncomingCStoreInstanceFilter(admission.c_store)
    orthanc.RegisterIncomingHttpRequestFilter(admission.http)
    answer = console.answer
    orthanc.RegisterRestCallback(f"{ROOT}(/.*)?", answer)
    # Orthanc Explorer is at /app/explorer.html, its extensions at /plugins/explorer.js.
    orthanc.ExtendOrthancExplorer(
        'import("../segnode/study_panel.js").catch(function (error) {'
        ' console.warn("segnode: no study panel", error); });'
    )
    orthanc.SetDescription("segnode: the processing node's jobs, on each study and in one list")
    orthanc.SetRootUri(f"..{ROOT}/index.html")
    return answer


# Plugin 7.1 drops its reference to a REST callback after Python is finalized: were it the last one,
# Orthanc would crash (exit status 139) at every stop.
KEPT = connect()
