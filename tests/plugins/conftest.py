"""Fixture `site`: a directory on `sys.path` in which tests install distributions with entry points."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from micro_core.plugins import Catalog

GOOD = """
from micro_core.contract import Driver, NoOptions, hookimpl

@hookimpl
def micro_{role}():
    return Driver(name="{name}", summary="A test.", options=NoOptions, create=lambda options, context: None)
"""


class Site:
    """A directory on sys.path where distributions are installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def install(
        self,
        distribution: str,
        points: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str] | None = None,
        version: str = "1.2.3",
    ) -> None:
        """Install `distribution` with entry points by group, and the sources of its modules."""
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = []
        for group, names in points.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for module, source in (modules or {}).items():
            (self.path / f"{module}.py").write_text(source)

    def driver(self, distribution: str, role: str, name: str, source: str = GOOD) -> str:
        """Install a distribution with one driver, and return the name of its module."""
        module = f"test_{distribution}_{role}_{name}".replace("-", "_")
        text = source.replace("{role}", role).replace("{name}", name)
        self.install(distribution, {f"micro.{role}": {name: module}}, {module: text})
        return module

    def catalog(self, environ: Mapping[str, str] | None = None) -> Catalog:
        """Return a catalogue of the plugins that are installed here only."""
        found = importlib.metadata.distributions(path=[str(self.path)])
        return Catalog.discover(environ or {}, distributions=found)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.path))
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(site.path)):
            del sys.modules[name]
