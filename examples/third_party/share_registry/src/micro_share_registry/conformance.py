"""The conformance kit of the registry role, run by `pytest` and by `micro plugin verify`."""

from __future__ import annotations

from pathlib import Path

import pytest
from micro_core.contract import DriverContext, Registry
from micro_core.testing import DriverUnderTest, Faults, RegistryConformance

from micro_share_registry import micro_registry
from micro_share_registry.options import ShareOptions


class ShareFaults(Faults):
    """Faults of a share: it is not mounted for a while, or other programs write into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def kill(self) -> None:
        self.path.rename(self.path.with_suffix(".gone"))
        self.path.write_text("not a directory")

    async def restart(self) -> None:
        self.path.unlink()
        self.path.with_suffix(".gone").rename(self.path)

    async def wipe(self) -> None:
        self.path.unlink()
        self.path.mkdir()

    async def garbage(self, context: DriverContext) -> None:
        directory = self.path / f"share-{context.network}" / context.site
        for number, content in enumerate((b"", b"\xff\x00", b"{", b"[]", b"null", b'{"instance": {}}', b"9" * 200_000)):
            (directory / f"invalid-{number}.json").write_bytes(content)


class TestShareRegistry(RegistryConformance):
    burst_changes = 300  # each change is a file

    @pytest.fixture
    def driver_under_test(self, tmp_path: Path) -> DriverUnderTest[Registry]:
        path = tmp_path / "share"
        path.mkdir()
        options = ShareOptions(path=str(path), poll_s=0.05)
        return DriverUnderTest(driver=micro_registry(), options=options, faults=ShareFaults(path))
