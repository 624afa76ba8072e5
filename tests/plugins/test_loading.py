"""Loading plugins, and what is said of those that cannot be loaded."""

from __future__ import annotations

from typing import Any

import pytest

from micro_core.contract.errors import PluginBroken
from micro_core.plugins import Catalog, Entry, PluginWarning

Site = Any  # the fixture's class lives in conftest, which cannot be imported

HEAD = "from dataclasses import dataclass\nfrom micro_core.contract import Driver, NoOptions, hookimpl, option\n"


def returning(expression: str, before: str = "") -> str:
    return f"{HEAD}{before}\n@hookimpl\ndef micro_tunnel():\n    return {expression}\n"


def driver(**changes: str) -> str:
    parts = {"name": "'x'", "summary": "''", "options": "NoOptions", "create": "lambda options, context: None"}
    return "Driver(" + ", ".join(f"{key}={value}" for key, value in {**parts, **changes}.items()) + ")"


BROKEN = {
    "raises on import": ("raise RuntimeError('no luck')", "raised RuntimeError: no luck"),
    "exits on import": ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    "syntax error": ("def micro_tunnel(:\n", "raised SyntaxError"),
    "a dependency is missing": ("import not_installed_at_all", "No module named 'not_installed_at_all'"),
    "no hook": (HEAD, "has no hook micro_tunnel, which the group micro.tunnel demands"),
    "hook of another role": (f"{HEAD}@hookimpl\ndef micro_table(): ...", "has no hook micro_tunnel"),
    "hook without its mark": (f"{HEAD}def micro_tunnel(): ...", "function micro_tunnel in {module} is not marked"),
    "typo in the hook": (
        f"{HEAD}@hookimpl\ndef micro_tunel(): ...",
        "function micro_tunel in {module} implements a hook that does not exist; did you mean micro_tunnel?",
    ),
    "hook unlike any": (
        f"{HEAD}@hookimpl\ndef zzzz(): ...",
        "function zzzz in {module} implements a hook that does not exist; hooks are micro_broker",
    ),
    "argument that the hook has not": (f"{HEAD}@hookimpl\ndef micro_tunnel(port): ...", "'port'"),
    "hook raises": (returning("1 / 0"), "micro_tunnel raised ZeroDivisionError"),
    "wrong return": (returning("'quic'"), "returned a str, not a Driver"),
    "returns nothing": (returning("None"), "returned a NoneType, not a Driver"),
    "another name": (returning(driver(name="'y'")), "calls itself 'y', its entry point 'x'"),
    "contract is no range": (returning(driver(contract="(1, 0)")), "its contract is (1, 0), not"),
    "options are no dataclass": (returning(driver(options="dict")), "not a dataclass"),
    "options without default": (
        returning(driver(options="O"), "@dataclass\nclass O:\n    port: int\n"),
        "its options O raised TypeError",
    ),
    "options of unknown type": (
        returning(driver(options="O"), "@dataclass\nclass O:\n    port: 'Nowhere' = 1\n"),
        "its options O raised NameError",
    ),
    "create is no function": (returning(driver(create="1")), "create is not a function"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_quarantined_with_the_reason_and_the_way_out(site: Site, case: str) -> None:
    source, reason = BROKEN[case]
    module = site.driver("acme-x", "tunnel", "x", source)
    catalog = site.catalog()
    (entry,) = catalog.entries
    with pytest.raises(PluginBroken) as caught:
        catalog.load(entry)
    assert caught.value.detail.startswith("plugin tunnel:x is broken: ")
    assert reason.replace("{module}", module) in caught.value.detail
    assert caught.value.at == "acme-x 1.2.3 (micro.tunnel)"
    assert "acme-x" in caught.value.hint
    (kept,) = catalog.broken
    assert (kept.entry, kept.reason, kept.fix) == (entry, caught.value.detail, caught.value.hint)
    assert kept.cause is caught.value.__cause__
    with pytest.raises(PluginBroken):
        catalog.load(entry)
    assert len(catalog.broken) == 1, "what is broken is kept once"


@pytest.mark.parametrize(
    ("contract", "wanted", "upgrade"),
    [
        ("((2, 0), (3, 0))", "2.0 up to, not including, 3.0", "micro-network"),
        ("((1, 7), (2, 0))", "1.7 up to, not including, 2.0", "micro-network"),
        ("((0, 1), (1, 0))", "0.1 up to, not including, 1.0", "acme-x"),
    ],
)
def test_another_contract_is_one_sentence_that_says_what_to_upgrade(
    site: Site, contract: str, wanted: str, upgrade: str
) -> None:
    site.driver("acme-x", "tunnel", "x", returning(driver(contract=contract)))
    catalog = site.catalog()
    with pytest.raises(PluginBroken) as caught:
        catalog.load(catalog.find("x"))
    assert caught.value.detail == f"plugin tunnel:x is made for contract {wanted}, and this is contract 1.0"
    assert caught.value.hint == f"pip install --upgrade {upgrade}"


def test_the_fix_tells_a_stale_plugin_from_a_missing_dependency(site: Site) -> None:
    site.install("stale", {"micro.tunnel": {"gone": "no_such_module_here"}})
    site.driver("needy", "tunnel", "x", "import not_installed_at_all")
    found = {item.entry.distribution: item.fix for item in site.catalog().check()}
    assert "its files are gone" in found["stale"]
    assert "pip uninstall" in found["stale"]
    assert found["needy"].startswith("it needs the module not_installed_at_all")


def test_a_long_foreign_message_is_cut(site: Site) -> None:
    site.driver("acme-x", "tunnel", "x", "raise RuntimeError('no ' * 100_000)")
    (kept,) = site.catalog().check()
    assert len(kept.reason) < 600
    assert "\n" not in kept.reason


def test_a_good_plugin_is_loaded_once(site: Site) -> None:
    site.driver("acme-x", "tunnel", "x")
    catalog = site.catalog()
    entry = catalog.find("x")
    assert catalog.load(entry) is catalog.load(entry)
    assert catalog.load(entry).name == "x"
    assert catalog.broken == []


def test_an_entry_point_may_name_an_object_of_a_module(site: Site) -> None:
    source = f"{HEAD}class Plugin:\n    @hookimpl\n    def micro_tunnel(self):\n        return {driver()}\nplugin = Plugin()\n"
    site.install("acme-x", {"micro.tunnel": {"x": "test_acme_object:plugin [extra]"}}, {"test_acme_object": source})
    catalog = site.catalog()
    assert catalog.load(catalog.find("x")).name == "x"


def test_an_optional_hook_of_a_later_contract_is_no_mistake(site: Site) -> None:
    later = "@hookimpl(optionalhook=True)\ndef micro_later(): ...\n"
    site.driver("acme-x", "tunnel", "x", returning(driver(), later))
    catalog = site.catalog()
    assert catalog.load(catalog.find("x")).name == "x"


def test_checking_finds_every_broken_plugin_and_only_those(site: Site) -> None:
    site.driver("good", "tunnel", "good")
    site.driver("bad", "registry", "bad", "1 / 0")
    site.install("hooks", {"micro.hooks": {"worse": "test_worse_hooks"}}, {"test_worse_hooks": "1 / 0"})
    assert {item.entry.distribution for item in site.catalog().check()} == {"bad", "hooks"}


def test_every_built_in_driver_can_be_loaded() -> None:
    catalog = Catalog([entry for entry in Catalog.discover({}).entries if entry.is_builtin])
    assert catalog.check() == []


# ------------------------------------------------------------------------------- hooks

HOOKS = "from micro_core.contract import hookimpl\n@hookimpl\ndef {hook}({arguments}): return []\n"


def install_hooks(site: Site, name: str, source: str) -> None:
    module = f"test_hooks_{name}"
    site.install(f"acme-{name}", {"micro.hooks": {name: module}}, {module: source})


def test_hooks_that_are_installed_are_loaded_for_their_commands_unless_blocked(site: Site) -> None:
    install_hooks(site, "trace", HOOKS.format(hook="micro_interceptors", arguments="side"))
    install_hooks(site, "noise", "raise RuntimeError('blocked, so never imported')")
    (plugin,) = site.catalog().load_hooks(blocked=["noise"])
    assert getattr(plugin, "__name__", "") == "test_hooks_trace"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        (HOOKS.format(hook="micro_intercepters", arguments=""), "did you mean micro_interceptors?"),
        (HOOKS.format(hook="micro_interceptors", arguments="sides"), "'sides'"),
    ],
)
def test_broken_hooks_are_left_out_with_a_warning_and_the_others_stay(site: Site, source: str, reason: str) -> None:
    install_hooks(site, "bad", source)
    install_hooks(site, "good", HOOKS.format(hook="micro_interceptors", arguments="side"))
    catalog = site.catalog()
    with pytest.warns(PluginWarning, match="hooks:bad is broken") as warned:
        assert len(catalog.load_hooks()) == 1
    assert reason in str(warned[0].message)
    assert [item.entry.name for item in catalog.broken] == ["bad"]


