"""`settings.yaml` as frozen dataclasses. An empty file is enough to run a simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from config import values
from config.console import Console
from config.fields import At, File, Reader, Refused, Unusable, choice, list_of, map_of, read_section, section, setting
from config.notices import NoticeSettings
from config.payments import Payments
from config.problems import Problem
from config.source_list import sources
from config.sources import SimulatedSource, SourceSettings
from config.values import Address, Secret
from config.yaml_nodes import read_yaml
from ledger.errors import CreditsError
from ledger.money import AmountError, parse_credits

DEFAULT_PATH: Final = Path("config/settings.yaml")
REDIS_URL_VARIABLE: Final = "CREDITS_REDIS_URL"
REDIS_SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
_mode = choice("enforce", "shadow", "off")


def check_redis_url(text: str) -> str:
    """`embedded`, or the URL of a Redis or Valkey. Raises: Refused, not repeating it, for it may hold a password."""
    if text == "embedded":
        return text
    try:
        parts = urlsplit(text)
        server = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
    except ValueError:
        raise Refused("is not a URL") from None
    if parts.scheme not in REDIS_SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES)
        raise Refused(f"is neither `embedded` nor a URL of {schemes}")
    if not server or not text.isprintable() or " " in text:
        example = "unix:///run/valkey.sock" if parts.scheme == "unix" else f"{parts.scheme}://127.0.0.1:6379"
        raise Refused(f"names no server; write it like {example}")
    return text


def _read_redis_url(at: At) -> str:
    try:
        return check_redis_url(values.secret.read(at).read())
    except CreditsError as error:
        raise Refused(str(error)) from None


def _as_credits(text: str) -> int:
    micro = parse_credits(text)
    if micro < 0:
        raise AmountError(f"amount {text!r} is negative")
    return micro


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """The server that holds the ledger."""

    url: str = field(
        default="embedded",
        repr=False,
        metadata=setting(
            Reader("`embedded` or URL", _read_redis_url, secret=True, forms=values.secret.forms),
            "`embedded` is a server of our own in `data_dir`; else Redis >= 7.0 or Valkey by a URL of redis://, "
            f"rediss://, unix://, redis+sentinel:// or redis+cluster://. {REDIS_URL_VARIABLE} in the environment "
            "goes before it.",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metering:
    """How workloads become charges."""

    interval_seconds: float = field(
        default=15.0,
        metadata=setting(values.seconds, "How often sources are asked. How fresh totals are, never what they are."),
    )
    epoch_us: int | None = field(
        default=None,
        metadata=setting(
            values.time,
            "Nothing before this instant is charged.",
            name="epoch",
            absent="the first start of the ledger",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates of a listener; the files are read again when they change."""

    cert: Path = field(metadata=setting(values.path, "Certificate chain, PEM."))
    key: Path = field(metadata=setting(values.path, "Its private key, PEM."))
    client_ca: Path | None = field(
        default=None,
        metadata=setting(values.path, "Who signs certificates that clients must show.", absent="none asked"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSettings:
    """The process that meters, and serves Prometheus."""

    listen: Address = field(
        default=Address("127.0.0.1", 9470), metadata=setting(values.address, "Where `/metrics` is served.")
    )

    @property
    def host(self) -> str:
        """The interface, "" for all."""
        return self.listen.host

    @property
    def port(self) -> int:
        """The port, 0 for any that is free."""
        return self.listen.port


@dataclass(frozen=True, slots=True, kw_only=True)
class EnforcerSettings:
    """The process that admits work, and serves the API and the console."""

    listen: Address = field(
        default=Address("127.0.0.1", 9471), metadata=setting(values.address, "Where the API is served.")
    )
    tls: Tls | None = field(default=None, metadata=setting(section(Tls), "Serve https.", absent="http"))
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = field(
        default=(),
        metadata=setting(
            list_of(values.network),
            "Proxies before the API: what their X-Forwarded-For says is the caller's address, in the journal and "
            "where failures are counted.",
            absent="none",
        ),
    )

    @property
    def host(self) -> str:
        """The interface, "" for all."""
        return self.listen.host

    @property
    def port(self) -> int:
        """The port, 0 for any that is free."""
        return self.listen.port


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """What has to be there for work to start."""

    mode: str = field(
        default="enforce",
        metadata=setting(
            _mode, "`shadow` decides, journals and lets everything pass; `off` lets pass and counts nothing."
        ),
    )
    clusters: Mapping[str, str] = field(
        default_factory=dict, metadata=setting(map_of(_mode, "CLUSTER"), "Clusters with another mode.", absent="none")
    )
    hold_minutes: float = field(
        default=15.0,
        metadata=setting(values.minutes, "Work needs credits for this long, or its time limit if that is shorter."),
    )
    unknown_org: str = field(
        default="deny", metadata=setting(choice("deny", "allow"), "What is said to an org the ledger does not know.")
    )
    on_ledger_down: str = field(
        default="deny", metadata=setting(choice("deny", "allow"), "What is said while the ledger is out of reach.")
    )
    allow_cap_micro: int = field(
        default=100_000_000,
        metadata=setting(
            Reader("credits", lambda at: values.decimal_text(at, "100")).then(_as_credits),
            "With `on_ledger_down: allow`: how much of an org each enforcer lets start, in credits, until the "
            "ledger is back. Several let that much start each.",
            name="allow_cap_credits",
            absent="100",
        ),
    )
    decision_seconds: float = field(
        default=1.0,
        metadata=setting(
            values.number("seconds", 0.01, 30.0, "1"),
            "An answer to admission never takes longer than this, with all that is asked for it.",
        ),
    )
    buy_url: str | None = field(
        default=None,
        metadata=setting(values.url("http", "https"), "Where credits are bought: said in refusals.", absent="not said"),
    )

    def mode_of(self, cluster: str) -> str:
        """The mode in a cluster."""
        return self.clusters.get(cluster, self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Who is told of everything that orgs are told of, by HTTP: changes of stage, purchases, runway..."""

    url: str = field(metadata=setting(values.url("http", "https"), "Gets each event as a JSON body by POST."))
    secret: Secret = field(
        repr=False, metadata=setting(values.secret, "Signs the body: header `Credits-Signature`, HMAC-SHA256.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustion:
    """What happens to an org that runs out."""

    warn_hours_left: float = field(
        default=24.0, metadata=setting(values.hours, "The org is warned when credits last no longer than this.")
    )
    grace_minutes: float = field(
        default=10.0, metadata=setting(values.minutes, "Between the signal to running work and what comes `then`.")
    )
    then: str = field(
        default="block",
        metadata=setting(
            choice("block", "suspend", "stop"),
            "`block` refuses new work only; `suspend` and `stop` also act on what runs, after the grace.",
        ),
    )
    webhook: Webhook | None = field(
        default=None, metadata=setting(section(Webhook), "Who is told of every event of every org.", absent="nobody")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long details are kept. Totals are kept for ever."""

    run_days: int = field(
        default=400,
        metadata=setting(
            values.whole_number(62, 36500),
            "Records of single workloads, after their end. A workload that is first listed later than this is not "
            "charged, but counted as `too_late`.",
        ),
    )
    hour_days: int = field(
        default=400,
        metadata=setting(values.whole_number(62, 36500), "Amounts by the hour; older ones are kept by day (UTC)."),
    )
    journal_days: int | None = field(
        default=None,
        metadata=setting(
            values.whole_number(62, 36500),
            "Journals: who granted what and changed which limit, when and why.",
            absent="kept for ever",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Paths are relative to the working directory."""

    path: Path
    """The file they were read from."""
    redis: RedisSettings = field(
        default_factory=RedisSettings, metadata=setting(section(RedisSettings), "The server that holds the ledger.")
    )
    data_dir: Path = field(
        default=Path("var"),
        metadata=setting(values.path, "Data of the embedded server; what was let through without the ledger."),
    )
    rates: Path = field(
        default=Path("config/rates.yaml"),
        metadata=setting(values.path, "The file of rates; edits take effect at once."),
    )
    metering: Metering = field(
        default_factory=Metering, metadata=setting(section(Metering), "How workloads become charges.")
    )
    sources: tuple[SourceSettings, ...] = field(
        default=(SimulatedSource(name="simulated-default"),),
        metadata=setting(sources, "Where workloads come from.", absent="a simulated cluster `default`"),
    )
    exporter: ExporterSettings = field(
        default_factory=ExporterSettings, metadata=setting(section(ExporterSettings), "Meters, and serves Prometheus.")
    )
    enforcer: EnforcerSettings = field(
        default_factory=EnforcerSettings, metadata=setting(section(EnforcerSettings), "Admits, serves API and console.")
    )
    admission: AdmissionSettings = field(
        default_factory=AdmissionSettings, metadata=setting(section(AdmissionSettings), "What work needs to start.")
    )
    exhaustion: Exhaustion = field(
        default_factory=Exhaustion, metadata=setting(section(Exhaustion), "What happens to an org that runs out.")
    )
    retention: Retention = field(
        default_factory=Retention, metadata=setting(section(Retention), "How long details are kept.")
    )
    notices: NoticeSettings = field(
        default_factory=NoticeSettings, metadata=setting(section(NoticeSettings), "How people are told.")
    )
    console: Console = field(
        default_factory=Console, metadata=setting(section(Console), "The web pages, and who may see them.")
    )
    payments: Payments | None = field(
        default=None, metadata=setting(section(Payments), "Selling credits by card.", absent="nothing is sold")
    )


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in a file, completed from the environment.

    Raises: ConfigError with everything that is wrong.
    """
    file = File(str(path), environ, [])
    redis = _redis_from(environ, file)
    settings = None
    with suppress(Unusable):
        settings = read_section(At(file, (), read_yaml(path, file.problems)), Settings, given={"path": path})
    file.finish()
    assert settings is not None, "what is unusable is reported"
    return settings if redis is None else replace(settings, redis=redis)


def _redis_from(environ: Mapping[str, str], file: File) -> RedisSettings | None:
    url = environ.get(REDIS_URL_VARIABLE)
    if not url:
        return None
    try:
        return RedisSettings(url=check_redis_url(url))
    except Refused as error:
        file.problems.append(Problem("environment", 0, REDIS_URL_VARIABLE, None, str(error)))
        return None
