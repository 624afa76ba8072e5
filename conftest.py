"""What holds for every test of the house."""

import pytest
from hypothesis import HealthCheck, settings

# Examples are bounded in number, not in time: a busy machine is no failure.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

LONGEST = ("tests/packaging/", "tests/live/", "tests/testing/", "tests/examples/", "tests/lab/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Where several processes share the tests, none should be left with a long file at the end.
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
