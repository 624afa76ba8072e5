"""What holds for every test of the house."""

import pytest
from hypothesis import HealthCheck, settings

# Examples are bounded in number, not in time: a busy machine is no failure.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

LONGEST = (
    "tests/live/test_quickstart.py",
    "tests/packaging/",
    "tests/live/test_new_plugins.py",
    "tests/live/",
    "tests/testing/",
    "tests/lab/",
)
"""What takes longest, that first: where several processes share the tests, none is left with it at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place_of)


def place_of(item: pytest.Item) -> int:
    """Its place in LONGEST; all others come after, as they are."""
    return next((place for place, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))