@pytest.mark.parametrize(("value", "is_strict"), [("1", True), ("yes", True), ("0", False), ("", False), ("no", False)])
def test_strict_plugins_turn_the_warning_into_an_error(site: Site, value: str, *, is_strict: bool) -> None:
    install_hooks(site, "bad", "1 / 0")
    catalog = site.catalog({"MICRO_STRICT_PLUGINS": value})
    with pytest.raises(PluginBroken) if is_strict else pytest.warns(PluginWarning):
        catalog.load_hooks()


DESCRIBED = f"""{HEAD}
@dataclass(frozen=True, kw_only=True)
class Options:
    rate: float = option(1.0, "How often.")

@hookimpl
def micro_hooks():
    return Driver(name="trace", summary="Traces.", options=Options, create=lambda options, context: None)
"""


def test_hooks_may_describe_what_they_build_as_a_driver_does(site: Site) -> None:
    install_hooks(site, "trace", DESCRIBED)
    install_hooks(site, "plain", HOOKS.format(hook="micro_interceptors", arguments="side"))
    catalog = site.catalog()
    driver = catalog.describe(catalog.find("trace"))
    assert driver is not None
    assert (driver.summary, driver.options().rate) == ("Traces.", 1.0)
    assert catalog.describe(catalog.find("plain")) is None


def test_what_hooks_describe_is_checked_as_a_driver_is(site: Site) -> None:
    install_hooks(site, "trace", DESCRIBED.replace('name="trace"', 'name="other"'))
    assert "calls itself 'other'" in site.catalog().check()[0].reason


def test_hooks_are_no_driver(site: Site) -> None:
    install_hooks(site, "trace", HOOKS.format(hook="micro_interceptors", arguments="side"))
    catalog = site.catalog()
    with pytest.raises(PluginBroken, match="hooks:trace is not a driver"):
        catalog.load(catalog.find("trace"))
    assert catalog.broken == []


def test_a_broken_built_in_driver_is_fixed_by_installing_again() -> None:
    from micro_core.contract import Role

    entry = Entry(role=Role.TUNNEL, name="x", distribution="micro-network", version="1", module="asyncio:nothing")
    with pytest.raises(PluginBroken) as caught:
        Catalog([entry]).load(entry)
    assert caught.value.hint == "pip install --force-reinstall micro-network"
