"""Policies: which routes are advertised to a neighbour, and which are accepted from it."""

from __future__ import annotations

import pytest

from micro_core.contract.errors import ConfigError
from micro_core.routing.policy import ExportScope, Policy, Rule, parse, policy_for


def test_all_routes_are_advertised_and_accepted_without_rules() -> None:
    policy = policy_for((), "b", "us")
    assert policy == Policy()
    assert policy.permits_export("eu", is_own=False)
    assert policy.permits_export_of("greeter")
    assert policy.permits_import("eu")
    assert policy.permits_import_of("greeter")


def test_first_matching_rule_applies() -> None:
    rules = (parse("name=edge-*: export=none"), parse("site=us: export=local"), parse("*: export=best"))
    exports = [policy_for(rules, name, site).export for name, site in (("edge-1", "us"), ("b", "us"), ("b", "eu"))]
    assert exports == [ExportScope.NONE, ExportScope.LOCAL, ExportScope.BEST]


@pytest.mark.parametrize(
    ("rule", "own", "learned"),
    [("*: export=all", True, True), ("*: export=local", True, False), ("*: export=none", False, False)],
)
def test_export_scope_restricts_advertised_routes(rule: str, *, own: bool, learned: bool) -> None:
    policy = parse(rule).policy
    assert policy.permits_export("eu", is_own=True) is own
    assert policy.permits_export("eu", is_own=False) is learned


def test_services_and_sites_restrict_both_directions() -> None:
    policy = parse("*: services=go.micro.srv.*,!go.micro.srv.secret import-sites=!us import-services=go.*").policy
    assert policy.permits_export("eu", is_own=True)
    assert policy.permits_export_of("go.micro.srv.greeter")
    assert not policy.permits_export_of("go.micro.srv.secret")
    assert not policy.permits_export_of("other")
    assert policy.permits_import("eu")
    assert not policy.permits_import("us")
    assert policy.permits_import_of("go.micro.srv.greeter")
    assert not policy.permits_import_of("other")
    assert not parse("*: import=none").policy.permits_import("eu")
    assert not parse("*: sites=us").policy.permits_export("eu", is_own=True)


def test_rule_with_all_parts_is_parsed() -> None:
    assert parse("name=a site=eu-*: cost=5000") == Rule(name="a", site="eu-*", policy=Policy(cost_us=5_000))


@pytest.mark.parametrize(
    "text",
    ["", "site=us export=all", "planet=earth: export=all", "*: export=some", "*: cost=-1", "*: cost=", "*: import=x"],
)
def test_invalid_rule_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
