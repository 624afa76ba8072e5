"""Tests of loading plugins, and of the errors about plugins that cannot be loaded."""

from __future__ import annotations

from typing import Any

import pytest

from micro_core.contract.errors import PluginBroken
from micro_core.plugins import Catalog, Entry, PluginWarning

Site = Any  # the class of the fixture is in conftest, which cannot be imported

HEAD = "from dataclasses import dataclass\nfrom micro_core.contract import Driver, NoOptions, hookimpl, option\n"


def hook_that_returns(expression: str, before: str = "") -> str:
    return f"{HEAD}{before}\n@hookimpl\ndef micro_tunnel():\n    return {expression}\n"


def driver(**changes: str) -> str:
    arguments = {"name": "'x'", "summary": "''", "options": "NoOptions", "create": "lambda options, context: None"}
    return "Driver(" + ", ".join(f"{key}={value}" for key, value in {**arguments, **changes}.items()) + ")"


BROKEN = {
    "raises on import": ("raise RuntimeError('failed')", "raised RuntimeError: failed"),
    "exits on import": ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    "syntax error": ("def micro_tunnel(:\n", "raised SyntaxError"),
    "a dependency is missing": ("import not_installed_at_all", "No module named 'not_installed_at_all'"),
    "no hook": (HEAD, "has no hook micro_tunnel, which the group micro.tunnel requires"),
    "hook of another role": (f"{HEAD}@hookimpl\ndef micro_table(): ...", "has no hook micro_tunnel"),
    "hook without hookimpl": (f"{HEAD}def micro_tunnel(): ...", "function micro_tunnel in {module} is not marked"),
    "typo in the hook": (
        f"{HEAD}@hookimpl\ndef micro_tunel(): ...",
        "function micro_tunel in {module} implements a hook that does not exist; did you mean micro_tunnel?",
    ),
    "unknown hook": (
        f"{HEAD}@hookimpl\ndef zzzz(): ...",
        "function zzzz in {module} implements a hook that does not exist; the hooks are micro_broker",
    ),
    "unknown argument of the hook": (f"{HEAD}@hookimpl\ndef micro_tunnel(port): ...", "'port'"),
    "hook raises": (hook_that_returns("1 / 0"), "micro_tunnel raised ZeroDivisionError"),
    "wrong return": (hook_that_returns("'quic'"), "returned a str, not a Driver"),
    "returns nothing": (hook_that_returns("None"), "returned a NoneType, not a Driver"),
    "different name": (hook_that_returns(driver(name="'y'")), "its driver is named 'y', but its entry point 'x'"),
    "contract is not a range": (hook_that_returns(driver(contract="(1, 0)")), "its contract is (1, 0), not"),
    "options are not a dataclass": (hook_that_returns(driver(options="dict")), "not a dataclass"),
    "options without default": (
        hook_that_returns(driver(options="O"), "@dataclass\nclass O:\n    port: int\n"),
        "its options O raised TypeError",
    ),
    "options of unknown type": (
        hook_that_returns(driver(options="O"), "@dataclass\nclass O:\n    port: 'Nowhere' = 1\n"),
        "its options O raised NameError",
    ),
    "create is not callable": (hook_that_returns(driver(create="1")), "create of its driver is not callable"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_is_recorded_with_reason_and_fix(site: Site, case: str) -> None:
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
    (broken,) = catalog.broken
    assert (broken.entry, broken.reason, broken.fix) == (entry, caught.value.detail, caught.value.hint)
    assert broken.cause is caught.value.__cause__
    with pytest.raises(PluginBroken):
        catalog.load(entry)
    assert len(catalog.broken) == 1, "a broken plugin is recorded once"


@pytest.mark.parametrize(
    ("contract", "required", "upgrade"),
    [
        ("((2, 0), (3, 0))", ">=2.0,<3.0", "micro-network"),
        ("((1, 7), (2, 0))", ">=1.7,<2.0", "micro-network"),
        ("((0, 1), (1, 0))", ">=0.1,<1.0", "acme-x"),
    ],
)
def test_error_of_an_unsupported_contract_contains_the_upgrade_command(
    site: Site, contract: str, required: str, upgrade: str
) -> None:
    site.driver("acme-x", "tunnel", "x", hook_that_returns(driver(contract=contract)))
    catalog = site.catalog()
    with pytest.raises(PluginBroken) as caught:
        catalog.load(catalog.find("x"))
    assert (
        caught.value.detail == f"plugin tunnel:x requires contract {required}, but this version provides contract 1.0"
    )
    assert caught.value.hint == f"pip install --upgrade {upgrade}"


def test_fix_of_a_stale_plugin_differs_from_that_of_a_missing_dependency(site: Site) -> None:
    site.install("stale", {"micro.tunnel": {"old": "no_such_module_here"}})
    site.driver("needy", "tunnel", "x", "import not_installed_at_all")
    found = {item.entry.distribution: item.fix for item in site.catalog().check()}
    assert "its files are missing" in found["stale"]
    assert "pip uninstall" in found["stale"]
    assert found["needy"].startswith("it requires the module not_installed_at_all")


def test_long_message_of_a_plugin_is_shortened(site: Site) -> None:
    site.driver("acme-x", "tunnel", "x", "raise RuntimeError('no ' * 100_000)")
    (broken,) = site.catalog().check()
    assert len(broken.reason) < 600
    assert "\n" not in broken.reason


def test_valid_plugin_is_loaded_once(site: Site) -> None:
    site.driver("acme-x", "tunnel", "x")
    catalog = site.catalog()
    entry = catalog.find("x")
    assert catalog.load(entry) is catalog.load(entry)
    assert catalog.load(entry).name == "x"
    assert catalog.broken == []


def test_entry_point_can_refer_to_an_object_of_a_module(site: Site) -> None:
    source = f"{HEAD}class Plugin:\n    @hookimpl\n    def micro_tunnel(self):\n        return {driver()}\nplugin = Plugin()\n"
    site.install("acme-x", {"micro.tunnel": {"x": "test_acme_object:plugin [extra]"}}, {"test_acme_object": source})
    catalog = site.catalog()
    assert catalog.load(catalog.find("x")).name == "x"


def test_optional_hook_of_a_later_contract_is_accepted(site: Site) -> None:
    later = "@hookimpl(optionalhook=True)\ndef micro_later(): ...\n"
    site.driver("acme-x", "tunnel", "x", hook_that_returns(driver(), later))
    catalog = site.catalog()
    assert catalog.load(catalog.find("x")).name == "x"


def test_check_returns_exactly_the_broken_plugins(site: Site) -> None:
    site.driver("good", "tunnel", "good")
    site.driver("bad", "registry", "bad", "1 / 0")
    site.install("hooks", {"micro.hooks": {"worse": "test_worse_hooks"}}, {"test_worse_hooks": "1 / 0"})
    assert {item.entry.distribution for item in site.catalog().check()} == {"bad", "hooks"}


def test_built_in_drivers_can_be_loaded() -> None:
    catalog = Catalog([entry for entry in Catalog.discover({}).entries if entry.is_builtin])
    assert catalog.check() == []


# ------------------------------------------------------------------------------- hooks

HOOKS = "from micro_core.contract import hookimpl\n@hookimpl\ndef {hook}({arguments}): return []\n"


def install_hooks(site: Site, name: str, source: str) -> None:
    module = f"test_hooks_{name}"
    site.install(f"acme-{name}", {"micro.hooks": {name: module}}, {module: source})


def test_installed_hooks_are_loaded_for_their_commands_unless_blocked(site: Site) -> None:
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
def test_broken_hooks_are_left_out_with_a_warning_and_others_are_loaded(site: Site, source: str, reason: str) -> None:
    install_hooks(site, "bad", source)
    install_hooks(site, "good", HOOKS.format(hook="micro_interceptors", arguments="side"))
    catalog = site.catalog()
    with pytest.warns(PluginWarning, match="hooks:bad is broken") as warned:
        assert len(catalog.load_hooks()) == 1
    assert reason in str(warned[0].message)
    assert [item.entry.name for item in catalog.broken] == ["bad"]


@pytest.mark.parametrize(("value", "is_strict"), [("1", True), ("yes", True), ("0", False), ("", False), ("no", False)])
def test_strict_mode_turns_the_warning_into_an_error(site: Site, value: str, *, is_strict: bool) -> None:
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


def test_hooks_can_have_a_description_with_options(site: Site) -> None:
    install_hooks(site, "trace", DESCRIBED)
    install_hooks(site, "plain", HOOKS.format(hook="micro_interceptors", arguments="side"))
    catalog = site.catalog()
    driver = catalog.describe(catalog.find("trace"))
    assert driver is not None
    assert (driver.summary, driver.options().rate) == ("Traces.", 1.0)
    assert catalog.describe(catalog.find("plain")) is None


def test_description_of_hooks_is_checked_like_that_of_a_driver(site: Site) -> None:
    install_hooks(site, "trace", DESCRIBED.replace('name="trace"', 'name="other"'))
    assert "is named 'other'" in site.catalog().check()[0].reason


def test_loading_hooks_as_a_driver_raises_plugin_broken(site: Site) -> None:
    install_hooks(site, "trace", HOOKS.format(hook="micro_interceptors", arguments="side"))
    catalog = site.catalog()
    with pytest.raises(PluginBroken, match="hooks:trace is not a driver"):
        catalog.load(catalog.find("trace"))
    assert catalog.broken == []


def test_fix_of_a_broken_built_in_driver_is_to_reinstall_core() -> None:
    from micro_core.contract import Role

    entry = Entry(role=Role.TUNNEL, name="x", distribution="micro-network", version="1", module="asyncio:nothing")
    with pytest.raises(PluginBroken) as caught:
        Catalog([entry]).load(entry)
    assert caught.value.hint == "pip install --force-reinstall micro-network"
