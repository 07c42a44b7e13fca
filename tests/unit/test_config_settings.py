"""`settings.yaml`: defaults, errors that help, secrets that do not show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.fields import keys_of
from config.problems import ConfigError
from config.reference import render_reference
from config.settings import (
    AdmissionSettings,
    Exhaustion,
    Metering,
    Settings,
    load_settings,
)
from config.slurm_rules import AccountRule, PresetRule
from config.source_list import SOURCE_TYPES, source_type
from config.sources import ApoloSource, JsonSource, KubernetesSource, SimulatedSource, SlurmSource
from config.values import Address, Secret
from ledger.clock import parse_time
from ledger.errors import CreditsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "s.yaml"


def load(file: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    file.write_text(text)
    return load_settings(file, environ or {})


def refusals(file: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, text, environ)
    return [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]


def source(file: Path, text: str, environ: Mapping[str, str] | None = None) -> Any:
    return load(file, f"sources: [{{{text}}}]", environ).sources[0]


def test_an_empty_file_runs_the_simulated_cluster(file: Path):
    assert load(file, "") == Settings(path=file)
    assert Settings(path=file).sources == (SimulatedSource(name="simulated-default"),)


def test_the_example_says_what_holds_without_it():
    path = ROOT / "config/settings.yaml"
    assert load_settings(path, {}) == Settings(path=path)


def test_every_commented_line_of_the_example_is_valid(file: Path):
    example = (ROOT / "config/settings.yaml").read_text()
    settings = load(file, re.sub(r"(?m)^( +)# ", r"\1", example))
    assert [source_type(found) for found in settings.sources] == ["simulated", "json", "slurm", "apolo", "kubernetes"]
    assert settings.enforcer.tls is not None
    assert settings.metering.epoch_us == parse_time("2026-11-01T00:00:00Z")


def test_the_contract_s_own_example_is_read(file: Path):
    settings = load(
        file,
        """\
redis: {url: embedded}
data_dir: var
rates: config/rates.yaml
metering: {interval_seconds: 15, epoch: 2026-11-01T00:00:00Z}
sources:
  - {type: json, cluster: default, path: snapshot.json}
  - {type: slurm, cluster: hpc}
exporter: {listen: "127.0.0.1:9470"}
enforcer: {listen: "127.0.0.1:9471", tls: {cert: c.pem, key: k.pem, client_ca: ca.pem}}
admission: {mode: off, hold_minutes: 15, unknown_org: deny, on_ledger_down: allow, clusters: {hpc: shadow}}
exhaustion: {warn_hours_left: 24, grace_minutes: 0.5, then: suspend}
""",
    )
    assert settings.metering == Metering(interval_seconds=15.0, epoch_us=parse_time("2026-11-01T00:00:00Z"))
    assert settings.sources == (
        JsonSource(name="json-default", path=Path("snapshot.json")),
        SlurmSource(name="slurm-hpc", cluster="hpc"),
    )
    assert (settings.exporter.host, settings.exporter.port) == ("127.0.0.1", 9470)
    assert settings.enforcer.tls is not None
    assert settings.enforcer.tls.client_ca == Path("ca.pem")
    assert settings.admission == AdmissionSettings(mode="off", on_ledger_down="allow", clusters={"hpc": "shadow"})
    assert (settings.admission.mode_of("hpc"), settings.admission.mode_of("other")) == ("shadow", "off")
    assert settings.exhaustion == Exhaustion(grace_minutes=0.5, then="suspend")


def test_settings_cannot_be_changed(file: Path):
    with pytest.raises(FrozenInstanceError):
        load(file, "").rates = Path("other")  # type: ignore[misc]


def test_everything_that_is_wrong_is_said_at_once_with_its_line_and_what_would_be_right(file: Path):
    assert refusals(
        file,
        """\
dat_dir: var
metering: {intervall_seconds: 15, epoch: 2026-11-01}
sources:
  - {type: json, cluster: 12, path: snapshot.json}
  - {type: slrum, cluster: hpc}
  - {typ: slurm, cluster: hpc}
  - {type: json, path: a, url: "http://x"}
  - {type: slurm, accounts: [{account: "a-*", org: "{2}"}, {org: x}]}
