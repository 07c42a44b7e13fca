"""Which org, project and preset a Slurm job is."""

from __future__ import annotations

import pytest

from config.slurm_rules import (
    AccountRule,
    PresetRule,
    SlurmRules,
    gres_of_request,
    gres_of_tres,
    needs_tree,
    owner_of,
    parse_parents,
    preset_of,
)

TREE = {"acme": "root", "vision": "acme", "nlp": "acme", "nlp-eu": "nlp"}
PLAIN = SlurmRules()


def test_an_account_belongs_to_the_org_at_the_top_of_its_branch() -> None:
    assert owner_of("nlp-eu", PLAIN, TREE) == ("acme", "nlp-eu")
    assert owner_of("acme", PLAIN, TREE) == ("acme", "acme")


def test_without_a_tree_an_account_is_its_own_org() -> None:
    assert owner_of("vision", PLAIN, {}) == ("vision", "vision")


def test_an_account_that_the_tree_lacks_is_given_to_nobody() -> None:
    assert owner_of("gone", PLAIN, TREE) is None
    assert owner_of("root", PLAIN, TREE) == ("root", "root")
    assert owner_of("gone", SlurmRules((AccountRule("*", "acme"),)), TREE) == ("acme", "")


def test_a_tree_that_bites_its_tail_ends() -> None:
    assert owner_of("a", PLAIN, {"a": "b", "b": "a"}) == ("a", "a")


def test_the_first_account_rule_that_matches_decides() -> None:
    rules = SlurmRules(
        (
            AccountRule("guest-?", "guests"),
            AccountRule("*_*", "{1}", "{2}"),
            AccountRule("nlp*", "{parent}", "nlp{1}"),
        )
    )
    assert owner_of("guest-1", rules, TREE) == ("guests", "")
    assert owner_of("acme_vision_eu", rules, {}) == ("acme", "vision_eu")
    assert owner_of("nlp-eu", rules, TREE) == ("nlp", "nlp-eu")
    assert owner_of("vision", rules, TREE) is None


def test_patterns_mean_their_characters() -> None:
    rules = SlurmRules((AccountRule("a.c+", "org"),))
    assert owner_of("abcc", rules, {}) is None
    assert owner_of("a.c+", rules, {}) == ("org", "")


def test_only_rules_that_ask_for_ancestors_need_the_tree() -> None:
    assert needs_tree(PLAIN)
    assert not needs_tree(SlurmRules((AccountRule("*_*", "{1}", "{2}"),)))


@pytest.mark.parametrize("make", [lambda: AccountRule("a*", "{2}"), lambda: PresetRule("{account}")])
def test_a_word_that_does_not_exist_is_refused_with_those_that_do(make: object) -> None:
    with pytest.raises(ValueError, match="what may stand here: "):
        make()  # type: ignore[operator]


def test_without_preset_rules_the_preset_is_the_partition() -> None:
    assert preset_of("gpu", "normal", {}, PLAIN) == "gpu"
    assert preset_of("", "", {}, PLAIN) is None


def test_presets_by_partition_qos_and_gres() -> None:
    rules = SlurmRules(
        presets=(
            PresetRule("gpu-8", gres="gpu:a100=8"),
            PresetRule("{partition}-{qos}", partition="gpu*", qos="h*"),
            PresetRule("gpu-any", gres="gpu"),
            PresetRule("cpu", gres=""),
        )
    )
    assert preset_of("gpu1", "normal", {"gpu": 8, "gpu:a100": 8}, rules) == "gpu-8"
    assert preset_of("gpu1", "high", {"gpu": 4, "gpu:a100": 4}, rules) == "gpu1-high"
    assert preset_of("cpu", "high", {"gpu": 1}, rules) == "gpu-any"
    assert preset_of("cpu", "high", {"gpu": 0}, rules) == "cpu"
    assert preset_of("cpu", "high", {"shard": 1}, rules) is None


def test_the_account_tree_out_of_associations_of_one_of_several_clusters() -> None:
    text = "lab|root||\nlab|root|root|\nlab|acme||root\nlab|vision||acme\nlab|vision|ann|\nold|vision||other\n"
    assert parse_parents(text, "lab") == {"acme": "root", "vision": "acme"}
    assert parse_parents("") == {}


@pytest.mark.parametrize(
    ("text", "gres"),
    [
        ("cpu=4,mem=400M,node=1,billing=36,gres/gpu=2,gres/gpu:a100=2", {"gpu": 2, "gpu:a100": 2}),
        ("gres/shard=2K", {"shard": 2048}),
        ("cpu=4", {}),
        ("", {}),
    ],
)
def test_gres_of_what_was_allocated(text: str, gres: dict[str, int]) -> None:
    assert gres_of_tres(text) == gres


@pytest.mark.parametrize(
    ("text", "gres"),
    [
        ("gres:gpu:a100:2", {"gpu": 2, "gpu:a100": 2}),
        ("gres/gpu:a100:1", {"gpu": 1, "gpu:a100": 1}),
        ("gpu", {"gpu": 1}),
        ("gpu:4", {"gpu": 4}),
        ("gpu:k80", {"gpu": 1, "gpu:k80": 1}),
        ("gpu:1g.5gb:2,shard:4k", {"gpu": 2, "gpu:1g.5gb": 2, "shard": 4096}),
        ("gpu:a100:1,gpu:h100=2", {"gpu": 3, "gpu:a100": 1, "gpu:h100": 2}),
        ("gpu:a100:2(IDX:0-1,4)", {"gpu": 2, "gpu:a100": 2}),
        ("none", {}),
        ("", {}),
    ],
)
def test_gres_of_what_is_asked_for(text: str, gres: dict[str, int]) -> None:
    assert gres_of_request(text) == gres


def test_gres_asked_for_on_each_of_several_nodes() -> None:
    assert gres_of_request("gpu:a100:2", times=3) == {"gpu": 6, "gpu:a100": 6}


@pytest.mark.parametrize("text", ["2", "gpu::2", "a:b:c:2", ":"])
def test_text_that_is_no_gres(text: str) -> None:
    with pytest.raises(ValueError, match="is not a GRES"):
        gres_of_request(text)
