"""The child process of `micro plugin verify`: runs the kit of one plugin and writes one line of JSON per check.

    python -m micro_core.testing < request.json

The request contains the name of the plugin and the command-line options: {"name": "registry:redis", "sets": [...],
"config": ..., "capabilities": [...] or null}. The driver under test is the first of these that applies:

1. if options were given (`--set`): the driver with these options, without a fault handle;
2. the entry point NAME or ROLE.NAME of the plugin's distribution in the group `micro.testing`: a module with classes that
   inherit the kit of the role, or one such class (`module:Class`);
3. the driver with the options from the settings and the defaults.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

from micro_core.config import Settings, build_options, load_settings
from micro_core.contract import ConfigError, Driver, Role
from micro_core.plugins import Catalog, Entry
from micro_core.testing.broker.checks import BrokerConformance
from micro_core.testing.kit.conformance import Conformance
from micro_core.testing.kit.driver_under_test import DriverUnderTest
from micro_core.testing.kit.harness import Harness
from micro_core.testing.registry.checks import RegistryConformance
from micro_core.testing.report import CheckReporter, CheckResult
from micro_core.testing.resolver import ResolverConformance
from micro_core.testing.table import TableConformance
from micro_core.testing.transport import TransportConformance
from micro_core.testing.tunnel import TunnelConformance

TESTING_GROUP = "micro.testing"
"""Entry-point group of test environments for `micro plugin verify`."""

KITS: Mapping[Role, type[Conformance[Any]]] = {
    Role.REGISTRY: RegistryConformance,
    Role.TRANSPORT: TransportConformance,
    Role.BROKER: BrokerConformance,
    Role.TUNNEL: TunnelConformance,
    Role.TABLE: TableConformance,
    Role.RESOLVER: ResolverConformance,
}
"""The conformance kit of each role."""


def kit_of(driver: Driver[Any], role: Role, options: object, capabilities: frozenset[str] | None) -> type[Any]:
    """Return a test class for a driver that needs only its options."""
    kit: Any = KITS[role]

    class TestDriver(kit):  # type: ignore[misc]  # a base that depends on the role
        @pytest.fixture
        def driver_under_test(self) -> DriverUnderTest[Any]:
            return DriverUnderTest(driver=driver, options=options, capabilities=capabilities)

    return TestDriver


def test_environment_of(entry: Entry) -> str:
    """Return the value of the plugin's entry point in `micro.testing`, or an empty string."""
    assert entry.role is not None
    points = importlib.metadata.distribution(entry.distribution).entry_points.select(group=TESTING_GROUP)
    for name in (f"{entry.role.value}.{entry.name}", entry.name):
        for point in points:
            if point.name == name:
                return point.value
    return ""


class _Selection:
    """A pytest plugin that keeps only the kits of the role, or one class, of the collected tests."""

    def __init__(self, kit: type[Conformance[Any]], class_name: str) -> None:
        self._kit = kit
        self._class_name = class_name

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._is_selected(getattr(item, "cls", None))]

    def _is_selected(self, cls: object) -> bool:
        return isinstance(cls, type) and issubclass(cls, self._kit) and self._class_name in ("", cls.__name__)


# The generated module imports the class to run from here.
kit_to_run: type[Any] | None = None

_GENERATED = "from micro_core.testing import verify\n\nTestDriver = verify.kit_to_run\n"


def run(request: Mapping[str, Any], out: TextIO) -> None:
    """Run the kit and write one line per check; the last line contains the exit code and the collection errors."""
    global kit_to_run  # noqa: PLW0603 - the generated module can only import it
    catalog = Catalog.discover()
    entry = catalog.find(request["name"])
    assert entry.role is not None
    settings = load_settings(sets=request["sets"], config=request["config"])
    environment = "" if request["sets"] else test_environment_of(entry)
    out.write(json.dumps({"environment": environment}) + "\n")
    module, _, class_name = environment.partition(":")
    with tempfile.TemporaryDirectory(prefix="micro-verify-") as directory:
        if environment:
            target = ["--pyargs", module.strip()]
        else:
            driver, capabilities = catalog.load(entry), request["capabilities"]
            options = options_of(settings, entry, driver)
            missing = asyncio.run(configuration_error(driver, options))
            if missing is not None:
                out.write(json.dumps({"end": 0, "broken": [str(missing)]}) + "\n")
                return
            required = None if capabilities is None else frozenset(capabilities)
            kit_to_run = kit_of(driver, entry.role, options, required)
            generated = Path(directory, "test_driver.py")
            generated.write_text(_GENERATED)
            target = [str(generated)]

        def report(result: CheckResult) -> None:
            out.write(json.dumps(dataclasses.asdict(result)) + "\n")
            out.flush()

        reporter = CheckReporter(report)
        code = pytest.main(
            [*target, *_arguments(directory)],
            plugins=[reporter, _Selection(KITS[entry.role], class_name.strip())],
        )
    out.write(json.dumps({"end": int(code), "broken": reporter.collection_errors}) + "\n")
    out.flush()


async def configuration_error(driver: Driver[Any], options: object) -> ConfigError | None:
    """Return the ConfigError that the driver raises when it is created, since every check would fail with it; otherwise None."""
    harness: Harness[Any] = Harness(DriverUnderTest(driver=driver, options=options), state_dir="", timeout_s=1.0)
    try:
        harness.create()
    except ConfigError as error:
        return error
    except Exception:  # noqa: BLE001 - the checks report any other error
        return None
    return None


def options_of(settings: Settings, entry: Entry, driver: Driver[Any]) -> object:
    """Return the options of the driver from the settings. Raises OptionError."""
    return build_options(driver.options, settings.plugin_values(*entry.option_tables), entry.name)


def _arguments(directory: str) -> Sequence[str]:
    """Return pytest arguments that make the run independent of the current directory: own settings, no cache."""
    settings = Path(directory, "pytest.ini")
    settings.write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    return ["-q", "-c", str(settings), "--rootdir", directory, "-p", "no:cacheprovider"]


def main() -> None:
    """Run the request from standard input. Entry point of `python -m micro_core.testing`."""
    request = json.load(sys.stdin)
    # Write the report to the original stdout, and redirect the output of pytest and the plugin to stderr.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        run(request, out)
