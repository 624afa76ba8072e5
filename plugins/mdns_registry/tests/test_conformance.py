"""The conformance kit of the registry role, with multicast on the loopback interface."""

from __future__ import annotations

import pytest
from micro_mdns_registry import micro_registry
from micro_mdns_registry.options import MdnsOptions

from micro_core.contract import Registry
from micro_core.testing import DriverUnderTest, RegistryConformance


class TestMdnsRegistry(RegistryConformance):
    lease_s = 2.0
    timeout_s = 15.0
    burst_changes = 200  # each change is a multicast datagram

    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Registry]:
        return DriverUnderTest(driver=micro_registry(), options=MdnsOptions(interfaces="127.0.0.1"))
