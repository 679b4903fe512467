"""Everything that can be set, as one frozen typed object.

Read from ``segnode.toml`` (or the file that ``SEGNODE_CONFIG`` names) and from environment
variables, which win: ``SEGNODE_DICOM__PORT=11112`` sets ``port`` of ``[dicom]``. A bad value stops
the start and names its field. ``segnode.example.toml`` documents every setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydicom.datadict import tag_for_keyword

from node.errors import NodeError
from node.kinds import CHOOSABLE, ResultKind

_T = TypeVar("_T")

Port = Annotated[int, Field(ge=1, le=65535)]
#: PS3.5 6.2: at most 16 characters of the default repertoire, no backslash, no control character.
AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class BadSettings(NodeError):
    """The configuration cannot be used; the message lists each field and what is wrong."""

    default_remedy = "Correct the file; segnode.example.toml documents every setting."


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _known_keyword(keyword: str) -> str:
    if tag_for_keyword(keyword) is None:
        raise ValueError(f"{keyword!r} is not the keyword of a DICOM attribute (PS3.6)")
    return keyword


Keyword = Annotated[str, AfterValidator(_known_keyword)]


class Dicom(_Section):
    """The node as the hospital sees it."""

    ae_title: AeTitle = "SEGNODE"
    port: Port = 4242
    tls: bool = False  # the port speaks TLS, and nothing else
    certificate: Path | None = None  # the node's, shown to who calls and to who is called
    private_key: Path | None = None
    certificate_authority: Path | None = None  # whose certificates are trusted


class Orthanc(_Section):
    """The Orthanc that receives. Its HTTP listens on loopback only."""

    http_port: Port = 8042
    url: str | None = None  # where another host or container runs it
    launcher: Path = Path("deploy/run-orthanc")
    configuration: Path = Path("orthanc.json")
    bridge: Path = Path("plugins/orthanc_bridge/bridge.py")


class Broker(_Section):
    """Redis. The node starts its own unless ``url`` names one."""

    port: Port = 6399
    url: str | None = None


class Console(_Section):
    """The HTTP interface behind the pages in Orthanc's console; loopback only."""

    port: Port = 8043
    host: str = "127.0.0.1"


class Receive(_Section):
    """When a series counts as complete."""

    quiet_s: Annotated[float, Field(ge=0.2)] = 10.0
    max_quiet_s: Annotated[float, Field(ge=0.2)] = 120.0
    patience_s: Annotated[float, Field(ge=0)] = 60.0
    poll_s: Annotated[float, Field(ge=0.05)] = 1.0

    @property
    def longest_quiet_s(self) -> float:
        """What bounds the wait for a sender who pauses."""
        return max(self.quiet_s, self.max_quiet_s)


class Storage(_Section):
    """When the node stops receiving: before a disk that it writes to is full."""

    keep_free_gib: Annotated[float, Field(ge=0)] = 5.0
    at_most_gib: Annotated[float, Field(gt=0)] | None = None  # of received objects

    @property
    def keep_free_bytes(self) -> int:
        """The same in bytes."""
        return int(self.keep_free_gib * 2**30)


Days = Annotated[float, Field(ge=0)] | Literal["for ever"]


class Retention(_Section):
    """How many days is kept what nothing needs any more."""

    confirmed_days: Days = 30.0  # received series whose results are all proven delivered
    unwanted_days: Days = "for ever"  # received series that no rule wants
    stopped_days: Days = 14.0  # working data of jobs that are canceled or rejected


class Deidentify(_Section):
    """What a site adds to the PS3.15 basic profile, and whose vault it is."""

    options: tuple[str, ...] = ("retain-longitudinal-modified-dates",)
    recipe: Path | None = None
    tenant: Name = "hospital"


class Workers(_Section):
    """How many steps run at once."""

    hospital_processes: Annotated[int, Field(ge=1)] = 2
    delivery_processes: Annotated[int, Field(ge=1)] = 2
    compute_processes: Annotated[int, Field(ge=1)] = 1
    compute_ahead: Annotated[int, Field(ge=1)] | None = None  # default: one more than processes
    recovery_s: Annotated[float, Field(ge=2.0)] = 10.0
    compute_threads: Annotated[int, Field(ge=1)] = Field(
        default_factory=lambda: os.cpu_count() or 1
    )


