"""The parts of the submit hook, in Lua 5.1: what it says, what it takes for an answer, and how long it waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lupa.lua51
import pytest
from hypothesis import given
from hypothesis import strategies as st

HOOK = Path(__file__).parents[2] / "deploy" / "slurm"

lua = lupa.lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True)
hook = lua.execute((HOOK / "credits_hook.lua").read_bytes())
lua.globals()[b"hook"] = hook
decoded_again = lua.eval(b"function(text) return hook.encode(hook.decode(text)) end")


def decode(text: str | bytes) -> Any:
    return hook[b"decode"](text.encode() if isinstance(text, str) else text)


def table(values: dict[str, Any]) -> Any:
    return lua.table_from(
        {key.encode(): value.encode() if isinstance(value, str) else value for key, value in values.items()}
    )


# JSON


@given(st.text())
def test_text_arrives_as_it_was(text: str) -> None:
    assert json.loads(hook[b"encode"](text.encode("utf-8", "replace"))) == text.encode("utf-8", "replace").decode()


@given(st.binary())
def test_any_bytes_become_json(text: bytes) -> None:
    assert json.loads(hook[b"encode"](text)).replace("\ufffd", "") == text.decode("utf-8", "ignore").replace(
        "\ufffd", ""
    )


@given(st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(-(2**46), 2**46), min_size=1))
def test_json_read_and_written_is_the_same(value: dict[str, Any]) -> None:
    assert json.loads(decoded_again(json.dumps(value).encode())) == value
    assert json.loads(decoded_again(json.dumps(value, ensure_ascii=False).encode())) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 99) | st.text(), lambda one: st.lists(one, max_size=3), max_leaves=9
    )
)
def test_json_of_any_shape_is_read(value: Any) -> None:
    decode(json.dumps({"value": value}, indent=1))


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", '{"a":1}x', '{"a":1,"a":1}', "[1,]", '{"a":1,}', '{"a" 1}', "{1:2}", '"\\ud800"', '"\\udc00"',
     '"\\x"', '"a\nb"', '"a', "nul", "TRUE", "-", "[1 2]", "[" * 40 + "]" * 40, "\x00"],
)  # fmt: skip
def test_what_is_no_json_is_an_error(text: str) -> None:
    with pytest.raises(lupa.lua51.LuaError):
        decode(text)


@given(st.text(alphabet='{}[]",:\\ue01tfn '))
def test_what_python_does_not_take_for_json_the_hook_does_not_either(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(lupa.lua51.LuaError):
            decode(text)


def test_numbers_that_slurm_means_as_no_value_are_none() -> None:
    assert hook[b"encode"](float(2**64)) == b"null"
    assert hook[b"encode"](float("nan")) == b"null"


# Settings


def settings(text: str) -> Any:
    return hook[b"parse_settings"](text.encode())


def test_settings_with_comments_and_defaults() -> None:
    found = settings("# all of it\naddress = unix:/run/credits.sock  # not TCP\n\non_unreachable=allow\r\n")
    assert (found[b"socket_path"], found[b"on_unreachable"]) == (b"/run/credits.sock", b"allow")
    assert (found[b"budget"], found[b"cooldown"]) == (0.15, 5)


def test_the_settings_file_that_is_shipped_is_right() -> None:
    assert settings((HOOK / "credits_hook.conf").read_text())[b"host"] == b"127.0.0.1"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("adress = 127.0.0.1:1", "line 1: not a setting"),
        ("\nallow", "line 2: not a setting"),
        ("address = localhost:9471", "address must be"),
        ("address = 10.0.0.1:9471", "address must be"),
        ("budget_seconds = 0.3", "budget_seconds must be"),
        ("budget_seconds = 0", "budget_seconds must be"),
        ("budget_seconds = nan", "budget_seconds must be"),
        ("cooldown_seconds = -1", "cooldown_seconds must be"),
        ("on_unreachable = yes", "on_unreachable must be"),
    ],
)
def test_settings_that_are_wrong_are_named(text: str, problem: str) -> None:
    with pytest.raises(lupa.lua51.LuaError, match=problem):
        settings(text)


# Comments of jobs


@pytest.mark.parametrize(
    ("comment", "word", "noted"),
    [
        (None, "credits:hold=1", "credits:hold=1"),
        ("theirs  and  more", "credits:hold=1", "theirs  and  more credits:hold=1"),
        ("a credits:hold=9 b", "credits:hold=1", "a b credits:hold=1"),
        ("credits:hold=forged", None, ""),
        ("theirs", None, "theirs"),
    ],
)
def test_what_is_noted_in_a_comment(comment: str | None, word: str | None, noted: str) -> None:
    known = [None if text is None else text.encode() for text in (comment, word)]
    assert hook[b"noted"](*known) == noted.encode()


# One question, against a made-up connection and clock


class Connection:
    """A server that takes `pause` seconds for each thing it is asked, and answers in `chunks`."""

    def __init__(self, chunks: list[bytes], pause: float) -> None:
        self.now = 1000.0
        self.chunks = chunks
        self.pause = pause
        self.waits: list[float] = []
        self.closed = False
        self.asked = 0
        slow: Callable[..., Any] = lambda *_: self._pass()  # noqa: E731
        self.lua = lua.table_from(
            {
                b"settimeout": lambda _, seconds, mode: self.waits.append(seconds),
                b"connect": lambda *_: (slow(), 1)[1],
                b"send": lambda _, data, first: len(data),
                b"receive": self._receive,
                b"close": lambda _: setattr(self, "closed", True),
            }
        )

    def _pass(self) -> bool:
        """Let time go by, at most as long as the caller would wait; whether that was enough."""
        self.now += min(self.pause, self.waits[-1])
        return self.pause <= self.waits[-1]

    def _receive(self, *_: Any) -> Any:
        self.asked += 1
        if not self._pass():
            return (None, b"timeout", b"")
        if not self.chunks:
            return (None, b"closed", b"")
        return self.chunks.pop(0)


def exchange(connection: Connection, budget: float = 0.15) -> bytes:
    chosen = table({"budget": budget, "host": "127.0.0.1", "port": "1"})
    answer: bytes = hook[b"exchange"](lambda: connection.lua, chosen, b"question", lambda: connection.now)
    return answer


def test_an_answer_in_pieces_is_put_together() -> None:
    connection = Connection([b"one ", b"two"], 0.01)
    assert exchange(connection) == b"one two"
    assert connection.closed


@pytest.mark.parametrize("pause", [0.01, 0.1, 5.0])
def test_a_server_that_drips_gets_the_budget_and_no_more(pause: float) -> None:
    connection = Connection([b"x"] * 10_000, pause)
    with pytest.raises(lupa.lua51.LuaError, match=r"no answer within 0\.15 s"):
        exchange(connection)
    assert connection.now - 1000.0 <= 0.15 + 1e-9
    assert all(0 < wait <= 0.15 for wait in connection.waits)
    assert connection.closed


def test_a_clock_set_back_does_not_make_the_wait_longer() -> None:
    connection = Connection([b"x"] * 3, 0.0)
    ticks = iter([1000.0, 1000.0, 400.0, 400.1, 1000.5])
    chosen = table({"budget": 0.15, "host": "127.0.0.1", "port": "1"})
    with pytest.raises(lupa.lua51.LuaError, match="no answer"):
        hook[b"exchange"](lambda: connection.lua, chosen, b"", lambda: next(ticks))
    assert max(connection.waits) <= 0.15


def test_a_flood_is_cut() -> None:
    connection = Connection([b"x" * 4096] * 100, 0.0)
    with pytest.raises(lupa.lua51.LuaError, match="too long an answer"):
        exchange(connection)
    assert connection.asked <= 17


# The hook as slurmctld calls it


class Slurm:
    """What the hook is given of slurmctld, and an enforcer that answers `answers` in turn (None: it fails)."""

    def __init__(self, answers: list[bytes | None], conf: str = "cooldown_seconds = 5") -> None:
        self.now = 1000.0
        self.said: list[bytes] = []
        self.answers = answers
        self.asked: list[dict[str, Any]] = []
        functions = {
            b"SUCCESS": 0,
            b"ESLURM_ACCOUNTING_POLICY": 2050,
            b"CLUSTER_NAME": b"lab",
            b"log_user": lambda _form, text: self.said.append(text),
            b"log_error": lambda _form, text: None,
        }
        parts = {
            b"slurm": lua.table_from(functions),
            b"directory": b"/etc/slurm",
            b"read": lambda path: conf.encode(),
            b"open": lambda _settings: self._open(),
            b"now": lambda: self.now,
        }
        self.hook = hook[b"new"](lua.table_from(parts))

    def _open(self) -> Any:
        connection = Connection([], 0.0)

        def send(_: Any, data: bytes, first: int) -> int:
            self.asked.append(json.loads(data.partition(b"\r\n\r\n")[2]))
            answer = self.answers.pop(0)
            connection.chunks = [] if answer is None else [answer]
            return len(data)

        connection.lua[b"send"] = send
        return connection.lua

    def submit(self, **job: Any) -> tuple[int, Any]:
        described = table({"account": "vision", "user_name": "ann", "partition": "cpu"} | job)
        return self.hook[b"submit"](described, lua.table(), 1001), described[b"admin_comment"]


def answer(body: dict[str, Any], status: str = "200 OK") -> bytes:
    text = json.dumps(body).encode()
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


YES = answer({"allowed": True, "hold_id": "h1"})


def test_yes() -> None:
    slurm = Slurm([YES])
    assert slurm.submit(admin_comment="ops") == (0, b"ops credits:hold=h1")
    assert not slurm.said


def test_yes_without_a_hold_leaves_the_comment_alone() -> None:
    assert Slurm([answer({"allowed": True, "hold_id": None})]).submit() == (0, None)


def test_a_refusal_is_said_without_control_characters() -> None:
    slurm = Slurm([answer({"allowed": False, "reason": "no %s credits\x1b[31m\nask ops"})])
    assert slurm.submit()[0] == 2050
    assert slurm.said == [b"no %s credits [31m\nask ops"]


def test_after_a_fault_nobody_is_asked_until_the_cool_down_is_over() -> None:
    slurm = Slurm([None, YES])
    for _ in range(3):
        assert slurm.submit()[0] == 2050
    assert len(slurm.asked) == 1
    slurm.now += 5.1
    assert slurm.submit() == (0, b"credits:hold=h1")


def test_a_clock_set_back_does_not_make_the_cool_down_longer() -> None:
    slurm = Slurm([None, YES])
    slurm.submit()
    slurm.now -= 3600
    assert slurm.submit()[0] == 0


def test_a_refusal_is_no_fault() -> None:
    slurm = Slurm([answer({"allowed": False}), YES])
    assert [slurm.submit()[0], slurm.submit()[0]] == [2050, 0]


def test_unchecked_jobs_say_so_and_cannot_pretend_to_have_a_hold() -> None:
    slurm = Slurm([None], "on_unreachable = allow")
    assert slurm.submit(admin_comment="credits:hold=forged") == (0, b"credits:unchecked")


def test_an_error_inside_the_hook_lets_nobody_in() -> None:
    slurm = Slurm([YES], "on_unreachable = allow\nbudget_seconds = 9")
    assert slurm.submit()[0] == 2050
    assert b"not set up right" in slurm.said[0]
    assert not slurm.asked


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_but_a_yes_are_a_yes(text: bytes, framed: bool) -> None:
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text) if framed else text
    assert Slurm([sent]).submit()[0] == 2050


@pytest.mark.parametrize("cut", range(1, len(YES), 3))
def test_no_part_of_a_yes_is_a_yes(cut: int) -> None:
    assert Slurm([YES[:cut]]).submit()[0] == 2050


def test_what_slurm_did_not_set_is_not_asked_about() -> None:
    slurm = Slurm([YES])
    unset = {"time_limit": 4294967294, "min_nodes": 4294967294, "num_tasks": 65534, "array_inx": ""}
    slurm.submit(qos="high", **unset)
    usual = {"scheduler": "slurm", "cluster": "lab", "slurm_cluster": "lab", "account": "vision", "user": "ann"}
    assert slurm.asked == [usual | {"partition": "cpu", "qos": "high"}]
