"""Policies: what is told to which neighbour, and what is believed of it."""

from __future__ import annotations

import pytest

from micro_core.contract.errors import ConfigError
from micro_core.routing.events import Announce
from micro_core.routing.policy import Export, Policy, Rule, parse, policy_for


def announce(service: str = "go.micro.srv.greeter", site: str = "eu") -> Announce:
    return Announce(
        origin="f" * 32,
        incarnation=1,
        sequence=1,
        service=service,
        versions=(),
        capacity=0,
        site=site,
        network="n",
        metric_us=0,
        path=("f" * 32,),
    )


def test_without_rules_everything_is_told_and_believed() -> None:
    policy = policy_for((), "b", "us")
    assert policy == Policy()
    assert policy.tells(announce(), is_own=False)
    assert policy.takes(announce())


def test_the_first_rule_that_fits_counts() -> None:
    rules = (parse("name=edge-*: export=none"), parse("site=us: export=local"), parse("*: export=best"))
    exports = [policy_for(rules, name, site).export for name, site in (("edge-1", "us"), ("b", "us"), ("b", "eu"))]
    assert exports == [Export.NONE, Export.LOCAL, Export.BEST]


@pytest.mark.parametrize(
    ("rule", "own", "learned"),
    [("*: export=all", True, True), ("*: export=local", True, False), ("*: export=none", False, False)],
)
def test_how_much_is_told(rule: str, *, own: bool, learned: bool) -> None:
    policy = parse(rule).policy
    assert policy.tells(announce(), is_own=True) is own
    assert policy.tells(announce(), is_own=False) is learned


def test_services_and_sites_restrict_either_direction() -> None:
    policy = parse("*: services=go.micro.srv.*,!go.micro.srv.secret import-sites=!us import-services=go.*").policy
    assert policy.tells(announce(), is_own=True)
    assert not policy.tells(announce("go.micro.srv.secret"), is_own=True)
    assert not policy.tells(announce("other"), is_own=True)
    assert policy.takes(announce(site="eu"))
    assert not policy.takes(announce(site="us"))
    assert not policy.takes(announce("other"))
    assert not parse("*: import=none").policy.takes(announce())


def test_a_rule_is_read_whole() -> None:
    assert parse("name=a site=eu-*: cost=5000") == Rule(name="a", site="eu-*", policy=Policy(cost_us=5_000))


@pytest.mark.parametrize(
    "text",
    ["", "site=us export=all", "planet=earth: export=all", "*: export=some", "*: cost=-1", "*: cost=", "*: import=x"],
)
def test_what_is_not_a_rule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
