"""The pytest plugin of `micro-network`: the fixture `micro_net` of `micro_core.lab.pytest_plugin`.

No heavy module is imported until a test uses the fixture, and no kit until a test module imports it.
"""

from micro_core.lab.pytest_plugin import (
    micro_net,
    pytest_addoption,
    pytest_pycollect_makeitem,
    pytest_runtest_makereport,
)

__all__ = ["micro_net", "pytest_addoption", "pytest_pycollect_makeitem", "pytest_runtest_makereport"]
