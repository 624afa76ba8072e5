"""The table of the benchmark: cells, targets and the chosen scenarios."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fcntl")

from benchmarks.wan.__main__ import choose
from benchmarks.wan.layout import CLOUDS, SERVICES, service_clouds, usual_conditions
from benchmarks.wan.measure import Figures
from benchmarks.wan.report import Row, table
from benchmarks.wan.scenarios import SCENARIOS
from benchmarks.wan.targets import CHECKS, evaluate

GOOD = Figures(
    calls=1_000,
    failed=0,
    untouched=0,
    late=0,
    last_failure_s=None,
    one_s=4.0,
    calm_s=2.0,
    max_rate=30.0,
    mean_rate=1.0,
    elsewhere_rate=2.0,
    expected=800,
    refused=0,
    lost=0,
    lost_untouched=0,
    lost_span_s=0.0,
    doubled=0,
    cpu_mean_percent=2.0,
    cpu_max_percent=3.0,
    idle_cpu_percent=0.8,
    slow_s=4.0,
)

WORSE: dict[str, dict[str, Any]] = {
    "failed": {"failed": 1},
    "untouched": {"untouched": 1},
    "late": {"late": 1},
    "share": {"failed": 11},
    "one": {"one_s": None},
    "storm": {"calm_s": 3.5},
    "elsewhere": {"elsewhere_rate": 5.5},
    "lost": {"lost": 1},
    "messages": {"lost_untouched": 1},
    "span": {"lost_span_s": 4.5},
    "doubled": {"doubled": 1},
    "left": {"slow_s": 6.0},
    "idle": {"idle_cpu_percent": 1.2},
}


def test_each_check_has_a_figure_that_misses_it() -> None:
    assert WORSE.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_check_is_met_by_good_figures_and_missed_by_worse_ones(name: str) -> None:
    assert evaluate((name,), GOOD)[0].is_met
    assert not evaluate((name,), replace(GOOD, **WORSE[name]))[0].is_met


def test_table_shows_each_value_with_its_verdict_and_target() -> None:
    figures = replace(GOOD, failed=3, late=1, last_failure_s=7.25, one_s=None, reasons={"RouteNotFound": 3})
    figures.not_one_s = {"several components": 12.5}
    shown = table([Row(name="halves", broker="nats", figures=figures, checks=evaluate(("late", "one"), figures))])
    (line,) = (line for line in shown.splitlines() if line.startswith("halves"))
    assert "7.2 s FAIL " in line
    assert "never FAIL " in line
    assert "FAIL halves (nats): one component: never (target ≤ 10 s)" in shown
    assert "halves (nats): failed calls: 3 RouteNotFound" in shown
    assert "halves (nats): not one component after the heal: 12.5 s several components" in shown
    assert "0 of 2 targets met" in shown


def test_scenario_without_figures_is_a_failure() -> None:
    row = Row(name="calm", broker="node", problem="the network did not become one component")
    assert not row.is_met
    assert "FAIL calm: the network did not become one component" in table([row])


def test_scenarios_name_known_checks_and_are_chosen_by_name() -> None:
    assert all(set(scenario.checks) <= set(CHECKS) for scenario in SCENARIOS)
    assert [(one.name, broker) for one, broker in choose("nats,calm", "")] == [("calm", "node"), ("nats", "nats")]
    assert [one.name for one, _ in choose("nats,calm", "node")] == ["calm"]
    with pytest.raises(SystemExit, match="unknown scenario 'tea'"):
        choose("tea", "")


def test_each_cloud_has_services_and_paths_to_all_others() -> None:
    assert len(service_clouds()) == SERVICES
    for cloud in CLOUDS:
        assert sum(1 for clouds in service_clouds().values() if clouds == (cloud,)) >= 3
        assert all(usual_conditions(cloud, other).delay_s > 0 for other in CLOUDS if other != cloud)
