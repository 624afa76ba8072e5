"""Tests of `micro plugin verify` with built-in, installed and broken drivers."""

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
    url: str = option("", "Address of the server.")

class EmptyTable(MemoryTable):
    def lookup(self, service):
        return ()

def create(options, context):
    table_class = {table_class}
    return table_class(logger=context.logger, counters=context.counters)

@hookimpl
def micro_table():
    return Driver(name="acme", summary="Stores routes at Acme.", options=Options, create=create)
"""
CONFORMANCE = """
import pytest
from micro_core.testing import DriverUnderTest, TableConformance
from test_acme_table import Options, micro_table

@pytest.fixture
async def server():
    yield "tcp://acme"

class TestAcme(TableConformance):
    exceptions = {"test_list_is_filtered_and_ordered": "Acme has its own order"}

    @pytest.fixture
    def driver_under_test(self, server):
        return DriverUnderTest(driver=micro_table(), options=Options(url=server))

class TestOther(TableConformance):
    @pytest.fixture
    def driver_under_test(self):
        raise RuntimeError("this class must not run")
"""


def install_table(install: Any, table_class: str = 'EmptyTable if options.url == "" else MemoryTable') -> Any:
    return install("acme-table", "micro.table", "acme", DRIVER.replace("{table_class}", table_class))


def test_result_of_a_built_in_driver_is_shown_by_info(process: Any) -> None:
    done = process("plugin", "verify", "table:memory")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  ok       deleted route is removed" in done.stdout
    assert "skipped  routes survive a restart" in done.stdout
    assert "the driver does not declare 'persistent'" in done.stdout
    assert done.stdout.splitlines()[-1] == "table:memory 0.1.0: passed"
    assert "\nfaults: 0 passed, 0 failed, 0 skipped\n" in done.stdout
    assert "\npersistent: 0 passed, 0 failed, 1 skipped\n" in done.stdout
    info = process("plugin", "info", "table:memory").stdout
    assert re.search(r"kit: passed at 20\S+ \(\d+ passed, 0 failed, 1 skipped\), run with default options", info), info
    assert (
        "kit: no result for this version; run `micro plugin verify tunnel:memory`"
        in process("plugin", "info", "tunnel:memory").stdout
    )


def test_broken_guarantee_is_reported_with_its_check(process: Any, install: Any) -> None:
    site = install_table(install)
    done = process("plugin", "verify", "acme", "--json", site=site)
    report = json.loads(done.stdout)
    assert done.returncode == 9
    assert (report["schema"], report["name"], report["result"]) == ("micro.verification/1", "table:acme", "failed")
    assert (report["distribution"], report["version"]) == ("acme-table", "1.2.3")
    (broken,) = [check for check in report["checks"] if check["check"] == "test_route_is_returned_unchanged"]
    assert broken["outcome"] == "failed"
    assert "lookup returns a local route unchanged" in broken["reason"]
    assert report["totals"]["failed"] == len([check for check in report["checks"] if check["outcome"] == "failed"])
    stored = json.loads(process("plugin", "info", "acme", "--json", site=site).stdout)["verification"]
    assert (stored["result"], stored["totals"]) == ("failed", report["totals"])


def test_options_are_passed_to_the_driver(process: Any, install: Any) -> None:
    site = install_table(install)
    done = process("plugin", "verify", "acme", "--set", "acme.url=tcp://me:word@x", site=site)
    assert done.returncode == 0, done.stdout
    info = process("plugin", "info", "acme", site=site).stdout
    assert "0 failed, 1 skipped), run with url=tcp://me:***@x, without fault injection" in info


def test_kit_class_of_the_plugin_is_used(process: Any, install: Any) -> None:
    site = install_table(install)
    info = site / "acme_table-1.2.3.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "\n[micro.testing]\ntable.acme = acme_conformance:TestAcme\n")
    (site / "acme_conformance.py").write_text(CONFORMANCE)
    done = process("plugin", "verify", "acme", "--json", site=site)
    report = json.loads(done.stdout)
    assert (done.returncode, report["result"]) == (0, "passed")
    assert {check["kit"] for check in report["checks"]} == {"TestAcme"}
    (exception,) = [check for check in report["checks"] if check["reason"] == "Acme has its own order"]
    assert exception["outcome"] == "skipped"
    assert "run with acme_conformance:TestAcme" in process("plugin", "info", "acme", site=site).stdout


def test_capability_is_counted_even_if_its_checks_need_faults(process: Any) -> None:
    report = json.loads(
        process("plugin", "verify", "registry:local", "--capabilities", "persistent,x-own", "--json").stdout
    )
    assert report["groups"]["persistent"]["skipped"] + report["groups"]["persistent"]["passed"] == 1
    assert report["groups"]["x-own"] == {"passed": 0, "failed": 0, "skipped": 0}


def test_requested_capabilities_are_required(process: Any) -> None:
    done = process("plugin", "verify", "transport:tcp", "--capabilities", "wings", "--json")
    (broken,) = [check for check in json.loads(done.stdout)["checks"] if check["outcome"] == "failed"]
    assert done.returncode == 9
    assert "unknown transport capability 'wings'" in broken["reason"]


def test_error_in_the_kit_module_is_reported(process: Any, install: Any) -> None:
    site = install_table(install)
    info = site / "acme_table-1.2.3.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "\n[micro.testing]\nacme = acme_conformance\n")
    (site / "acme_conformance.py").write_text("1 / 0\n")
    done = process("plugin", "verify", "acme", site=site)
    assert done.returncode == 3
    assert "the conformance kit could not be run" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_missing_option_is_reported_and_no_check_runs(process: Any) -> None:
    done = process("plugin", "verify", "http")
    assert done.returncode == 3
    assert "http: url is not set" in done.stderr
    assert "ok" not in done.stdout.split()


def test_kit_is_stopped_after_the_timeout(process: Any) -> None:
    done = process("plugin", "verify", "table:memory", "--timeout", "0.01")
    assert done.returncode == 5
    assert "the conformance kit did not end within 0.01 s" in done.stderr


def test_missing_pytest_is_reported_with_a_hint(micro: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if "pytest" in name else find_spec(name, *args)
    )
    done = micro("plugin", "verify", "table:memory")
    assert done.exit_code == 3
    assert "the conformance kits need pytest and pytest-asyncio" in done.stderr
    assert "pip install 'micro-network[testing]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nats-no",), 3, "unknown plugin 'nats-no'"),
        (("table:memory", "--set", "table:memory.color=blue"), 3, "unknown setting 'memory.color'"),
    ],
)
def test_invalid_plugin_or_option_is_rejected_before_any_check_runs(
    micro: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = micro("plugin", "verify", *arguments)
    assert done.exit_code == code
    assert message in done.stderr


def test_cross_cutting_plugin_has_no_kit(micro: Any, install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = "from micro_core.contract import hookimpl\n@hookimpl\ndef micro_interceptors(side): return []\n"
    monkeypatch.syspath_prepend(str(install("acme-trace", "micro.hooks", "trace", hooks)))
    done = micro("plugin", "verify", "trace")
    assert done.exit_code == 2
    assert "there is no conformance kit for cross-cutting plugins" in done.stderr
