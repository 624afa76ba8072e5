"""The conformance kit of the table role."""

from __future__ import annotations

import pytest
from micro_sqlite_table import micro_table

from micro_core.contract import Table
from micro_core.testing import DriverUnderTest, TableConformance


class TestSqliteTable(TableConformance):
    @pytest.fixture
    def driver_under_test(self) -> DriverUnderTest[Table]:
        return DriverUnderTest(driver=micro_table())
