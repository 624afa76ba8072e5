"""What pytest finds wherever the house is installed: the fixture `micro_net`, of `micro_core.lab.pytest_plugin`.

Nothing heavy is imported before a test asks for the fixture, and no kit before a test module does.
"""

from micro_core.lab.pytest_plugin import (
    micro_net,
    pytest_addoption,
    pytest_pycollect_makeitem,
    pytest_runtest_makereport,
)

__all__ = ["micro_net", "pytest_addoption", "pytest_pycollect_makeitem", "pytest_runtest_makereport"]