exporter: {listen: "127.0.0.1:94700"}
enforcer: {tls: {cert: a}}
admission: {mode: shdow, hold_minutes: -1, clusters: {hpc: yes}, allow_cap_credits: 0.1234567}
exhaustion:
rates: [a]
data_dir: ""
""",
    ) == [
        "1: unknown key 'dat_dir'; did you mean 'data_dir'?",
        "2: metering: unknown key 'intervall_seconds'; did you mean 'interval_seconds'?",
        "2: metering.epoch: '2026-11-01' is not a time with a zone; write it like 2026-11-22T10:00:00Z",
        "4: sources.0.cluster: is '12', a number, not text; quote it: \"12\"",
        "5: sources.1.type: is 'slrum'; did you mean 'slurm'?",
        "6: sources.2: lacks the key type (is 'typ' meant to be it?): one of simulated, json, slurm, apolo, kubernetes",
        "7: sources.3: needs exactly one of path, url and command",
        "8: sources.4.accounts.0: '{2}': there is no {2}; what may stand here: {account}, {parent}, {top}, {1}",
        "8: sources.4.accounts.1: lacks the key account: text",
        "9: exporter.listen: '127.0.0.1:94700' is not host:port; write it like \"127.0.0.1:9470\"",
        "10: enforcer.tls: lacks the key key: path",
        "11: admission.mode: is 'shdow'; did you mean 'shadow'?",
        "11: admission.clusters.hpc: is 'yes'; expected one of enforce, shadow, off",
        "11: admission.hold_minutes: is '-1', a number; expected minutes between 0 and 527040",
        "11: admission.allow_cap_credits: amount '0.1234567' has more than 6 digits after the point",
        "12: exhaustion: is nothing; expected a mapping of settings",
        "13: rates: is a list; expected text",
        "14: data_dir: is empty; expected text",
    ]


def test_two_sources_of_one_name_are_refused_with_both_lines(file: Path):
    assert refusals(file, "sources:\n  - {type: slurm}\n  - {type: json, path: a}\n  - {type: slurm}\n") == [
        (
            "4: sources: two sources are called 'slurm-default', in line 2 and here; "
            "give one of them another name: or cluster:"
        )
    ]
    settings = load(file, "sources: [{type: slurm}, {type: slurm, name: other, slurm_conf: /etc/other.conf}]")
    assert [found.name for found in settings.sources] == ["slurm-default", "other"]


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("type: slurm", "type: slurm, cluster: b", "ask the same Slurm"),
        ("type: simulated", "type: simulated", "make up the same work"),
        (
            "type: apolo, token: t, cluster: a",
            "type: apolo, token: t, cluster: b, platform_cluster: a, orgs: [acme]",
            "meter the same orgs of the platform's cluster 'a'",
        ),
        ("type: kubernetes, url: http://k", 'type: kubernetes, url: http://k, selector: "a=b"', "watch the same pods"),
        (
            'type: kubernetes, url: http://k, selector: "a=c"',
            'type: kubernetes, url: http://k, selector: "a=b"',
            "watch the same volumes",
        ),
    ],
)
def test_two_sources_of_the_same_work_are_refused(file: Path, one: str, other: str, told: str):
    (problem,) = refusals(file, f"sources:\n  - {{{one}, name: one}}\n  - {{{other}, name: two}}\n")
    assert problem.startswith("3: sources: 'one' in line 2 and 'two' here would charge the same work twice: both ")
    assert told in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("type: json, path: a", "type: json, path: b"),
        ("type: slurm", "type: slurm, run_with: [ssh, login1]"),
        ("type: simulated", "type: simulated, seed: 2"),
        ("type: apolo, token: t, orgs: [acme]", "type: apolo, token: t, orgs: [blue]"),
        ("type: apolo, token: t", "type: kubernetes, url: http://k"),
        (
            'type: kubernetes, url: http://k, selector: "a=c"',
            'type: kubernetes, url: http://k, selector: "a=b", volumes: false',
        ),
        ("type: kubernetes, url: http://k", "type: kubernetes, url: http://l"),
    ],
)
def test_sources_of_different_work_stand_side_by_side(file: Path, one: str, other: str):
    found = load(file, f"sources:\n  - {{{one}, name: one}}\n  - {{{other}, name: two}}\n")
    assert [source.name for source in found.sources] == ["one", "two"]


def test_two_platforms_do_not_take_turns_in_the_rates_of_a_cluster(file: Path):
    one, other = ("{type: apolo, token: t, name: " + name + ", platform_cluster: " + name for name in ("one", "two"))
    rates = ", use_platform_rates: true}"
    (problem,) = refusals(file, f"sources:\n  - {one}{rates}\n  - {other}{rates}\n")
    assert problem.startswith(
        "3: sources: 'one' in line 2 and 'two' here would both give the rates of cluster 'default'"
    )
    assert len(load(file, f"sources:\n  - {one}{rates}\n  - {other}}}\n").sources) == 2


def test_no_sources_are_possible_for_an_enforcer_on_its_own(file: Path):
    assert load(file, "sources: []").sources == ()


def test_the_rules_of_slurm_are_read_in_their_order(file: Path):
    found = source(
        file,
        "type: slurm, slurm_conf: /etc/slurm.conf, run_with: [ssh, login1], accounting: off, "
        'accounts: [{account: "*-*", org: "{1}", project: "{2}"}, {account: "*", org: "{top}"}], '
        'presets: [{gres: "gpu:a100*", preset: gpu-large}, {gres: "", preset: "{partition}"}]',
    )
    assert found.run_with == ("ssh", "login1")
    assert found.accounting == "off"
    assert found.rules.accounts == (AccountRule("*-*", "{1}", "{2}"), AccountRule("*", "{top}"))
    assert found.rules.presets == (PresetRule("gpu-large", gres="gpu:a100*"), PresetRule("{partition}", gres=""))


def test_a_json_source_takes_a_shell_line_or_a_list_of_arguments(file: Path):
    assert source(file, 'type: json, command: "squeue | convert"').command == "squeue | convert"
    assert source(file, "type: json, command: [convert, -n, 5]").command == ("convert", "-n", "5")


def test_kubernetes_has_the_labels_of_apolo_unless_told_otherwise(file: Path):
    assert source(file, "type: kubernetes").labels.org[0] == "platform.apolo.us/org"
    found = source(file, 'type: kubernetes, labels: {org: [team]}, presets: [{preset: s, cpu: "7.5", memory_gb: 48}]')
    assert isinstance(found, KubernetesSource)
    assert (found.labels.org, found.labels.user[0]) == (("team",), "platform.apolo.us/user")
    assert (found.presets[0].cpu, found.presets[0].gpus) == (7.5, 0)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("[::1]:9470", Address("::1", 9470)),
        (":9470", Address("", 9470)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_an_address_is_host_and_port(file: Path, written: str, address: Address):
    assert address == load(file, f'exporter: {{listen: "{written}"}}').exporter.listen


@pytest.mark.parametrize("written", ["9470", '"localhost"', '"::1:9470"', '"a b:1"', '"http://h:1"', '"h:-1"', '"h:"'])
def test_what_is_no_address_is_refused(file: Path, written: str):
    (problem,) = refusals(file, f"exporter: {{listen: {written}}}")
    assert problem.startswith("1: exporter.listen: ")


URLS = [
    "embedded",
    "redis://h",
    "rediss://user:pw@h:1/2",
    "unix:///run/valkey.sock?db=1",
    "redis+sentinel://h:26379,i:26379/primary/0",
    "redis+cluster://h:7000,i:7001",
]


@pytest.mark.parametrize("url", URLS)
def test_a_ledger_is_reached_by_any_url_of_the_contract(file: Path, url: str):
    (file.parent / "url").write_text(f"{url}\n")
    assert url == load(file, f'redis: {{url: "{url}"}}').redis.url
    assert url == load(file, f"redis: {{url_file: {file.parent / 'url'}}}").redis.url
    assert url == load(file, "redis: {url_env: MY_URL}", {"MY_URL": url}).redis.url
    assert url == load(file, "redis: {url: redis://other}", {"CREDITS_REDIS_URL": url}).redis.url


@pytest.mark.parametrize(
    "url", ["http://u:SECRET@h", "redis://", "SECRET:x@h", "redis://:SECRET@", "unix://", "redis://[SECRET"]
)
def test_a_url_that_is_none_is_refused_without_repeating_it(file: Path, url: str):
    (in_file,) = refusals(file, f'redis: {{url: "{url}"}}')
    (in_environment,) = refusals(file, "", {"CREDITS_REDIS_URL": url})
    assert in_file.startswith("1: redis.url: ")
    assert in_environment.startswith("environment: CREDITS_REDIS_URL: ")
    assert "SECRET" not in in_file + in_environment


def test_a_url_in_a_file_that_is_not_there_is_refused(file: Path):
    assert "none cannot be read: " in refusals(file, "redis: {url_file: none}")[0]


def test_a_secret_is_given_in_three_ways_and_shown_in_none(file: Path, tmp_path: Path):
    (tmp_path / "token").write_text("S3CRET\n")
    found = [
        source(file, "type: apolo, token: S3CRET"),
        source(file, f"type: apolo, token_file: {tmp_path / 'token'}"),
        source(file, "type: apolo, token_env: TOKEN", {"TOKEN": "S3CRET"}),
    ]
    assert [one.token.read() for one in found] == ["S3CRET"] * 3
    assert "S3CRET" not in repr(found)
    assert "S3CRET" not in repr(load(file, "redis: {url: redis://u:S3CRET@h}"))


def test_a_secret_in_a_file_is_read_again_each_time(tmp_path: Path):
    (tmp_path / "token").write_text("one")
    secret = Secret(file=tmp_path / "token")
    assert secret.read() == "one"
    (tmp_path / "token").write_text("two")
    assert secret.read() == "two"
    (tmp_path / "token").write_text("")
    with pytest.raises(CreditsError, match="is empty"):
        secret.read()
    with pytest.raises(CreditsError, match="cannot be read"):
        Secret(file=tmp_path / "none").read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("token: 0123456", 'is another value, not text; quote it: "..."'),
        ("token: [S3CRET]", "is another value; expected text"),
        ("token: S3CRET, token_file: x", "has token and token_file; give one of them"),
        ("token_env: TOKEN", "the environment variable TOKEN is not set"),
        ("cluster: c", "lacks the key token or token_file or token_env: secret"),
    ],
)
def test_a_faulty_secret_is_refused_without_repeating_it(file: Path, text: str, said: str):
    with pytest.raises(ConfigError) as caught:
        source(file, f"type: apolo, {text}")
    (problem,) = caught.value.problems
    assert said in str(problem)
    assert "S3CRET" not in repr(problem)
    assert "0123456" not in repr(problem)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type: json, path: a, token: x", "has a token, which only goes with url"),
        ("type: json, url: ftp://x", "is not an http:// or https:// URL"),
        ("type: json, command: []", "is a list; expected a list of arguments"),
        ("type: json, path: a, timeout_seconds: 1_0", "'1_0' is not a plain decimal number"),
        ("type: json, path: a, timeout_seconds: 1e1", "'1e1' is not a plain decimal number; write it like 15"),
        ("type: kubernetes, client_cert: a", "needs both client_cert and client_key, or neither"),
        ("type: kubernetes, volumes: yes", "is 'yes', a truth value; write true or false"),
        ("type: simulated, seed: 1.5", "is '1.5', a number; expected a whole number between 0 and 4294967295"),
        ('type: slurm, name: "a\\tb"', "holds the control character U+0009"),
    ],
)
def test_sources_that_cannot_work_are_refused(file: Path, text: str, said: str):
    (problem,) = refusals(file, f"sources: [{{{text}}}]")
    assert said in problem


def test_the_reference_in_the_docs_is_what_the_code_says():
    assert (ROOT / "docs/settings.md").read_text() == render_reference(), (
        "run: python -m config.reference docs/settings.md"
    )


def test_every_key_of_every_section_has_a_meaning_in_the_reference():
    page = render_reference()
    for section in (Settings, *SOURCE_TYPES.values()):
        for item, spec in keys_of(section):
            assert spec.meaning.endswith(".")
            assert all(f"`{name}`" in page for name in spec.names(item))


KEYS = ["type", "name", "cluster", "token", "url", "path", "tls", "accounts", "presets", "org", "labels", "mode"]
TOP = ["redis", "data_dir", "rates", "metering", "sources", "exporter", "enforcer", "admission", "exhaustion"]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from([*SOURCE_TYPES])
)
TREES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(TOP), TREES, max_size=5))
def test_no_tree_raises_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]):
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    path.write_text(yaml.safe_dump(tree))
    with suppress(ConfigError):
        load_settings(path, {})


def test_an_apolo_source_needs_a_token_and_nothing_else(file: Path):
    assert source(file, "type: apolo, token: t") == ApoloSource(name="apolo-default", token=Secret("t"))