_Seconds = Annotated[float, Field(gt=0)] | None


class Deadlines(_Section):
    """How long one try of a step may take; ``node.pipeline.STEPS`` has the defaults."""

    receive: _Seconds = None
    route: _Seconds = None
    deidentify: _Seconds = None
    infer: _Seconds = None
    encode: _Seconds = None
    reidentify: _Seconds = None
    deliver: _Seconds = None
    confirm: _Seconds = None


class _Peer(_Section):
    """A destination: what it is called, and which kinds of result it takes."""

    name: Name
    results: Annotated[tuple[ResultKind, ...], Field(min_length=1)] = (ResultKind.SEG,)
    segmentation_type: Literal["binary", "labelmap", "auto"] = "binary"  # of the "seg"
    capture_every: Annotated[int, Field(ge=1)] = 1  # of the slices with a segment, every nth
    # AE titles of senders whose series it can be asked for; "*": anybody's
    holds_series_of: tuple[AeTitle, ...] = ()

    @model_validator(mode="after")
    def _results_hold_what_they_refer_to(self) -> _Peer:
        _unique("result", list(self.results))
        if strange := set(self.results) - set(CHOOSABLE):
            raise ValueError(f'results: "{min(strange)}" is "seg" with segmentation_type')
        if ResultKind.SR in self.results and ResultKind.SEG not in self.results:
            raise ValueError('results: "sr" refers to the segments of the "seg"; add "seg"')
        return self


