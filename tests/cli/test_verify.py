"""`micro plugin verify`: built-in drivers, installed ones with and without a back end of their own, broken ones."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import pytest

DRIVER = """
from dataclasses import dataclass
from micro_core.builtin.table.memory import MemoryTable
from micro_core.contract import Driver, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    url: str = option("", "Where it is.")

class Forgetful(MemoryTable):
    def lookup(self, service):
        return ()

def create(options, context):
    made = {made}
    return made(logger=context.logger, counters=context.counters)

@hookimpl
def micro_table():
    return Driver(name="acme", summary="Routes at Acme.", options=Options, create=create)
"""
OFFERED = """
import pytest
from micro_core.testing import Subject, TableConformance
from test_acme_table import Options, micro_table

@pytest.fixture
async def server():
    yield "tcp://acme"

class TestAcme(TableConformance):
    exceptions = {"test_list_filters_and_has_a_stable_order": "Acme lists as it likes"}

    @pytest.fixture
    def subject(self, server):
        return Subject(driver=micro_table(), options=Options(url=server))

class TestOther(TableConformance):
    @pytest.fixture
    def subject(self):
        raise RuntimeError("nobody asked for this one")
"""


def installed(install: Any, made: str = 'Forgetful if options.url == "" else MemoryTable') -> Any:
    return install("acme-table", "micro.table", "acme", DRIVER.replace("{made}", made))


def test_a_built_in_driver_is_verified_and_the_result_is_shown_by_info(process: Any) -> None:
    done = process("plugin", "verify", "table:memory")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  ok       a route that is deleted is gone" in done.stdout
    assert "skipped  routes are back after a restart" in done.stdout
    assert "the driver does not declare 'persistent'" in done.stdout
    assert done.stdout.splitlines()[-1] == "table:memory 0.1.0: passed"
    assert "\nfaults: 0 passed, 0 failed, 0 skipped\n" in done.stdout
    assert "\npersistent: 0 passed, 0 failed, 1 skipped\n" in done.stdout
    info = process("plugin", "info", "table:memory").stdout
    assert re.search(r"kit: passed at 20\S+ \(\d+ passed, 0 failed, 1 skipped\), run with its defaults", info), info
    assert (
        "kit: no result for this version; micro plugin verify tunnel:memory"
        in process("plugin", "info", "tunnel:memory").stdout
    )


def test_a_driver_that_breaks_a_promise_fails_by_its_part_and_clause(process: Any, install: Any) -> None:
    site = installed(install)
    done = process("plugin", "verify", "acme", "--json", site=site)
    report = json.loads(done.stdout)
    assert done.returncode == 9
    assert (report["schema"], report["name"], report["result"]) == ("micro.verification/1", "table:acme", "failed")
    assert (report["distribution"], report["version"]) == ("acme-table", "1.2.3")
    (broken,) = [part for part in report["parts"] if part["part"] == "test_a_route_comes_back_whole"]
    assert broken["outcome"] == "failed"
    assert "lookup returns the routes as they were put" in broken["reason"]
    assert report["totals"]["failed"] == len([part for part in report["parts"] if part["outcome"] == "failed"])
    kept = json.loads(process("plugin", "info", "acme", "--json", site=site).stdout)["verification"]
    assert (kept["result"], kept["totals"]) == ("failed", report["totals"])


def test_options_that_are_given_are_the_driver_s(process: Any, install: Any) -> None:
    site = installed(install)
    done = process("plugin", "verify", "acme", "--set", "acme.url=tcp://me:word@x", site=site)
    assert done.returncode == 0, done.stdout
    info = process("plugin", "info", "acme", site=site).stdout
    assert "0 failed, 1 skipped), run with url=tcp://me:***@x, without faults" in info


def test_what_the_author_offers_is_run_with_its_fixtures_and_exceptions(process: Any, install: Any) -> None:
    site = installed(install)
    info = site / "acme_table-1.2.3.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "\n[micro.testing]\ntable.acme = acme_conformance:TestAcme\n")
    (site / "acme_conformance.py").write_text(OFFERED)
    done = process("plugin", "verify", "acme", "--json", site=site)
    report = json.loads(done.stdout)
    assert (done.returncode, report["result"]) == (0, "passed")
    assert {part["kit"] for part in report["parts"]} == {"TestAcme"}
    (exception,) = [part for part in report["parts"] if part["reason"] == "Acme lists as it likes"]
    assert exception["outcome"] == "skipped"
    assert "run with acme_conformance:TestAcme" in process("plugin", "info", "acme", site=site).stdout


def test_a_declared_capability_is_counted_also_where_its_parts_need_faults(process: Any) -> None:
    report = json.loads(
        process("plugin", "verify", "registry:local", "--capabilities", "persistent,x-own", "--json").stdout
    )
    assert report["groups"]["persistent"]["skipped"] + report["groups"]["persistent"]["passed"] == 1
    assert report["groups"]["x-own"] == {"passed": 0, "failed": 0, "skipped": 0}


def test_capabilities_can_be_demanded(process: Any) -> None:
    done = process("plugin", "verify", "transport:tcp", "--capabilities", "wings", "--json")
    (broken,) = [part for part in json.loads(done.stdout)["parts"] if part["outcome"] == "failed"]
    assert done.returncode == 9
    assert "transport has no capability 'wings'" in broken["reason"]


def test_a_module_that_cannot_be_collected_is_told_with_its_reason(process: Any, install: Any) -> None:
    site = installed(install)
    info = site / "acme_table-1.2.3.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "\n[micro.testing]\nacme = acme_conformance\n")
    (site / "acme_conformance.py").write_text("1 / 0\n")
    done = process("plugin", "verify", "acme", site=site)
    assert done.returncode == 3
    assert "the kit could not be run" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_driver_that_cannot_be_made_says_what_it_needs_and_no_part_runs(process: Any) -> None:
    done = process("plugin", "verify", "http")
    assert done.returncode == 3
    assert "http: url is not set" in done.stderr
    assert "ok" not in done.stdout.split()


def test_a_kit_that_does_not_end_is_given_up(process: Any) -> None:
    done = process("plugin", "verify", "table:memory", "--timeout", "0.01")
    assert done.returncode == 5
    assert "the kit did not end within 0.01 s" in done.stderr


def test_without_pytest_the_line_to_type_is_said(micro: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if "pytest" in name else found(name, *more)
    )
    done = micro("plugin", "verify", "table:memory")
    assert done.exit_code == 3
    assert "the kits need pytest and pytest-asyncio" in done.stderr
    assert "pip install 'micro-network[testing]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("nats-no",), 3, "there is no plugin 'nats-no'"),
        (("table:memory", "--set", "table:memory.color=blue"), 3, "unknown option 'color'"),
    ],
)
def test_what_is_wrong_with_plugin_or_options_is_said_before_anything_runs(
    micro: Any, words: tuple[str, ...], code: int, sentence: str
) -> None:
    done = micro("plugin", "verify", *words)
    assert done.exit_code == code
    assert sentence in done.stderr


def test_what_cuts_across_has_no_kit(micro: Any, install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = "from micro_core.contract import hookimpl\n@hookimpl\ndef micro_interceptors(side): return []\n"
    monkeypatch.syspath_prepend(str(install("acme-trace", "micro.hooks", "trace", hooks)))
    done = micro("plugin", "verify", "trace")
    assert done.exit_code == 2
    assert "there is no kit for what cuts across" in done.stderr
