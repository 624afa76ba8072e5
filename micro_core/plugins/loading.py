"""Import one plugin and judge it: the right hooks, the right contract, a usable description. Else PluginBroken."""

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
"""With which a cross-cutting plugin describes what it builds, as a driver's plugin does with the hook of its role."""

MAX_REASON_CHARS = 400
"""Longest foreign text quoted: the message of a stranger's exception may be a whole document."""


def load_driver(entry: Entry, role: Role) -> Driver[Any]:
    """The description of the driver of `role`. Raises PluginBroken for whatever is wrong with the plugin."""
    plugin = _import(entry)
    driver = _described(entry, _registered(entry, plugin), role.hook)
    if driver is None:
        raise _is_broken(entry, _no_hook(entry, plugin, role.hook))
    return driver


class LoadedHooks(NamedTuple):
    """A cross-cutting plugin: its module (or object), and the description of what it builds, if it has one."""

    plugin: object
    driver: Driver[Any] | None


def load_hooks(entry: Entry) -> LoadedHooks:
    """A cross-cutting plugin, its hooks checked. Raises PluginBroken."""
    plugin = _import(entry)
    return LoadedHooks(plugin, _described(entry, _registered(entry, plugin), DESCRIBING_HOOK))


def check_hooks(entry: Entry, built: object) -> object:
    """Return what a cross-cutting plugin built, or raise PluginBroken where its hooks are not those of the contract."""
    _registered(entry, built)
    return built


def hooks_of(entry: Entry, plugin: object) -> list[str]:
    """The hooks that `plugin` implements, sorted."""
    manager = _registered(entry, plugin)
    return sorted(caller.name for caller in manager.get_hookcallers(plugin) or ())


def _described(entry: Entry, manager: pluggy.PluginManager, hook: str) -> Driver[Any] | None:
    """What the plugin says of itself with `hook`; None when it does not implement it."""
    implementations = getattr(manager.hook, hook).get_hookimpls()
    if not implementations:
        return None
    try:
        driver = implementations[0].function()
    except Exception as error:
        raise _is_broken(entry, f"{hook} raised {_quoted(error)}") from error
    return _checked(entry, driver)


def _import(entry: Entry) -> object:
    name, _, attribute = entry.module.partition(":")
    try:
        found: object = importlib.import_module(name.strip())
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part.strip())
    except (Exception, SystemExit) as error:
        # A plugin may raise anything while it is imported, SyntaxError and sys.exit() included.
        raise _is_broken(
            entry, f"importing {entry.module} raised {_quoted(error)}", _fix_import(entry, error)
        ) from error
    return found


def _fix_import(entry: Entry, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if entry.module.partition(":")[0].split(".")[0] == error.name.split(".")[0]:
            return f"its files are gone: pip install --force-reinstall {entry.distribution}, or pip uninstall it"
        return f"it needs the module {error.name}: pip install --upgrade {entry.distribution}, or install that module"
    return _fix(entry)


def _registered(entry: Entry, plugin: object) -> pluggy.PluginManager:
    """A manager of this plugin alone, its hooks checked against the contract's."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=entry.qualified)
    except Exception as error:
        # Mostly arguments that the hook has not; but looking at a stranger's attributes may raise anything.
        raise _is_broken(entry, _quoted(error)) from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise _is_broken(entry, _unknown_hook(entry, manager)) from error
    return manager


def _unknown_hook(entry: Entry, manager: pluggy.PluginManager) -> str:
    callers = [caller for name, caller in vars(manager.hook).items() if not name.startswith("_")]
    real = [caller.name for caller in callers if caller.has_spec()]
    for caller in callers:
        for implementation in caller.get_hookimpls():
            if not caller.has_spec() and not implementation.optionalhook:
                near = difflib.get_close_matches(caller.name, real, n=1)
                function = getattr(implementation.function, "__name__", caller.name)
                suggestion = f"; did you mean {near[0]}?" if near else f"; hooks are {', '.join(sorted(real))}"
                return f"its function {function} in {entry.module} implements a hook that does not exist{suggestion}"
    return "it implements a hook that does not exist"


def _no_hook(entry: Entry, plugin: object, hook: str) -> str:
    if callable(getattr(plugin, hook, None)):
        return f"its function {hook} in {entry.module} is not marked with @hookimpl"
    return f"{entry.module} has no hook {hook}, which the group {entry.group} demands"


def _checked(entry: Entry, driver: object) -> Driver[Any]:
    if not isinstance(driver, Driver):
        raise _is_broken(entry, f"its hook returned a {type(driver).__name__}, not a Driver")
    if driver.name != entry.name:
        raise _is_broken(entry, f"its driver calls itself {driver.name!r}, its entry point {entry.name!r}")
    _check_contract(entry, driver)
    if not isinstance(driver.options, type) or not dataclasses.is_dataclass(driver.options):
        raise _is_broken(entry, f"its options are {driver.options!r:.80}, not a dataclass")
    try:
        # Options are made from their annotations, and without any argument when nothing is said.
        typing.get_type_hints(driver.options)
        driver.options()
    except Exception as error:
        raise _is_broken(entry, f"its options {driver.options.__name__} raised {_quoted(error)}") from error
    if not callable(driver.create):
        raise _is_broken(entry, "its driver's create is not a function")
    return driver


def _check_contract(entry: Entry, driver: Driver[Any]) -> None:
    try:
        least, below = driver.contract
        is_old, is_new = not least <= CONTRACT_VERSION, not below > CONTRACT_VERSION
        wanted = f"{'.'.join(map(str, least))} up to, not including, {'.'.join(map(str, below))}"
    except (TypeError, ValueError) as error:
        raise _is_broken(entry, f"its contract is {driver.contract!r:.80}, not ((1, 0), (2, 0))") from error
    if is_old or is_new:
        have = ".".join(map(str, CONTRACT_VERSION))
        raise PluginBroken(
            f"plugin {entry.qualified} is made for contract {wanted}, and this is contract {have}",
            at=_place(entry),
            hint=f"pip install --upgrade {CORE_DISTRIBUTION if is_old else entry.distribution}",
        )


def _is_broken(entry: Entry, reason: str, fix: str = "") -> PluginBroken:
    detail = f"plugin {entry.qualified} is broken: {reason}"
    return PluginBroken(detail, at=_place(entry), hint=fix or _fix(entry))


def _fix(entry: Entry) -> str:
    if entry.is_builtin:
        return f"pip install --force-reinstall {entry.distribution}"
    return f"pip install --upgrade {entry.distribution}, or pip uninstall {entry.distribution}"


def _place(entry: Entry) -> str:
    return f"{entry.distribution} {entry.version} ({entry.group})"


def _quoted(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_REASON_CHARS else f"{text[:MAX_REASON_CHARS]}..."
