"""Finding plugins by their metadata, and which one a word means."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

from micro_core.contract import Role
from micro_core.contract.errors import ConfigError, PluginAmbiguous, PluginBroken, PluginMissing
from micro_core.plugins import Catalog, blocked_names

Site = Any  # the fixture's class lives in conftest, which cannot be imported


def qualified(catalog: Catalog, *words: str, blocked: tuple[str, ...] = ()) -> list[str]:
    return [entry.qualified for entry in catalog.select(words, blocked=blocked)]


def test_plugins_are_listed_with_role_name_distribution_and_version_and_none_is_imported(site: Site) -> None:
    module = site.driver("micro-quic-tunnel", "tunnel", "quic", "raise RuntimeError('imported')")
    site.install("micro-trace", {"micro.hooks": {"trace": "test_trace"}, "console_scripts": {"x": "y:z"}})
    catalog = site.catalog()
    assert [(e.role, e.name, e.distribution, e.version, e.group) for e in catalog.entries] == [
        (None, "trace", "micro-trace", "1.2.3", "micro.hooks"),
        (Role.TUNNEL, "quic", "micro-quic-tunnel", "1.2.3", "micro.tunnel"),
    ]
    assert module not in sys.modules


def test_built_in_drivers_come_in_by_the_same_door() -> None:
    entries = Catalog.discover({}).entries
    builtin = {entry.qualified for entry in entries if entry.is_builtin}
    assert {"registry:local", "transport:tcp", "broker:node", "table:memory", "resolver:static"} <= builtin


@pytest.mark.parametrize(
    "word",
    ["quic", "QUIC", "tunnel:quic", "quic_tunnel", "quic-tunnel", "micro-quic-tunnel", "micro_quic_tunnel"],
)
def test_a_plugin_answers_to_its_name_its_role_and_its_distribution(site: Site, word: str) -> None:
    site.driver("micro-quic-tunnel", "tunnel", "quic")
    assert qualified(site.catalog(), word) == ["tunnel:quic"]


def test_a_name_with_an_underscore_is_found_under_it(site: Site) -> None:
    site.driver("acme-wire", "tunnel", "wire_guard")
    for word in ("wire_guard", "wire-guard", "tunnel:wire_guard", "acme_wire"):
        assert qualified(site.catalog(), word) == ["tunnel:wire_guard"]


def test_words_keep_their_order_and_count_once(site: Site) -> None:
    site.driver("a", "tunnel", "quic")
    site.driver("b", "registry", "mdns")
    assert qualified(site.catalog(), "mdns", "quic", "registry:mdns") == ["registry:mdns", "tunnel:quic"]


def test_a_word_of_two_roles_is_ambiguous_until_it_is_qualified(site: Site) -> None:
    site.install("micro-redis", {"micro.registry": {"redis": "r"}, "micro.broker": {"redis": "r"}})
    catalog = site.catalog()
    for word in ("redis", "micro-redis"):
        with pytest.raises(PluginAmbiguous, match="could mean several") as caught:
            catalog.select([word])
        assert caught.value.hint == "say which: broker:redis or registry:redis"
    assert qualified(catalog, "registry:redis") == ["registry:redis"]
    assert qualified(catalog, "redis", blocked=("broker:redis",)) == ["registry:redis"]


def test_two_distributions_that_claim_one_name_are_both_named(site: Site) -> None:
    site.driver("acme-redis", "registry", "redis")
    site.driver("micro-redis-registry", "registry", "redis")
    catalog = site.catalog()
    assert [{a.distribution, b.distribution} for a, b in catalog.conflicts()] == [
        {"acme-redis", "micro-redis-registry"}
    ]
    with pytest.raises(PluginAmbiguous) as caught:
        catalog.select(["redis"])
    assert caught.value.detail == "registry:redis is claimed by acme-redis 1.2.3 and micro-redis-registry 1.2.3"
    assert "uninstall all but one" in caught.value.hint
    # Their distributions tell them apart.
    (mine,) = catalog.select(["micro-redis-registry"])
    assert catalog.select(["redis"], blocked=["acme-redis"]) == [mine]


@pytest.mark.parametrize(
    ("word", "distribution"),
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
def test_a_known_plugin_that_is_absent_comes_with_its_install_line(site: Site, word: str, distribution: str) -> None:
    with pytest.raises(PluginMissing, match="is not installed") as caught:
        site.catalog().select([word])
    assert caught.value.hint == f"pip install {distribution}"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("etdc", "did you mean 'etcd'?"),
        ("quik", "did you mean 'quic'?"),
        ("regisry:etcd", "did you mean 'registry:etcd'?"),
        ("broker:etcd", "did you mean 'registry:etcd'?"),
        ("tunnel:mdns", "did you mean 'registry:mdns'?"),
        ("zzzzzzzz", "micro plugin list --all"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(site: Site, word: str, hint: str) -> None:
    site.driver("acme-store", "registry", "etcd")
    with pytest.raises(PluginMissing, match="there is no plugin") as caught:
        site.catalog().select([word])
    assert caught.value.hint == hint


def test_a_blocked_plugin_is_left_out_even_if_it_is_not_installed(site: Site) -> None:
    site.driver("micro-quic-tunnel", "tunnel", "quic")
    assert qualified(site.catalog(), "quic", "redis", blocked=("quic_tunnel", "redis")) == []


def test_blocks_are_read_from_options_and_nothing_else_is() -> None:
    assert blocked_names(["no:quic", "no:registry:redis"]) == ["quic", "registry:redis"]
    for wrong in ("quic", "no:"):
        with pytest.raises(ConfigError, match="not understood") as caught:
            blocked_names([wrong])
        assert "no:NAME" in caught.value.hint


def test_of_two_versions_of_a_distribution_the_first_on_the_path_counts(site: Site) -> None:
    site.driver("micro-quic-tunnel", "tunnel", "quic")
    site.install("micro-quic-tunnel", {"micro.tunnel": {"quic": "old"}}, version="0.9.0")
    assert len(site.catalog().entries) == 1


def damage(site: Site) -> None:
    info = site.path / "damaged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(b"[micro.tunnel]\nquic = \xff\xfe\n")


def test_damaged_metadata_is_named_and_disturbs_nobody_else(site: Site) -> None:
    site.driver("acme-quic", "tunnel", "quic")
    damage(site)
    catalog = site.catalog()
    assert qualified(catalog, "quic") == ["tunnel:quic"]
    (sentence,) = catalog.unreadable
    assert "damaged-1.0.dist-info" in sentence
    assert "UnicodeDecodeError" in sentence


def test_damaged_metadata_is_an_error_where_plugins_are_strict(site: Site) -> None:
    damage(site)
    with pytest.raises(PluginBroken, match="cannot be read"):
        site.catalog({"MICRO_STRICT_PLUGINS": "1"})


def test_a_distribution_without_a_name_is_called_after_its_directory(site: Site) -> None:
    info = site.path / "nameless-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[micro.tunnel]\nx = nameless")
    (entry,) = site.catalog().entries
    assert (entry.distribution, entry.qualified) == ("nameless", "tunnel:x")


def test_discovery_takes_every_installed_distribution_by_default(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.driver("acme-quic", "tunnel", "acme")
    assert "tunnel:acme" in {entry.qualified for entry in Catalog.discover({}).entries}
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(()))
    assert Catalog.discover({}).entries == ()
