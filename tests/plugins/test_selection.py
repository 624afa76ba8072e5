"""Tests of finding plugins by their metadata and selecting them by name."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

from micro_core.contract import Role
from micro_core.contract.errors import ConfigError, PluginAmbiguous, PluginBroken, PluginMissing
from micro_core.plugins import Catalog, blocked_names

Site = Any  # the class of the fixture is in conftest, which cannot be imported


def qualified(catalog: Catalog, *names: str, blocked: tuple[str, ...] = ()) -> list[str]:
    return [entry.qualified for entry in catalog.select(names, blocked=blocked)]


def test_plugins_are_listed_without_being_imported(site: Site) -> None:
    module = site.driver("micro-quic-tunnel", "tunnel", "quic", "raise RuntimeError('imported')")
    site.install("micro-trace", {"micro.hooks": {"trace": "test_trace"}, "console_scripts": {"x": "y:z"}})
    catalog = site.catalog()
    assert [(e.role, e.name, e.distribution, e.version, e.group) for e in catalog.entries] == [
        (None, "trace", "micro-trace", "1.2.3", "micro.hooks"),
        (Role.TUNNEL, "quic", "micro-quic-tunnel", "1.2.3", "micro.tunnel"),
    ]
    assert module not in sys.modules


def test_built_in_drivers_are_found_through_entry_points() -> None:
    entries = Catalog.discover({}).entries
    builtin = {entry.qualified for entry in entries if entry.is_builtin}
    assert {"registry:local", "transport:tcp", "broker:node", "table:memory", "resolver:static"} <= builtin


@pytest.mark.parametrize(
    "name",
    ["quic", "QUIC", "tunnel:quic", "quic_tunnel", "quic-tunnel", "micro-quic-tunnel", "micro_quic_tunnel"],
)
def test_plugin_is_selected_by_name_qualified_name_or_distribution(site: Site, name: str) -> None:
    site.driver("micro-quic-tunnel", "tunnel", "quic")
    assert qualified(site.catalog(), name) == ["tunnel:quic"]


def test_name_can_contain_an_underscore(site: Site) -> None:
    site.driver("acme-wire", "tunnel", "wire_guard")
    for name in ("wire_guard", "wire-guard", "tunnel:wire_guard", "acme_wire"):
        assert qualified(site.catalog(), name) == ["tunnel:wire_guard"]


def test_selection_keeps_the_order_and_removes_duplicates(site: Site) -> None:
    site.driver("a", "tunnel", "quic")
    site.driver("b", "registry", "mdns")
    assert qualified(site.catalog(), "mdns", "quic", "registry:mdns") == ["registry:mdns", "tunnel:quic"]


def test_name_of_two_roles_is_ambiguous_unless_qualified(site: Site) -> None:
    site.install("micro-redis", {"micro.registry": {"redis": "r"}, "micro.broker": {"redis": "r"}})
    catalog = site.catalog()
    for name in ("redis", "micro-redis"):
        with pytest.raises(PluginAmbiguous, match="is ambiguous") as caught:
            catalog.select([name])
        assert caught.value.hint == "use broker:redis or registry:redis"
    assert qualified(catalog, "registry:redis") == ["registry:redis"]
    assert qualified(catalog, "redis", blocked=("broker:redis",)) == ["registry:redis"]


def test_error_of_a_conflict_lists_both_distributions(site: Site) -> None:
    site.driver("acme-redis", "registry", "redis")
    site.driver("micro-redis-registry", "registry", "redis")
    catalog = site.catalog()
    assert [{a.distribution, b.distribution} for a, b in catalog.conflicts()] == [
        {"acme-redis", "micro-redis-registry"}
    ]
    with pytest.raises(PluginAmbiguous) as caught:
        catalog.select(["redis"])
    assert caught.value.detail == "registry:redis is provided by acme-redis 1.2.3 and micro-redis-registry 1.2.3"
    assert "uninstall all but one" in caught.value.hint
    # The name of the distribution is unambiguous.
    (selected,) = catalog.select(["micro-redis-registry"])
    assert catalog.select(["redis"], blocked=["acme-redis"]) == [selected]


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("quic", "micro-quic-tunnel"),
        ("tunnel:quic", "micro-quic-tunnel"),
        ("quic_tunnel", "micro-quic-tunnel"),
        ("mdns", "micro-mdns-registry"),
        ("nats", "micro-nats-broker"),
        ("redis", "micro-redis-registry"),
        ("tls", "micro-tls-tunnel"),
        ("dns", "micro-dns-resolver"),
        ("micro-http-resolver", "micro-http-resolver"),
    ],
)
def test_error_of_a_known_plugin_contains_the_install_command(site: Site, name: str, distribution: str) -> None:
    with pytest.raises(PluginMissing, match="is not installed") as caught:
        site.catalog().select([name])
    assert caught.value.hint == f"pip install {distribution}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("etdc", "did you mean 'etcd'?"),
        ("quik", "did you mean 'quic'?"),
        ("regisry:etcd", "did you mean 'registry:etcd'?"),
        ("broker:etcd", "did you mean 'registry:etcd'?"),
        ("tunnel:mdns", "did you mean 'registry:mdns'?"),
        ("zzzzzzzz", "micro plugin list --all"),
    ],
)
def test_error_of_an_unknown_name_suggests_a_similar_one(site: Site, name: str, hint: str) -> None:
    site.driver("acme-store", "registry", "etcd")
    with pytest.raises(PluginMissing, match="unknown plugin") as caught:
        site.catalog().select([name])
    assert caught.value.hint == hint


def test_blocked_plugin_is_left_out_even_if_it_is_not_installed(site: Site) -> None:
    site.driver("micro-quic-tunnel", "tunnel", "quic")
    assert qualified(site.catalog(), "quic", "redis", blocked=("quic_tunnel", "redis")) == []


def test_block_option_of_another_form_is_rejected() -> None:
    assert blocked_names(["no:quic", "no:registry:redis"]) == ["quic", "registry:redis"]
    for invalid in ("quic", "no:"):
        with pytest.raises(ConfigError, match="invalid option -p") as caught:
            blocked_names([invalid])
        assert "no:NAME" in caught.value.hint


def test_first_version_of_a_distribution_on_the_path_is_used(site: Site) -> None:
    site.driver("micro-quic-tunnel", "tunnel", "quic")
    site.install("micro-quic-tunnel", {"micro.tunnel": {"quic": "old"}}, version="0.9.0")
    assert len(site.catalog().entries) == 1


def damage(site: Site) -> None:
    info = site.path / "damaged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(b"[micro.tunnel]\nquic = \xff\xfe\n")


def test_damaged_metadata_is_reported_and_does_not_affect_other_plugins(site: Site) -> None:
    site.driver("acme-quic", "tunnel", "quic")
    damage(site)
    catalog = site.catalog()
    assert qualified(catalog, "quic") == ["tunnel:quic"]
    (message,) = catalog.unreadable
    assert "damaged-1.0.dist-info" in message
    assert "UnicodeDecodeError" in message


def test_damaged_metadata_is_an_error_in_strict_mode(site: Site) -> None:
    damage(site)
    with pytest.raises(PluginBroken, match="cannot read"):
        site.catalog({"MICRO_STRICT_PLUGINS": "1"})


def test_distribution_without_a_name_gets_the_name_of_its_directory(site: Site) -> None:
    info = site.path / "nameless-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[micro.tunnel]\nx = nameless")
    (entry,) = site.catalog().entries
    assert (entry.distribution, entry.qualified) == ("nameless", "tunnel:x")


def test_discovery_reads_all_installed_distributions_by_default(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.driver("acme-quic", "tunnel", "acme")
    assert "tunnel:acme" in {entry.qualified for entry in Catalog.discover({}).entries}
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(()))
    assert Catalog.discover({}).entries == ()
