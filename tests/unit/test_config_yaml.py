"""YAML files as trees of text: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from config import yaml_nodes
from config.problems import PROBLEMS_MAX, ConfigError, Problem
from config.yaml_nodes import BYTES_MAX, DEPTH_MAX, Mapping, Node, Scalar, Sequence, parse_yaml, read_yaml


@pytest.fixture(params=["libyaml", "python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader
    monkeypatch.setattr(yaml_nodes, "LOADER", wanted)


def plain(node: Node) -> object:
    if isinstance(node, Mapping):
        return {name: plain(entry.value) for name, entry in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Sequence) else node.text


def read(content: bytes | str) -> object:
    problems: list[Problem] = []
    node = parse_yaml(content.encode() if isinstance(content, str) else content, "f.yaml", problems)
    if problems:
        raise ConfigError(problems)
    return plain(node)


def refusal(content: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(content)
    return str(caught.value)


pytestmark = pytest.mark.usefixtures("loader")


def test_values_stay_the_text_that_was_written():
    assert read("{a: 1:30, b: no, c: 010, d: 1e3, e: 0.1, f: 2027-01-01}") == {
        "a": "1:30",
        "b": "no",
        "c": "010",
        "d": "1e3",
        "e": "0.1",
        "f": "2027-01-01",
    }


def test_every_value_knows_its_line_and_what_yaml_takes_it_for():
    node = parse_yaml(b'a: 1\nb:\n  - no\n  - "no"\n', "f.yaml", [])
    assert isinstance(node, Mapping)
    items = node.entries["b"].value
    assert isinstance(items, Sequence)
    assert node.entries["a"].value == Scalar(1, "1", "int")
    assert items.items == [Scalar(3, "no", "bool"), Scalar(4, "no", "str")]
    assert node.entries["b"].line == 2


@pytest.mark.parametrize("content", ["", "\n", "# nothing\n", "---\n", "\ufeff"])
def test_a_file_without_content_is_an_empty_mapping(content: str):
    assert read(content) == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert read(b"\xef\xbb\xbfa: 1") == {"a": "1"}


def test_a_duplicate_key_names_both_lines():
    assert (
        refusal("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n") == "f.yaml:5: b.c: is given twice, in line 3 and here; keep one"
    )


@pytest.mark.parametrize("key", ["no", "Yes", "on", "123", "1.5", "010", "1:30", "2027-01-01", "~", ".inf", "<<", "="])
def test_a_key_that_yaml_takes_for_something_else_has_to_be_quoted(key: str):
    assert refusal(f"{key}: 1").endswith(f'quote it: "{key}"')
    assert read(f'"{key}": 1') == {key: "1"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: !!str 1", "f.yaml:1: a: tag tag:yaml.org,2002:str is not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("a: ! 1", "f.yaml:1: a: tag ! is not allowed"),
        ("\na: &x 1", "f.yaml:2: a: anchor &x is not allowed"),
        ("a: *x", "f.yaml:1: a: alias *x is not allowed"),
        ("a: 1\n---\nb: 1", "f.yaml:2: starts a second document"),
        ("---\n---\nb: 1", "f.yaml:2: starts a second document"),
        ("? [a]\n: 1", "f.yaml:1: a mapping or a list cannot be a key"),
        ("a:\n\t- 1", "f.yaml:2: a: is not YAML"),
        ("a: [1\n", "is not YAML"),
        ("a: 'x\x00'", "f.yaml:1: holds the character U+0000"),
        (b"a: 1\nb: \xff\n", "f.yaml:2: is not UTF-8 text: byte 0xff"),
        (b"\xff\xfea\x00", "f.yaml:1: is not UTF-8 text"),
        (b"a: " + b"1" * BYTES_MAX, f"f.yaml: is larger than {BYTES_MAX} bytes"),
    ],
)
def test_what_a_settings_file_does_not_need_is_refused(content: bytes | str, said: str):
    assert said in refusal(content)


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor():
    assert refusal("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]").startswith("f.yaml:1: a: anchor &a is not allowed")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_without_recursion(opening: str):
    assert f"is nested deeper than {DEPTH_MAX} levels" in refusal(opening * 50_000)


def test_faults_of_the_text_do_not_hide_one_another():
    said = refusal("a: 1\na: 2\nno: 3\nb: &x 4\n").splitlines()
    assert [line.split(":")[1] for line in said] == ["2", "3", "4"]


def test_a_file_of_nothing_but_faults_is_given_up_early():
    with pytest.raises(ConfigError) as caught:
        read("a: 1\n" * 10_000)
    assert len(caught.value.problems) == PROBLEMS_MAX


def test_a_problem_is_one_line_whatever_the_keys_are():
    assert "\n" not in refusal('"a\\nb": {c: 1, c: 2}')


def test_a_file_that_is_not_there_is_a_problem_of_that_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_yaml(tmp_path / "none.yaml", [])


def test_a_directory_is_a_problem_too(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path, [])


SYNTAX = st.sampled_from(["{", "}", "[", "]", ": ", ", ", "- ", "\n", "  ", "&a ", "*a ", "!!x ", "? ", "'", '"', "#",
                          "|", ">", "%", "---\n", "a", "1", "\\", "\t", "\x85", "\u2028", "<<", "~"])  # fmt: skip


@given(st.one_of(st.binary(max_size=200), st.lists(SYNTAX, max_size=40).map("".join).map(str.encode)))
@example(b'"\\ud800": 1')
@example(b"%YAML 9.9\n---\na")
@example(b"a: \xed\xa0\x80")
def test_no_bytes_raise_anything_but_a_config_error(content: bytes):
    with suppress(ConfigError):
        read(content)


LEAVES = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\x85\u2028\u2029"), max_size=9)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LEAVES, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(LEAVES, TREES, max_size=3))
def test_quoted_text_is_read_as_it_was_written(tree: dict[str, object]):
    assert read(yaml.safe_dump(tree, default_style='"', allow_unicode=True)) == tree
