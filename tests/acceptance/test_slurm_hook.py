"""The submit hook inside a real slurmctld, asking an enforcer made up by the test."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.slurm_request import parse_slurm_request
from exporter.sources.slurm_parse import parse_squeue
from tests.slurm_lab import CLUSTER, SbatchRefused, SlurmLab, missing_for_lab

pytestmark = pytest.mark.slurm

HOOK = Path(__file__).parents[2] / "deploy" / "slurm"
Answer = Callable[[socket.socket], None]


def http(body: object, status: str = "200 OK") -> Answer:
    payload = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + payload)


YES = http({"allowed": True, "code": "ok", "reason": "", "hold_id": "h-7"})


def drip(connection: socket.socket) -> None:
    """An answer that never stops coming."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)  # this is what is tested: a server that is slow, and not silent
    except OSError:
        pass


class Enforcer:
    """Takes questions on a free port, remembers them, and answers as told."""

    def __init__(self, path: Path | None = None) -> None:
        self.answer: Answer = YES
        self.questions: list[dict[str, Any]] = []
        self.heads: list[str] = []
        if path is None:
            self._socket = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(str(path))
            self._socket.listen()
            self.address = f"unix:{path}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    head, body = self._request(connection)
                    parse_slurm_request(body)
                    self.heads.append(head)
                    self.questions.append(json.loads(body))
                    self.answer(connection)
                except OSError:
                    continue

    def _request(self, connection: socket.socket) -> tuple[str, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(4096)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += connection.recv(4096)
        return head.decode(), body

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture(scope="module")
def hook_lab(slurm_base: Path) -> Iterator[SlurmLab]:
    if reason := missing_for_lab(accounting=False):
        pytest.skip(reason)
    lab = SlurmLab(slurm_base / "hook", accounting=False, nodes=2, hook=HOOK).start()
    yield lab
    lab.stop()


@pytest.fixture
def enforcer(hook_lab: SlurmLab) -> Iterator[Enforcer]:
    service = Enforcer()
    token = hook_lab.conf / "token"
    token.write_text("scheduler-token\n")
    configure(hook_lab, service)
    # What broke the last test's enforcer must not keep this one's from being asked.
    (hook_lab.conf / "job_submit.lua").touch()
    yield service
    service.close()


def configure(lab: SlurmLab, enforcer: Enforcer, **settings: str) -> None:
    usual = {"address": enforcer.address, "token_file": str(lab.conf / "token"), "cluster": "hpc"}
    lab.write_hook_conf(usual | {"cooldown_seconds": "0"} | settings)


def details(lab: SlurmLab, job: int) -> dict[str, Any]:
    jobs = json.loads(lab.run("squeue", "--json"))["jobs"]
    found: dict[str, Any] = next(one for one in jobs if one["job_id"] == job)
    return found


def test_an_explicit_yes_lets_a_job_in_with_its_hold(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    job = hook_lab.sbatch(options=["--hold"])
    assert details(hook_lab, job)["admin_comment"] == "credits:hold=h-7"
    assert "Authorization: Bearer scheduler-token" in enforcer.heads[0]


def test_the_enforcer_may_be_asked_through_a_unix_socket(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    local = Enforcer(hook_lab.run_dir / "enforcer.sock")
    configure(hook_lab, local)
    hook_lab.sbatch(options=["--hold"])
    local.close()
    assert (len(local.questions), len(enforcer.questions)) == (1, 0)


def test_the_question_says_what_the_job_is(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    size = ["-p", "gpu", "--gres=gpu:a100:2", "-N2", "-n4", "--time=30", "--array=0-9%2", "--hold"]
    hook_lab.sbatch("bob", "vision", options=size)
    request = parse_slurm_request(json.dumps(enforcer.questions[0]).encode())
    assert (request.cluster, request.slurm_cluster) == ("hpc", CLUSTER)
    assert (request.account, request.user, request.partitions) == ("vision", "bob", ("gpu",))
    assert request.gres == {"gpu": 4, "gpu:a100": 4}
    assert (request.count, request.max_runtime_seconds, request.job_id) == (10, 1800, None)


def test_a_job_that_says_little_is_asked_about_with_the_defaults(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    hook_lab.sbatch(account=None, options=["--hold"])
    request = parse_slurm_request(json.dumps(enforcer.questions[0]).encode())
    assert (request.partitions, request.qos, request.gres, request.count) == (("cpu",), "", {}, 1)
    assert request.max_runtime_seconds is None


def test_a_refusal_is_what_sbatch_prints(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    enforcer.answer = http(
        {"allowed": False, "code": "no_credits", "reason": "Org acme has 0.5 credits left, 100% spent."}
    )
    with pytest.raises(SbatchRefused, match=r"Org acme has 0\.5 credits left, 100% spent\.") as refused:
        hook_lab.sbatch()
    assert "Job violates accounting/QOS policy" in str(refused.value)


NOT_A_YES = {
    "no, and no reason": http({"allowed": False}),
    "the word true": http({"allowed": "true"}),
    "one": http({"allowed": 1}),
    "nothing": http({}),
    "a list": http([True]),
    "a bare true": http(True),
    "an error": http({"allowed": True}, "500 Internal Server Error"),
    "a redirection": http({"allowed": True}, "302 Found"),
    "not allowed to ask": http({"allowed": True}, "401 Unauthorized"),
    "half an answer": lambda c: c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"allowed": true}'),
    "no length": lambda c: c.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"allowed": true}'),
    "two values": lambda c: c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{"allowed": true} 1'),
    "garbage": lambda c: c.sendall(b"\x00\xff" * 3000),
    "silence": lambda c: None,
    "a drip": drip,
    "a flood": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000),
}


@pytest.mark.parametrize("what", list(NOT_A_YES))
def test_only_an_explicit_yes_is_a_yes(hook_lab: SlurmLab, enforcer: Enforcer, what: str) -> None:
    enforcer.answer = NOT_A_YES[what]
    with pytest.raises(SbatchRefused, match=r"cannot be checked|not enough"):
        hook_lab.sbatch()


def test_where_so_configured_a_job_is_let_in_unchecked_and_says_so(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    configure(hook_lab, enforcer, on_unreachable="allow")
    enforcer.answer = NOT_A_YES["garbage"]
    job = hook_lab.sbatch(options=["--hold"])
    assert details(hook_lab, job)["admin_comment"] == "credits:unchecked"


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Content"])
def test_a_question_that_is_refused_as_such_never_lets_a_job_in(
    hook_lab: SlurmLab, enforcer: Enforcer, status: str
) -> None:
    configure(hook_lab, enforcer, on_unreachable="allow")
    enforcer.answer = http({"title": "Bad Request", "detail": "array is no array"}, status)
    with pytest.raises(SbatchRefused, match="array is no array"):
        hook_lab.sbatch()


def test_a_slow_enforcer_costs_its_time_once_and_is_then_left_alone(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    configure(hook_lab, enforcer, cooldown_seconds="60", budget_seconds="0.2")
    enforcer.answer = drip
    start = time.monotonic()
    for _ in range(10):
        with pytest.raises(SbatchRefused):
            hook_lab.sbatch()
    assert len(enforcer.questions) == 1
    assert 0.2 <= time.monotonic() - start < 10 * 0.2


@pytest.mark.parametrize(
    "settings",
    [
        {"budget_seconds": "5"},
        {"address": "enforcer.example.org:9471"},
        {"on_unreachable": "perhaps"},
        {"on_unreachable": "allow", "token_file": "/nowhere/token", "budget": "0.1"},
    ],
)
def test_a_hook_that_is_not_set_up_right_lets_nobody_in(
    hook_lab: SlurmLab, enforcer: Enforcer, settings: dict[str, str]
) -> None:
    configure(hook_lab, enforcer, **settings)
    with pytest.raises(SbatchRefused, match="not set up right"):
        hook_lab.sbatch()
    assert not enforcer.questions


def test_a_waiting_job_that_moves_to_another_partition_is_asked_about_again(
    hook_lab: SlurmLab, enforcer: Enforcer
) -> None:
    job = hook_lab.sbatch(options=["--hold", "--time=30"])
    hook_lab.run("scontrol", "update", f"JobId={job}", "Partition=gpu", user="alice")
    request = parse_slurm_request(json.dumps(enforcer.questions[1]).encode())
    assert (request.job_id, request.replaces_hold, request.partitions) == (job, "h-7", ("gpu",))
    assert (request.account, request.user, request.max_runtime_seconds) == ("proja", "alice", 1800)
    assert details(hook_lab, job)["partition"] == "gpu"


def test_a_task_of_an_array_that_moves_alone_is_asked_about_alone(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    job = hook_lab.sbatch(options=["--hold", "--array=0-3"])
    hook_lab.run("scontrol", "update", f"JobId={job}_2", "Partition=gpu", user="alice")
    hook_lab.run("scontrol", "update", f"JobId={job}", "Partition=gpu", user="alice")
    alone, *others = [parse_slurm_request(json.dumps(asked).encode()) for asked in enforcer.questions[1:]]
    assert (alone.is_task, alone.count, alone.replaces_hold) == (True, 1, "h-7")
    assert alone.job_id != job
    # What the others hold is changed as one.
    assert [(asked.job_id, asked.is_task, asked.count) for asked in others] == [(job, False, None)]
    listed = parse_squeue(hook_lab.run("squeue", "--json").encode(), int(time.time()))[0]
    found = {run.job_id: (run.is_task, run.hold_id) for run in listed if run.job_id in (job, alone.job_id)}
    assert found == {job: (False, "h-7"), alone.job_id: (True, "h-7")}


def test_a_change_that_credits_do_not_reach_for_is_refused(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    job = hook_lab.sbatch(options=["--hold"])
    enforcer.answer = http({"allowed": False, "reason": "too dear"})
    for change in ("Partition=gpu", "Account=projb", "NumNodes=2"):
        with pytest.raises(subprocess.CalledProcessError):
            hook_lab.run("scontrol", "update", f"JobId={job}", change, user="alice")
    assert details(hook_lab, job)["partition"] == "cpu"
    assert len(enforcer.questions) == 4


def test_a_change_that_costs_nothing_is_not_asked_about(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    job = hook_lab.sbatch(options=["--hold", "--time=30"])
    enforcer.answer = http({"allowed": False})
    hook_lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=20", user="alice")
    hook_lab.run("scontrol", "update", f"JobId={job}", "AdminComment=seen by ops")
    assert details(hook_lab, job)["admin_comment"] == "seen by ops credits:hold=h-7"
    assert len(enforcer.questions) == 1


def test_each_component_of_a_heterogeneous_job_is_asked_about(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    parts = ["-n1", ":", "-p", "gpu", "--gres=gpu:1", "-n2"]
    common = ["sbatch", "--parsable", "--chdir=/tmp", "-o", "/dev/null", "-A", "proja", "--hold"]
    hook_lab.run(*common, *parts, "--wrap", "sleep 5", user="alice")
    assert [question["partition"] for question in enforcer.questions] == ["cpu", "gpu"]


def test_account_names_of_any_bytes_reach_the_enforcer_readable(hook_lab: SlurmLab, enforcer: Enforcer) -> None:
    hook_lab.sbatch(account='a"\\b\tü', options=["--hold"])
    assert enforcer.questions[0]["account"] == 'a"\\b\tü'
