"""Imports a plugin and checks it: its hooks, the contract version that it supports, and its description."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from typing import Any, NamedTuple

import pluggy

from micro_core.contract import hookspecs
from micro_core.contract.driver import CONTRACT_VERSION, Driver, Role
from micro_core.contract.errors import PluginBroken
from micro_core.plugins.entries import CORE_DISTRIBUTION, Entry

DESCRIBING_HOOK = "micro_hooks"
"""The hook with which a cross-cutting plugin describes its options, like the hook of a role for a driver."""

MAX_REASON_CHARS = 400
"""Maximum length of the message of an exception in a reason. Messages of plugins can have any length."""


def load_driver(entry: Entry, role: Role) -> Driver[Any]:
    """Import a plugin and return the description of its driver for `role`.

    Raises:
        PluginBroken: The plugin cannot be imported or does not follow the contract.
    """
    plugin = _import(entry)
    driver = _description(entry, _manager(entry, plugin), role.hook)
    if driver is None:
        raise _error(entry, _no_hook(entry, plugin, role.hook))
    return driver


class LoadedHooks(NamedTuple):
    """A cross-cutting plugin: its module or object, and its description if it has options."""

    plugin: object
    driver: Driver[Any] | None


def load_hooks(entry: Entry) -> LoadedHooks:
    """Import a cross-cutting plugin and check its hooks.

    Raises:
        PluginBroken: The plugin cannot be imported or does not follow the contract.
    """
    plugin = _import(entry)
    return LoadedHooks(plugin, _description(entry, _manager(entry, plugin), DESCRIBING_HOOK))


def check_hooks(entry: Entry, built: object) -> object:
    """Check the hooks of the object that a cross-cutting plugin created, and return it.

    Raises:
        PluginBroken: A hook does not exist, or has arguments that the contract does not define.
    """
    _manager(entry, built)
    return built


def hooks_of(entry: Entry, plugin: object) -> list[str]:
    """Return the names of the hooks that `plugin` implements, sorted.

    Raises:
        PluginBroken: A hook does not exist, or has arguments that the contract does not define.
    """
    manager = _manager(entry, plugin)
    return sorted(caller.name for caller in manager.get_hookcallers(plugin) or ())


def _description(entry: Entry, manager: pluggy.PluginManager, hook: str) -> Driver[Any] | None:
    """Return the description that `hook` of the plugin returns; None if the plugin does not implement the hook."""
    implementations = getattr(manager.hook, hook).get_hookimpls()
    if not implementations:
        return None
    try:
        driver = implementations[0].function()
    except Exception as error:
        raise _error(entry, f"{hook} raised {_quoted(error)}") from error
    return _check_driver(entry, driver)


def _import(entry: Entry) -> object:
    module, _, attribute = entry.module.partition(":")
    try:
        found: object = importlib.import_module(module.strip())
        for name in attribute.split(".") if attribute else ():
            found = getattr(found, name.strip())
    except (Exception, SystemExit) as error:
        # The import can raise any exception, including SyntaxError, and can call sys.exit().
        raise _error(entry, f"importing {entry.module} raised {_quoted(error)}", _fix_import(entry, error)) from error
    return found


def _fix_import(entry: Entry, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if entry.module.partition(":")[0].split(".")[0] == error.name.split(".")[0]:
            return f"its files are missing: pip install --force-reinstall {entry.distribution}, or pip uninstall it"
        return (
            f"it requires the module {error.name}: pip install --upgrade {entry.distribution}, or install that module"
        )
    return _reinstall(entry)


def _manager(entry: Entry, plugin: object) -> pluggy.PluginManager:
    """Return a plugin manager with this plugin only, after a check of its hooks against those of the contract."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=entry.qualified)
    except Exception as error:
        # Usually an unknown argument of a hook. Reading attributes of the plugin can raise any exception, too.
        raise _error(entry, _quoted(error)) from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise _error(entry, _unknown_hook(entry, manager)) from error
    return manager


def _unknown_hook(entry: Entry, manager: pluggy.PluginManager) -> str:
    callers = [caller for name, caller in vars(manager.hook).items() if not name.startswith("_")]
    existing = [caller.name for caller in callers if caller.has_spec()]
    for caller in callers:
        for implementation in caller.get_hookimpls():
            if not caller.has_spec() and not implementation.optionalhook:
                similar = difflib.get_close_matches(caller.name, existing, n=1)
                function = getattr(implementation.function, "__name__", caller.name)
                suggestion = (
                    f"did you mean {similar[0]}?" if similar else f"the hooks are {', '.join(sorted(existing))}"
                )
                return f"function {function} in {entry.module} implements a hook that does not exist; {suggestion}"
    return "it implements a hook that does not exist"


def _no_hook(entry: Entry, plugin: object, hook: str) -> str:
    if callable(getattr(plugin, hook, None)):
        return f"function {hook} in {entry.module} is not marked with @hookimpl"
    return f"{entry.module} has no hook {hook}, which the group {entry.group} requires"


def _check_driver(entry: Entry, driver: object) -> Driver[Any]:
    if not isinstance(driver, Driver):
        raise _error(entry, f"its hook returned a {type(driver).__name__}, not a Driver")
    if driver.name != entry.name:
        raise _error(entry, f"its driver is named {driver.name!r}, but its entry point {entry.name!r}")
    _check_contract(entry, driver)
    if not isinstance(driver.options, type) or not dataclasses.is_dataclass(driver.options):
        raise _error(entry, f"its options are {driver.options!r:.80}, not a dataclass")
    try:
        # Core converts options by their annotations, and creates them without arguments if no option is set.
        typing.get_type_hints(driver.options)
        driver.options()
    except Exception as error:
        raise _error(entry, f"its options {driver.options.__name__} raised {_quoted(error)}") from error
    if not callable(driver.create):
        raise _error(entry, "create of its driver is not callable")
    return driver


def _check_contract(entry: Entry, driver: Driver[Any]) -> None:
    try:
        minimum, limit = driver.contract
        is_core_too_old, is_core_too_new = not minimum <= CONTRACT_VERSION, not limit > CONTRACT_VERSION
        required = f">={'.'.join(map(str, minimum))},<{'.'.join(map(str, limit))}"
    except (TypeError, ValueError) as error:
        raise _error(entry, f"its contract is {driver.contract!r:.80}, not ((1, 0), (2, 0))") from error
    if is_core_too_old or is_core_too_new:
        provided = ".".join(map(str, CONTRACT_VERSION))
        raise PluginBroken(
            f"plugin {entry.qualified} requires contract {required}, but this version provides contract {provided}",
            at=_origin(entry),
            hint=f"pip install --upgrade {CORE_DISTRIBUTION if is_core_too_old else entry.distribution}",
        )


def _error(entry: Entry, reason: str, fix: str = "") -> PluginBroken:
    detail = f"plugin {entry.qualified} is broken: {reason}"
    return PluginBroken(detail, at=_origin(entry), hint=fix or _reinstall(entry))


def _reinstall(entry: Entry) -> str:
    if entry.is_builtin:
        return f"pip install --force-reinstall {entry.distribution}"
    return f"pip install --upgrade {entry.distribution}, or pip uninstall {entry.distribution}"


def _origin(entry: Entry) -> str:
    return f"{entry.distribution} {entry.version} ({entry.group})"


def _quoted(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_REASON_CHARS else f"{text[:MAX_REASON_CHARS]}..."
