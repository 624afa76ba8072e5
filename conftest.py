"""Settings for all tests: the hypothesis profiles, and the order in which files run."""

import pytest
from hypothesis import HealthCheck, Phase, settings

# The number of examples is limited, not their duration, because the machine may be busy.
settings.register_profile("micro", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# For `make mutants`, which only asks whether a test fails: with the same examples every time, not reduced to smaller ones.
settings.register_profile(
    "mutants", settings.get_profile("micro"), derandomize=True, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("micro")

SLOWEST = (
    "tests/live/test_quickstart.py",
    "tests/packaging/",
    "tests/live/test_new_plugins.py",
    "tests/live/",
    "tests/testing/",
    "tests/lab/",
)
"""The slowest tests, which start first: otherwise one process would still run them when the others have finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest tests first."""
    items.sort(key=rank)


def rank(item: pytest.Item) -> int:
    """Return the index of the item's file or directory in SLOWEST; all other items come after those."""
    return next((index for index, start in enumerate(SLOWEST) if item.nodeid.startswith(start)), len(SLOWEST))
