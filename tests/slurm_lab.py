"""A real single-host Slurm for tests: its own directory, ports, keys and, where asked for, accounting database.

Runs as root without systemd. Every daemon stays in the foreground as a child of the test, so stopping is exact.
`SlurmLab(base, accounting=True).start()`, then `sbatch`, `wait_state`, `sacct`; `stop()` ends everything.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.servers import tied

CLUSTER = "lab"
USERS = ("alice", "bob")
PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server lua-socket"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
_DATABASE_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacctmgr", "sacct")
_GPUS = 4


class SbatchRefused(Exception):
    """`sbatch` said no; the message is what its user saw."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job as accounting tells it: instants in whole seconds since 1970, durations in seconds."""

    job_id: int
    state: str
    submit: int | None
    start: int | None
    end: int | None
    elapsed: int
    suspended: int
    account: str
    tres: str


def missing_for_lab(accounting: bool = True) -> str | None:
    """Why no lab can run here, in words for a skipped test; None where it can."""
    if os.geteuid() != 0:
        return "a real Slurm is started as root only"
    programs = _PROGRAMS + (_DATABASE_PROGRAMS if accounting else ())
    absent = [name for name in programs if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install --no-install-recommends {PACKAGES}"
    return None


def _path() -> str:
    """Where programs are looked for: daemons are in places that not every shell looks in."""
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range the system hands out by itself."""
    found: dict[int, socket.socket] = {}
    try:
        while len(found) < count:
            port = random.randrange(10_000, 32_000)
            if port in found:
                continue
            probe = socket.socket()
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.close()
            else:
                found[port] = probe
        return list(found)
    finally:
        for probe in found.values():
            probe.close()


def wait_until(what: str, ready: Callable[[], bool], seconds: float = 30, pause: float = 0.05) -> None:
    """Come back as soon as `ready`; TimeoutError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(pause)


class SlurmLab:
    """One cluster `lab`: partitions cpu (default) and gpu, `nodes` nodes of 16 pretended CPUs and 4 GPUs each.

    With accounting: accounts acme > proja (alice), projb (alice, bob); QOS normal, low (preempted by high,
    requeued), high. Without: any account, no QOS, no GPUs in a job's tres. `hook` is the directory of
    job_submit.lua and what it loads, `hook_settings` what its settings file says at first.
    """

    def __init__(
        self,
        base: Path,
        *,
        accounting: bool = True,
        nodes: int = 4,
        min_job_age: int = 300,
        hook: Path | None = None,
        hook_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self.accounting = accounting
        self.nodes = nodes
        self.min_job_age = min_job_age
        self._hook = hook
        self._hook_settings = hook_settings or {}
        self.conf = base / "conf"
        self.run_dir = base / "run"
        self.log_dir = base / "log"
        self._ports = free_ports(3 + nodes)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def slurm_conf(self) -> Path:
        return self.conf / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's own programs talk to this cluster."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return inherited | {"SLURM_CONF": str(self.slurm_conf), "TZ": "UTC", "PATH": _path()}

    # Life

    def start(self) -> SlurmLab:
        try:
            self._make_files()
            self._spawn("munged", *self._munged())
            wait_until("munged", lambda: self._ok("munge", "-S", str(self.run_dir / "munge.sock"), "-n"), 10)
            if self.accounting:
                self._start_database()
                self.start_slurmdbd()
                self._make_accounts()
            self.start_slurmctld()
            for name in self.node_names:
                self._spawn(name, "slurmd", "-D", "-N", name)
            wait_until("all nodes idle", self._nodes_idle, 60)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all jobs, then all daemons, step daemons included."""
        if self._running("slurmctld"):
            self._ok("scancel", "--quiet", "--state=PENDING", "--user=root", timeout=5)
            for user in USERS:
                self._ok("scancel", "--quiet", f"--user={user}", timeout=5)
            with contextlib.suppress(TimeoutError):  # what still runs is ended below
                wait_until("no job runs", lambda: not self._active(), 6, 0.1)
        for name in ("slurmctld", *self.node_names):
            self.end_daemon(name)
        for pid in self._step_daemons():
            os.kill(pid, signal.SIGKILL)
        for name in ("slurmdbd", "mariadbd", "munged"):
            self.end_daemon(name)

    @property
    def node_names(self) -> list[str]:
        return [f"n{index}" for index in range(1, self.nodes + 1)]

    def start_slurmctld(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D")
        wait_until("slurmctld", lambda: self._listens(self._ports[0]), 30)

    def start_slurmdbd(self) -> None:
        self._spawn("slurmdbd", "slurmdbd", "-D")
        wait_until("slurmdbd", lambda: self._listens(self._ports[1]), 30)

    def end_daemon(self, name: str, sig: signal.Signals = signal.SIGTERM) -> None:
        """Stop one daemon (`slurmctld`, `slurmdbd`, `n1`, ...) and wait for it; nothing where it does not run."""
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(sig)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(5)

    # Use

    def run(self, *argv: str, user: str | None = None, timeout: float = 20) -> str:
        """Output of one of Slurm's programs; CalledProcessError with its stderr where it failed."""
        owner = None if user is None else pwd.getpwnam(user)
        done = subprocess.run(
            argv,
            env=self.env,
            cwd="/tmp",
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            extra_groups=None if owner is None else [],
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
        return done.stdout

    def sbatch(
        self, user: str = "alice", account: str | None = "proja", script: str = "sleep 300", options: Iterable[str] = ()
    ) -> int:
        """Submit a script as a user; its job id. Raises SbatchRefused with what the user saw."""
        chosen = [] if account is None else [f"--account={account}"]
        argv = ["sbatch", "--parsable", "--chdir=/tmp", "--output=/dev/null", *chosen, *options, "--wrap", script]
        try:
            return int(self.run(*argv, user=user).strip().split(";")[0])
        except subprocess.CalledProcessError as refused:
            raise SbatchRefused(refused.stderr) from None

    def state(self, job: int | str) -> str:
        """The job's state as squeue names it, `GONE` where the controller has forgotten it."""
        try:
            lines = self.run("squeue", "-h", "-t", "all", "-j", str(job), "-o", "%T").split()
        except subprocess.CalledProcessError:
            return "GONE"
        return lines[0] if lines else "GONE"

    def wait_state(self, job: int | str, *states: str, seconds: float = 40) -> str:
        """Wait until the job is in one of the states; which one."""
        wait_until(f"job {job} in {' or '.join(states)}", lambda: self.state(job) in states, seconds, 0.1)
        return self.state(job)

    def wait_second(self) -> None:
        """Until the clock has passed a whole second: what Slurm does next has another time stamp."""
        start = int(time.time())
        wait_until("the next second", lambda: int(time.time()) > start, 2, 0.01)

    def wait_recorded(self, job: int, runs: int = 1, seconds: float = 30) -> list[Run]:
        """Wait until accounting has this many finished runs of a job (it lags by up to 5 s); these."""

        def done() -> list[Run]:
            return [run for run in self.sacct(job) if run.end is not None and run.state != "PENDING"]

        wait_until(f"{runs} finished run(s) of job {job} in accounting", lambda: len(done()) >= runs, seconds, 0.2)
        return done()

    def sacct(self, job: int | None = None) -> list[Run]:
        """All runs accounting knows, those a requeue has hidden included, oldest first."""
        fields = "JobIDRaw,State,Submit,Start,End,ElapsedRaw,Suspended,Account,AllocTRES"
        chosen = [f"--jobs={job}"] if job is not None else []
        argv = ["env", "SLURM_TIME_FORMAT=%s", "sacct", "-D", "-a", "-X", "-n", "-P", "-S", "2020-01-01", "-o", fields]
        runs = []
        for line in self.run(*argv, *chosen).splitlines():
            raw, state, submit, start, end, elapsed, suspended, account, tres = line.split("|")
            submitted, started, ended = (int(text) if text.isdigit() else None for text in (submit, start, end))
            used = int(elapsed)
            runs.append(Run(int(raw), state, submitted, started, ended, used, _seconds(suspended), account, tres))
        return sorted(runs, key=lambda run: (run.submit or 0, run.job_id))

    def write_hook_conf(self, settings: Mapping[str, str]) -> None:
        """Settings of the submit hook; the hook reads them again when the file changes."""
        target = self.conf / "credits_hook.conf"
        fresh = target.with_suffix(".new")
        fresh.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        fresh.replace(target)

    def log(self, daemon: str = "slurmctld") -> str:
        return (self.log_dir / f"{daemon}.log").read_text(errors="replace")

    # Parts

    def _spawn(self, name: str, *argv: str) -> None:
        program = shutil.which(argv[0], path=self.env.get("PATH"))
        if program is None:
            raise FileNotFoundError(argv[0])
        with (self.log_dir / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                tied(program, *argv[1:]),
                env=self.env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _running(self, name: str) -> bool:
        daemon = self._daemons.get(name)
        return daemon is not None and daemon.poll() is None

    def _ok(self, *argv: str, timeout: float = 3) -> bool:
        try:
            self.run(*argv, timeout=timeout)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
        return True

    def _listens(self, port: int) -> bool:
        dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
        if dead:
            tails = "\n".join((self.log_dir / f"{name}.out").read_text(errors="replace")[-800:] for name in dead)
            raise RuntimeError(f"{', '.join(dead)} ended at start:\n{tails}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _active(self) -> bool:
        try:
            return bool(self.run("squeue", "-h", "-t", "R,S,CG,CF", "-o", "%i", timeout=5).strip())
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return True

    def _nodes_idle(self) -> bool:
        try:
            states = self.run("sinfo", "-h", "-N", "-p", "cpu", "-o", "%T", timeout=3).split()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
        return len(states) == self.nodes and set(states) == {"idle"}

    def _step_daemons(self) -> list[int]:
        """Step daemons of this cluster: they outlive their slurmd and hold files below its directory."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "comm").read_text().strip() != "slurmstepd":
                    continue
                held = [os.readlink(link) for link in (process / "fd").iterdir()]
            except OSError:
                continue
            if any(path.startswith(f"{self.base}/") for path in held):
                found.append(int(process.name))
        return found

    def _munged(self) -> list[str]:
        own = {
            "socket": self.run_dir / "munge.sock",
            "key-file": self.base / "munge" / "munge.key",
            "pid-file": self.run_dir / "munged.pid",
            "log-file": self.log_dir / "munged.log",
            "seed-file": self.base / "munge" / "seed",
        }
        return ["munged", "--foreground", "--force", *(f"--{key}={value}" for key, value in own.items())]

    def _make_files(self) -> None:
        for user in USERS:
            _ensure_user(user)
        for name in ("conf", "run", "log", "state", "spool", "munge", "dev", "db"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for readable in (self.base, self.conf, self.run_dir, self.log_dir):
            readable.chmod(0o755)
        (self.base / "munge").chmod(0o700)
        key = self.base / "munge" / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for index in range(_GPUS):
            device = self.base / "dev" / f"gpu{index}"
            if not device.exists():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        if self._hook is not None:
            for name in ("job_submit.lua", "credits_hook.lua"):
                shutil.copy(self._hook / name, self.conf / name)
            self.write_hook_conf(self._hook_settings)
        self.slurm_conf.write_text(self._slurm_conf())
        gres = f"NodeName=n[1-{self.nodes}] Name=gpu Type=a100 File={self.base}/dev/gpu[0-{_GPUS - 1}]\n"
        (self.conf / "gres.conf").write_text(gres)
        # Left to detect it, slurmd dies where no cgroup file system is mounted, though nothing here uses one.
        old = self.run("slurmctld", "-V").split()[-1] < "23.11"
        (self.conf / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if old else 'disabled'}\n")
        if self.accounting:
            secret = self.conf / "slurmdbd.conf"
            secret.touch(0o600)
            secret.write_text(self._slurmdbd_conf())

    def _slurm_conf(self) -> str:
        weights = "CPU=1.0,Mem=0.25G" + (",GRES/gpu=16.0" if self.accounting else "")
        partition = f"Nodes=n[1-{self.nodes}] MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=100 State=UP"
        cores = "CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1"
        size = f"{cores} RealMemory=64000 Gres=gpu:a100:{_GPUS}"
        lines = [
            f"ClusterName={CLUSTER}",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={self._ports[0]}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.run_dir}/munge.sock,cred_expire=5",
            "CredType=cred/munge",
            *(["JobSubmitPlugins=lua"] if self._hook else []),
            f"StateSaveLocation={self.base}/state",
            f"SlurmdSpoolDir={self.base}/spool/%n",
            f"SlurmctldPidFile={self.run_dir}/slurmctld.pid",
            f"SlurmdPidFile={self.run_dir}/slurmd-%n.pid",
            f"SlurmctldLogFile={self.log_dir}/slurmctld.log",
            f"SlurmdLogFile={self.log_dir}/slurmd-%n.log",
            "SlurmctldDebug=verbose",
            "MailProg=/bin/true",
            "MpiDefault=none",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SlurmdParameters=config_overrides",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2",
            "PriorityType=priority/basic",
            "PreemptType=preempt/qos",
            "PreemptMode=REQUEUE",
            "GresTypes=gpu",
            "ReturnToService=2",
            "KillWait=2",
            "CompleteWait=0",
            f"MinJobAge={self.min_job_age}",
            *(self._accounting_lines() if self.accounting else ["AccountingStorageType=accounting_storage/none"]),
            *(
                f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname=localhost Port={port} {size} State=UNKNOWN"
                for name, port in zip(self.node_names, self._ports[3:], strict=True)
            ),
            f'PartitionName=cpu Default=YES {partition} TRESBillingWeights="{weights}"',
            f'PartitionName=gpu {partition} TRESBillingWeights="{weights}"',
        ]
        return "\n".join(lines) + "\n"

    def _accounting_lines(self) -> list[str]:
        return [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={self._ports[1]}",
            # This link takes its munge socket from here and not from AuthInfo.
            f"AccountingStoragePass={self.run_dir}/munge.sock",
            "AccountingStorageTRES=gres/gpu,gres/gpu:a100",
            "AccountingStorageEnforce=associations,limits,qos",
            "AccountingStoreFlags=job_comment",
        ]

    def _slurmdbd_conf(self) -> str:
        return textwrap.dedent(f"""\
            AuthType=auth/munge
            AuthInfo=socket={self.run_dir}/munge.sock
            DbdHost=localhost
            DbdAddr=127.0.0.1
            DbdPort={self._ports[1]}
            SlurmUser=root
            LogFile={self.log_dir}/slurmdbd.log
            PidFile={self.run_dir}/slurmdbd.pid
            StorageType=accounting_storage/mysql
            StorageHost=127.0.0.1
            StoragePort={self._ports[2]}
            StorageUser=slurm
            StoragePass=lab
            StorageLoc=slurm_acct_db
            """)

    def _start_database(self) -> None:
        data, sock = self.base / "db", self.run_dir / "mysqld.sock"
        install = ["--user=root", "--auth-root-authentication-method=socket", "--skip-test-db", "--skip-name-resolve"]
        self.run("mariadb-install-db", "--no-defaults", f"--datadir={data}", *install, "--force", timeout=60)
        fast = [
            "--innodb-flush-log-at-trx-commit=0",
            "--sync-binlog=0",
            "--innodb-doublewrite=0",
            "--skip-name-resolve",
        ]
        self._spawn(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}",
            f"--pid-file={self.run_dir}/mariadbd.pid", "--bind-address=127.0.0.1", f"--port={self._ports[2]}",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=48M", "--innodb-lock-wait-timeout=900", *fast,
        )  # fmt: skip
        wait_until("mariadbd", lambda: self._listens(self._ports[2]) and sock.exists(), 30)
        grant = (
            "CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'lab'; GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1'"
        )
        self.run("mariadb", "--no-defaults", "-S", str(sock), "-e", f"CREATE DATABASE slurm_acct_db; {grant}")

    def _make_accounts(self) -> None:
        self.run("sacctmgr", "-i", "add", "qos", "low", "Priority=10", "PreemptMode=requeue")
        self.run("sacctmgr", "-i", "add", "qos", "high", "Priority=100", "Preempt=low")
        tree = self.conf / "accounts.cfg"
        tree.write_text(_ACCOUNTS)
        self.run("sacctmgr", "-i", "load", f"file={tree}")


_ACCOUNTS = f"""\
Cluster - '{CLUSTER}':Fairshare=1:QOS='normal'
Parent - 'root'
Account - 'acme':Description='org':Organization='acme':Fairshare=1
Parent - 'acme'
Account - 'proja':Description='project':Organization='acme':Fairshare=1
Account - 'projb':Description='project':Organization='acme':Fairshare=1
Parent - 'proja'
User - 'alice':DefaultAccount='proja':Fairshare=1:QOS='high,low,normal'
Parent - 'projb'
User - 'alice':DefaultAccount='proja':Fairshare=1:QOS='high,low,normal'
User - 'bob':DefaultAccount='projb':Fairshare=1:QOS='high,low,normal'
"""


def _seconds(text: str) -> int:
    """`[days-]hours:minutes:seconds` as seconds."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(float(part)) for part in clock.split(":"))
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def _ensure_user(name: str) -> None:
    """Slurm runs a job as its owner, so its owner must exist on this machine."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        done = subprocess.run(["useradd", "-m", "-s", "/bin/sh", name], capture_output=True, text=True, check=False)
        if done.returncode not in (0, 9):  # 9: another worker was faster
            raise RuntimeError(f"useradd {name}: {done.stderr}") from None
