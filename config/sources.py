"""Settings of the sources of workloads, one dataclass for each `type`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from config import values
from config.fields import Refused, choice, list_of, section, setting
from config.slurm_rules import AccountRule, PresetRule, SlurmRules
from config.values import Secret

APOLO: Final = "platform.apolo.us/"
NEURO: Final = "platform.neuromation.io/"

_name = setting(values.name, "What metrics and logs call the source; unique.", absent="TYPE-CLUSTER")
_cluster = setting(values.name, "The cluster whose rates apply.")
_timeout = setting(values.seconds, "How long one answer may take.")
_http = values.url("http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSource:
    """Any scheduler, through a document that a file, a URL or a command gives. One of the three is needed."""

    name: str = field(default="", metadata=_name)
    cluster: str = field(default="default", metadata=_cluster)
    path: Path | None = field(
        default=None, metadata=setting(values.path, "The file that holds the document.", absent="—")
    )
    url: str | None = field(default=None, metadata=setting(_http, "Where the document is fetched.", absent="—"))
    command: tuple[str, ...] | str | None = field(
        default=None, metadata=setting(values.command, "What prints the document; text is for /bin/sh.", absent="—")
    )
    token: Secret | None = field(
        default=None,
        metadata=setting(values.secret, "Sent to `url` as `Authorization: Bearer`.", absent="none is sent"),
    )
    timeout_seconds: float = field(default=10.0, metadata=_timeout)

    def __post_init__(self) -> None:
        ways = [way for way in (self.path, self.url, self.command) if way is not None]
        if len(ways) != 1:
            raise Refused("needs exactly one of path, url and command")
        if self.token is not None and self.url is None:
            raise Refused("has a token, which only goes with url")


@dataclass(frozen=True, slots=True, kw_only=True)
class _AccountKeys:
    """Which org and project a Slurm account belongs to."""

    account: str = field(metadata=setting(values.glob, "The account, with `*` and `?`."))
    org: str = field(
        metadata=setting(
            values.text,
            "The org. Words: {account}, {parent}, {top} (its ancestor below the root), {1}, {2} for each `*`.",
        )
    )
    project: str = field(default="", metadata=setting(values.glob, "The project, with the same words.", absent="none"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _PresetKeys:
    """Which preset a Slurm job runs on."""

    preset: str = field(metadata=setting(values.text, "The preset. Words: {partition}, {qos}."))
    partition: str = field(default="*", metadata=setting(values.glob, "The partition, with `*` and `?`."))
    qos: str = field(default="*", metadata=setting(values.glob, "The QOS, with `*` and `?`."))
    gres: str | None = field(
        default=None,
        metadata=setting(
            values.glob,
            'One of the GRES: `gpu`, `gpu:a100`, or with its count in the job, `gpu:a100=2`; "": a job without.',
            absent="any or none",
        ),
    )


_account_rule = section(_AccountKeys).then(
    lambda keys: AccountRule(account=keys.account, org=keys.org, project=keys.project)
)
_preset_rule = section(_PresetKeys).then(
    lambda keys: PresetRule(preset=keys.preset, partition=keys.partition, qos=keys.qos, gres=keys.gres)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSource:
    """A Slurm cluster, through its commands."""

    name: str = field(default="", metadata=_name)
    cluster: str = field(default="default", metadata=_cluster)
    slurm_conf: Path | None = field(
        default=None, metadata=setting(values.path, "SLURM_CONF of the commands.", absent="Slurm's own default")
    )
    bin_dir: Path | None = field(
        default=None, metadata=setting(values.path, "Where squeue, sacct, sacctmgr are.", absent="searched on PATH")
    )
    run_with: tuple[str, ...] = field(
        default=(), metadata=setting(values.arguments, "Put before each command: `[ssh, login1]`.", absent="nothing")
    )
    accounts: tuple[AccountRule, ...] = field(
        default=(),
        metadata=setting(
            list_of(_account_rule),
            "Account to org and project: the first rule that matches decides, without a match nobody pays.",
            absent="org {top}, project {account}",
        ),
    )
    presets: tuple[PresetRule, ...] = field(
        default=(),
        metadata=setting(
            list_of(_preset_rule),
            "Partition, QOS and GRES to preset: the first rule that matches decides.",
            absent="the partition",
        ),
    )
    accounting: str = field(
        default="auto",
        metadata=setting(
            choice("auto", "on", "off"),
            "Whether sacct is asked for runs that squeue forgot; `auto`: where slurmdbd is configured.",
        ),
    )
    lookback_hours: float = field(
        default=24.0, metadata=setting(values.hours, "How far back the first round asks accounting for ended jobs.")
    )
    grace_signal: str = field(
        default="CONT",
        metadata=setting(
            choice("CONT", "TERM", "INT", "HUP", "USR1", "USR2", "none"),
            "What tells jobs that credits run out; all but `CONT` end a job that does not catch them.",
        ),
    )
    timeout_seconds: float = field(default=20.0, metadata=_timeout)

    @property
    def rules(self) -> SlurmRules:
        """What jobs are in credits' words."""
        return SlurmRules(self.accounts, self.presets)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSource:
    """A made-up cluster, for trying things out. The same seed gives the same history."""

    name: str = field(default="", metadata=_name)
    cluster: str = field(default="default", metadata=_cluster)
    seed: int = field(default=1, metadata=setting(values.whole_number(0, 2**32 - 1), "What chance starts from."))
    orgs: tuple[str, ...] = field(
        default=("acme", "globex", "initech", "umbrella"), metadata=setting(list_of(values.name), "Orgs that run work.")
    )
    jobs_per_hour: float = field(
        default=12.0,
        metadata=setting(
            values.number("jobs an hour", 0, 1e6), "Jobs that an org of middle size submits in its busiest hour."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeBack:
    """Passing charges on to the platform, so that its own screens agree."""

    admin_url: str | None = field(
        default=None, metadata=setting(_http, "The admin API.", absent="`/apis/admin/v1` of the host of `url`")
    )
    token: Secret | None = field(
        default=None,
        metadata=setting(values.secret, "A token that may charge all orgs of the cluster.", absent="the source's"),
    )
    interval_seconds: float = field(
        default=300.0, metadata=setting(values.seconds, "How often what is new of full hours is passed on.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApoloSource:
    """An Apolo cluster, through the platform's API."""

    name: str = field(default="", metadata=_name)
    cluster: str = field(default="default", metadata=_cluster)
    url: str = field(
        default="https://api.apolo.us/api/v1", metadata=setting(_http, "The platform's API, with `/api/v1`.")
    )
    token: Secret = field(metadata=setting(values.secret, "A token that may read `job://CLUSTER`."))
    platform_cluster: str | None = field(
        default=None, metadata=setting(values.name, "What Apolo calls the cluster.", absent="the same as `cluster`")
    )
    orgs: tuple[str, ...] = field(
        default=(), metadata=setting(list_of(values.name), "Only these orgs are metered.", absent="all orgs")
    )
    lookback_days: int = field(
        default=30,
        metadata=setting(values.whole_number(0, 180), "How far back the first round looks for jobs that have ended."),
    )
    disks: bool = field(default=True, metadata=setting(values.truth, "Meter the platform's disks as storage."))
    disk_class: str = field(
        default="default", metadata=setting(values.name, "The storage class that disks are charged as.")
    )
    disks_interval_seconds: float = field(
        default=300.0, metadata=setting(values.seconds, "How often disks are asked for; it takes a call a project.")
    )
    use_platform_rates: bool = field(
        default=False,
        metadata=setting(
            values.truth, "Take rates from the platform's config where rates.yaml has none, dated when seen."
        ),
    )
    charge_back: ChargeBack | None = field(
        default=None,
        metadata=setting(section(ChargeBack), "Pass charges on to the platform.", absent="nothing is passed on"),
    )
    timeout_seconds: float = field(default=60.0, metadata=_timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Label keys that say whose a pod is; the first that is there counts."""

    org: tuple[str, ...] = field(
        default=(APOLO + "org", NEURO + "org"), metadata=setting(list_of(values.name), "The org.")
    )
    project: tuple[str, ...] = field(
        default=(APOLO + "project", NEURO + "project"), metadata=setting(list_of(values.name), "The project.")
    )
    user: tuple[str, ...] = field(
        default=(APOLO + "user", NEURO + "user"), metadata=setting(list_of(values.name), "The user.")
    )
    preset: tuple[str, ...] = field(
        default=(APOLO + "preset", NEURO + "preset"), metadata=setting(list_of(values.name), "The preset.")
    )
    job: tuple[str, ...] = field(
        default=(APOLO + "job", NEURO + "job"), metadata=setting(list_of(values.name), "The platform's job id.")
    )
    app: tuple[str, ...] = field(
        default=(APOLO + "app-instance-name", "app.kubernetes.io/instance"),
        metadata=setting(list_of(values.name), "The app instance."),
    )
    storage_class: tuple[str, ...] = field(
        default=(), metadata=setting(list_of(values.name), "The class of a volume.", absent="its storageClassName")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetSize:
    """What a pod may take on a preset, to find the preset of a pod that takes more than its label says."""

    preset: str = field(metadata=setting(values.name, "The preset."))
    cpu: float = field(metadata=setting(values.number("cores", 0, 1e6, "7.5"), "CPU cores."))
    memory_gb: float = field(metadata=setting(values.number("GB", 0, 1e7, "48"), "Memory, in GB of 10^9 bytes."))
    gpus: int = field(default=0, metadata=setting(values.whole_number(0, 10000), "GPUs of any make."))


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUsage:
    """`storage_used_bytes` out of a Prometheus, the larger of doubled series."""

    url: str = field(metadata=setting(_http, "The Prometheus server."))
    query: str = field(
        default="max by (org_name, project_name) (storage_used_bytes)",
        metadata=setting(values.text, "Gives bytes by `org_name` and `project_name`."),
    )
    storage_class: str = field(default="default", metadata=setting(values.name, "The class it is charged as."))
    token: Secret | None = field(
        default=None, metadata=setting(values.secret, "Sent as `Authorization: Bearer`.", absent="none is sent")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesActions:
    """What may be done to pods when credits run out."""

    evict: bool = field(default=True, metadata=setting(values.truth, "Evict pods (disruption budgets are respected)."))
    annotate: bool = field(default=True, metadata=setting(values.truth, "Write the reason on the pod, and an event."))
    scale_owners: bool = field(
        default=False, metadata=setting(values.truth, "Scale owners to zero that would make the pod again.")
    )
    grace_seconds: float = field(
        default=30.0, metadata=setting(values.number("seconds", 0, 86400, "30"), "Time between SIGTERM and SIGKILL.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSource:
    """Pods and volumes of a Kubernetes cluster."""

    name: str = field(default="", metadata=_name)
    cluster: str = field(default="default", metadata=_cluster)
    url: str | None = field(
        default=None, metadata=setting(_http, "The API server.", absent="that of the cluster this runs in")
    )
    token: Secret | None = field(
        default=None,
        metadata=setting(values.secret, "Sent as `Authorization: Bearer`.", absent="the service account's"),
    )
    ca_file: Path | None = field(
        default=None,
        metadata=setting(
            values.path, "Certificates to trust.", absent="the service account's, or the system's with `url`"
        ),
    )
    client_cert: Path | None = field(
        default=None, metadata=setting(values.path, "Client certificate, instead of a token.", absent="none")
    )
    client_key: Path | None = field(default=None, metadata=setting(values.path, "Its key.", absent="none"))
    selector: str = field(
        default="", metadata=setting(values.text, "Label selector of the pods that are metered.", absent="all pods")
    )
    skip_namespaces: tuple[str, ...] = field(
        default=("kube-system", "kube-public", "kube-node-lease"),
        metadata=setting(list_of(values.name), "Namespaces that are neither metered nor refused anything."),
    )
    labels: Labels = field(default_factory=Labels, metadata=setting(section(Labels), "Labels that say whose a pod is."))
    presets: tuple[PresetSize, ...] = field(
        default=(),
        metadata=setting(list_of(section(PresetSize)), "Sizes of presets.", absent="labels are trusted"),
    )
    volumes: bool = field(default=True, metadata=setting(values.truth, "Meter persistent volume claims as storage."))
    storage: StorageUsage | None = field(
        default=None, metadata=setting(section(StorageUsage), "Shared storage, by use.", absent="not metered")
    )
    actions: KubernetesActions = field(
        default_factory=KubernetesActions, metadata=setting(section(KubernetesActions), "What may be done to pods.")
    )
    timeout_seconds: float = field(default=30.0, metadata=_timeout)

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise Refused("needs both client_cert and client_key, or neither")


SourceSettings = JsonSource | SlurmSource | SimulatedSource | ApoloSource | KubernetesSource