class DicomPeer(_Peer):
    """A PACS or modality: may send to the node from ``host``, and take results at ``port``."""

    ae_title: AeTitle
    host: str
    port: Port
    may_send: bool = True
    storage_commitment: bool = True
    tls: bool = False  # it is called by TLS
    certificate_authority: Path | None = None  # default: that of [dicom]
    answer_timeout_s: Annotated[float, Field(gt=0)] = 60.0  # how long it may think

    @model_validator(mode="before")
    @classmethod
    def _holds_what_it_sends(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("may_send", True) and "ae_title" in given:
            return {"holds_series_of": (given["ae_title"],), **given}
        return given


class DicomWebPeer(_Peer):
    """A destination that takes results by STOW-RS."""

    url: str
    username: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    certificate_authority: Path | None = None
    answer_timeout_s: Annotated[float, Field(gt=0)] = 300.0  # how long it may think


class Condition(_Section):
    """One typed condition: exactly one of tag or geometry, and at least one test of its value."""

    tag: Keyword | None = None
    geometry: Literal["slice_count", "slice_thickness_mm", "slice_spacing_mm"] | None = None
    equals: str | float | None = None
    one_of: tuple[str | float, ...] | None = None
    none_of: tuple[str | float, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None
    matches: str | None = None  # a regular expression, over the whole value
    present: bool | None = None

    @model_validator(mode="after")
    def _one_subject_some_test(self) -> Condition:
        if (self.tag is None) == (self.geometry is None):
            raise ValueError("give exactly one of `tag` and `geometry`")
        tests = (
            self.equals, self.one_of, self.none_of, self.at_least, self.at_most,
            self.matches, self.present,
        )  # fmt: skip
        if all(test is None for test in tests):
            raise ValueError(
                "give at least one of equals, one_of, none_of, at_least, at_most, matches, present"
            )
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"`matches` is no regular expression: {error}") from None
        return self


class Rule(_Section):
    """Which series go to which model, and where the results go (``sender``: back)."""

    name: Name
    model: Name
    precedence: int = 0  # which rule is asked first: the higher; among equals the order of the file
    priority: Literal["urgent", "routine", "off-peak"] = "routine"  # whose turn comes first
    destinations: tuple[Name, ...] = ("sender",)
    explain: bool = False  # an unsuitable series comes back as a page that says why
    when: Annotated[tuple[Condition, ...], Field(min_length=1)]


class Routing(_Section):
    """Whether a series goes to the first rule that matches, or to all of them."""

    match: Literal["first", "all"] = "first"


class Settings(BaseSettings):
    """Everything that can be set. Paths are relative to the working directory."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="SEGNODE_", env_nested_delimiter="__"
    )

    var_dir: Path = Path("var")
    models_dir: Path = Path("models")
    secrets_dir: Path | None = None  # default: <var_dir>/secrets
    artifacts_dir: Path | None = None  # default: <var_dir>/artifacts
    vault_dir: Path | None = None  # default: <var_dir>/vault
    exports_dir: Path | None = None  # default: <var_dir>/exports
    ledger_url: str | None = None  # default: SQLite at <var_dir>/ledger.sqlite
    dicom: Dicom = Dicom()
    orthanc: Orthanc = Orthanc()
    broker: Broker = Broker()
    console: Console = Console()
    receive: Receive = Receive()
    storage: Storage = Storage()
    retention: Retention = Retention()
    deidentify: Deidentify = Deidentify()
    workers: Workers = Workers()
    deadlines_s: Deadlines = Deadlines()
    routing: Routing = Routing()
    dicom_peers: tuple[DicomPeer, ...] = ()
    dicomweb_peers: tuple[DicomWebPeer, ...] = ()
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Settings:
        names = [peer.name for peer in self.peers]
        _unique("peer", names)
        _unique("rule", [rule.name for rule in self.rules])
        for number, rule in enumerate(self.rules):
            for destination in rule.destinations:
                if destination not in (*names, "sender"):
                    raise ValueError(
                        f"rules.{number} ({rule.name}): destination {destination!r} is no peer"
                    )
        return self

    @model_validator(mode="after")
    def _tls_has_its_certificates(self) -> Settings:
        dicom = self.dicom
        by_tls = [peer for peer in self.dicom_peers if peer.tls]
        if (dicom.tls or by_tls) and not (dicom.certificate and dicom.private_key):
            raise ValueError("dicom: TLS needs `certificate` and `private_key`")
        if dicom.tls and not dicom.certificate_authority:
            raise ValueError("dicom: TLS needs `certificate_authority`: whose senders are trusted")
        for peer in by_tls:
            if not (peer.certificate_authority or dicom.certificate_authority):
                raise ValueError(f"peer {peer.name}: TLS needs a `certificate_authority`")
        return self

    @property
    def peers(self) -> tuple[DicomPeer | DicomWebPeer, ...]:
        """Everybody who can take results."""
        return (*self.dicom_peers, *self.dicomweb_peers)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file before defaults."""
        file = Path(os.environ.get("SEGNODE_CONFIG", "segnode.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    def folder(self, name: Literal["secrets", "artifacts", "vault", "exports"]) -> Path:
        """The folder of secrets, artifacts, vault or exports: as set, or below ``var_dir``."""
        chosen: Path | None = getattr(self, f"{name}_dir")
        return chosen or self.var_dir / name

    @property
    def ledger(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{(self.var_dir / 'ledger.sqlite').absolute()}"

    @property
    def orthanc_url(self) -> str:
        """Where Orthanc's REST interface answers."""
        return self.orthanc.url or f"http://127.0.0.1:{self.orthanc.http_port}"


class ComputeSettings(BaseSettings):
    """All that a compute worker knows: a broker, folders of artifacts, models and exports."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="SEGNODE_COMPUTE_")

    broker_url: str
    artifacts_dir: Path
    models_dir: Path
    exports_dir: Path | None = None  # without one, networks run in PyTorch
    processes: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = os.cpu_count() or 1


def load() -> Settings:
    """The settings of this process.

    Raises
    ------
    BadSettings
        A value cannot be used, a setting is unknown, or the file that was named is not there.
    """
    named = os.environ.get("SEGNODE_CONFIG")
    if named is not None and not Path(named).is_file():
        raise BadSettings(
            "SEGNODE_CONFIG names a file that is not there",
            remedy="Correct the variable, or unset it to use segnode.toml of this folder.",
        )
    return _explained(Settings)


def load_compute() -> ComputeSettings:
    """The settings of a compute worker, from its environment alone."""
    return _explained(ComputeSettings)


def _explained(make: Callable[[], _T]) -> _T:
    try:
        return make()
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise BadSettings("The settings cannot be used:\n" + "\n".join(lines)) from None


def _unique(kind: str, names: list[Any]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two {kind}s are called {sorted(twice)[0]!r}")
