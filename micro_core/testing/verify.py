"""The other side of `micro plugin verify`: runs one plugin's kit in a process of its own, a line of JSON for each part.

    python -m micro_core.testing < request.json

The request names the plugin and says what was typed: {"name": "registry:redis", "sets": [...], "config": ...,
"capabilities": [...] or null}. What is tested, in this order:

1. where options were given (`--set`): the driver with them, and no fault handle;
2. else what the plugin's distribution offers as entry point in the group `micro.testing`, called NAME or ROLE.NAME: a
   module with classes that inherit the role's kit, or one such class (`module:Class`);
3. else the driver with the options that settings and defaults give.
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
from micro_core.testing.kit.driver_under_test import Subject
from micro_core.testing.kit.harness import Bench
from micro_core.testing.registry.checks import RegistryConformance
from micro_core.testing.report import PartReporter, PartResult
from micro_core.testing.resolver import ResolverConformance
from micro_core.testing.table import TableConformance
from micro_core.testing.transport import TransportConformance
from micro_core.testing.tunnel import TunnelConformance

TESTING_GROUP = "micro.testing"

KITS: Mapping[Role, type[Conformance[Any]]] = {
    Role.REGISTRY: RegistryConformance,
    Role.TRANSPORT: TransportConformance,
    Role.BROKER: BrokerConformance,
    Role.TUNNEL: TunnelConformance,
    Role.TABLE: TableConformance,
    Role.RESOLVER: ResolverConformance,
}


def kit_of(driver: Driver[Any], role: Role, options: object, capabilities: frozenset[str] | None) -> type[Any]:
    """A test class for a driver that needs nothing but its options."""

    kit: Any = KITS[role]

    class TestDriver(kit):  # type: ignore[misc]  # a base that depends on the role
        @pytest.fixture
        def subject(self) -> Subject[Any]:
            return Subject(driver=driver, options=options, capabilities=capabilities)

    return TestDriver


def offered_by(entry: Entry) -> str:
    """The value of the plugin's entry point in `micro.testing`; empty where it has none."""
    assert entry.role is not None
    points = importlib.metadata.distribution(entry.distribution).entry_points.select(group=TESTING_GROUP)
    for name in (f"{entry.role.value}.{entry.name}", entry.name):
        for point in points:
            if point.name == name:
                return point.value
    return ""


class _Chosen:
    """A pytest plugin: of what was collected, only the kits of the role, or the one class."""

    def __init__(self, kit: type[Conformance[Any]], class_name: str) -> None:
        self._kit = kit
        self._class_name = class_name

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._is_meant(getattr(item, "cls", None))]

    def _is_meant(self, cls: object) -> bool:
        return isinstance(cls, type) and issubclass(cls, self._kit) and self._class_name in ("", cls.__name__)


# The generated module finds here what it is to test.
to_verify: type[Any] | None = None

_GENERATED = "from micro_core.testing import verify\n\nTestDriver = verify.to_verify\n"


def run(request: Mapping[str, Any], out: TextIO) -> None:
    """Run the kit, and write a line for each part; the last line says what could not be collected."""
    global to_verify  # noqa: PLW0603 - pytest imports the generated module, and knows no other way
    catalog = Catalog.discover()
    entry = catalog.find(request["name"])
    assert entry.role is not None
    settings = load_settings(sets=request["sets"], config=request["config"])
    offered = "" if request["sets"] else offered_by(entry)
    out.write(json.dumps({"environment": offered}) + "\n")
    module, _, class_name = offered.partition(":")
    with tempfile.TemporaryDirectory(prefix="micro-verify-") as directory:
        if offered:
            target = ["--pyargs", module.strip()]
        else:
            driver, capabilities = catalog.load(entry), request["capabilities"]
            options = options_of(settings, entry, driver)
            missing = asyncio.run(missing_for(driver, options))
            if missing is not None:
                out.write(json.dumps({"end": 0, "broken": [str(missing)]}) + "\n")
                return
            demanded = None if capabilities is None else frozenset(capabilities)
            to_verify = kit_of(driver, entry.role, options, demanded)
            generated = Path(directory, "test_driver.py")
            generated.write_text(_GENERATED)
            target = [str(generated)]

        def tell(result: PartResult) -> None:
            out.write(json.dumps(dataclasses.asdict(result)) + "\n")
            out.flush()

        reporter = PartReporter(tell)
        code = pytest.main(
            [*target, *_arguments(directory)],
            plugins=[reporter, _Chosen(KITS[entry.role], class_name.strip())],
        )
    out.write(json.dumps({"end": int(code), "broken": reporter.broken}) + "\n")
    out.flush()


async def missing_for(driver: Driver[Any], options: object) -> ConfigError | None:
    """What the driver says it cannot be made without, if it says so; then no part would tell anything else."""
    bench: Bench[Any] = Bench(Subject(driver=driver, options=options), state_dir="", patience_s=1.0)
    try:
        bench.create()
    except ConfigError as error:
        return error
    except Exception:  # noqa: BLE001 - anything else is what a part finds, and says
        return None
    return None


def options_of(settings: Settings, entry: Entry, driver: Driver[Any]) -> object:
    """The driver's options, as a node would have them. Raises OptionError."""
    return build_options(driver.options, settings.plugin_values(*entry.words), entry.name)


def _arguments(directory: str) -> Sequence[str]:
    """The kit runs the same wherever it is started: no settings of a project, no cache, asynchronous fixtures allowed."""
    settings = Path(directory, "pytest.ini")
    settings.write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    return ["-q", "-c", str(settings), "--rootdir", directory, "-p", "no:cacheprovider"]


def main() -> None:
    """Entry point of `python -m micro_core.testing`."""
    request = json.load(sys.stdin)
    # What pytest and the plugin print is not ours: the report goes out by the descriptor that was stdout.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        run(request, out)
