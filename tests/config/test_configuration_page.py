"""docs/configuration.md matches the code."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

from micro_core.config import NodeSettings, load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def test_page_lists_exactly_the_settings_with_their_variables() -> None:
    rows = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| `node.")}
    assert list(rows) == [f"`node.{field.name}`" for field in dataclasses.fields(NodeSettings)]
    for field in dataclasses.fields(NodeSettings):
        assert f"`MICRO_{field.name.upper()}`" in rows[f"`node.{field.name}`"]


def test_example_of_the_page_is_valid(tmp_path: Path) -> None:
    example = PAGE.partition("```toml\n")[2].partition("```")[0]
    tomllib.loads(example)
    (tmp_path / "micro.toml").write_text(example)
    (tmp_path / "network.token").write_text("t\n")
    settings = load_settings(environ={}, directory=tmp_path)
    assert (settings.node.plugins, settings.node.token) == (("quic", "mdns"), "t")
    assert settings.origin("quic.port") == "micro.toml:8"
