"""Policies: which routes are advertised to a neighbour and which are accepted from it, by its name or site. Pure.

    site=us: export=local services=go.micro.srv.*,!go.micro.srv.internal cost=5000
    name=edge-*: export=best import=none
    *: export=all

The first rule that matches a neighbour applies. Without rules, all routes are advertised and accepted. `services` and
`sites` restrict the advertised routes, `import-services` and `import-sites` the accepted ones. Their values are names or
patterns, and `!` excludes a pattern. `cost` is added to the cost of the link, in microseconds.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from micro_core.contract.errors import ConfigError

MAX_COST_US = 60_000_000
"""Maximum configured cost: one minute."""


class ExportScope(enum.Enum):
    """Which routes are advertised to a neighbour."""

    ALL = "all"
    """The best route to every service at every origin."""
    BEST = "best"
    """Only the route to the best origin of each service."""
    LOCAL = "local"
    """Only the services of this site: no traffic is forwarded for the neighbour."""
    NONE = "none"
    """No routes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The export and import rules for one neighbour."""

    export: ExportScope = ExportScope.ALL
    is_import_allowed: bool = True
    services: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    import_services: tuple[str, ...] = ()
    import_sites: tuple[str, ...] = ()
    cost_us: int = 0
    """Added to the cost of the link."""

    def permits_export(self, site: str, *, is_own: bool) -> bool:
        """Return whether routes to an origin on `site` may be advertised to the neighbour.

        `is_own` is True if this router is the origin.
        """
        if self.export is ExportScope.NONE or (self.export is ExportScope.LOCAL and not is_own):
            return False
        return _passes(site, self.sites)

    def permits_export_of(self, service: str) -> bool:
        """Return whether a service may be advertised. For `ExportScope.BEST`, the caller must compare the origins."""
        return _passes(service, self.services)

    def permits_import(self, site: str) -> bool:
        """Return whether routes to an origin on `site` may be accepted from the neighbour."""
        return self.is_import_allowed and _passes(site, self.import_sites)

    def permits_import_of(self, service: str) -> bool:
        """Return whether a service may be accepted from the neighbour."""
        return _passes(service, self.import_services)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy, and patterns of the names and sites of the neighbours to which it applies."""

    name: str = "*"
    site: str = "*"
    policy: Policy

    def matches(self, name: str, site: str) -> bool:
        """Return whether the rule applies to a neighbour with this name and site."""
        return fnmatch.fnmatchcase(name, self.name) and fnmatch.fnmatchcase(site, self.site)


def policy_for(rules: Sequence[Rule], name: str, site: str) -> Policy:
    """Return the policy of the first rule that matches the neighbour, or the default policy."""
    return next((rule.policy for rule in rules if rule.matches(name, site)), Policy())


def parse(text: str) -> Rule:
    """Parse a rule of the setting `node.policies`, e.g. "site=us: export=local".

    Raises ConfigError if the text is not a valid rule.
    """
    selector_text, separator, policy_text = text.partition(":")
    if not separator:
        raise ConfigError(f"policy {text!r:.80} has no colon", hint="write for example 'site=us: export=local'")
    selectors = {} if selector_text.strip() == "*" else _assignments(selector_text, ("name", "site"), text)
    values = _assignments(
        policy_text, ("export", "import", "services", "sites", "import-services", "import-sites", "cost"), text
    )
    try:
        export = ExportScope(values.get("export", "all"))
    except ValueError:
        raise ConfigError(
            f"invalid export {values['export']!r:.40} in a policy: use all, best, local or none"
        ) from None
    if values.get("import", "all") not in ("all", "none"):
        raise ConfigError(f"invalid import {values['import']!r:.40} in a policy: use all or none")
    cost = values.get("cost", "0")
    if not cost.isascii() or not cost.isdigit() or int(cost) > MAX_COST_US:
        raise ConfigError(f"invalid cost {cost!r:.40} in a policy: use microseconds from 0 to {MAX_COST_US}")
    return Rule(
        name=selectors.get("name", "*"),
        site=selectors.get("site", "*"),
        policy=Policy(
            export=export,
            is_import_allowed=values.get("import", "all") == "all",
            services=_patterns(values.get("services", "")),
            sites=_patterns(values.get("sites", "")),
            import_services=_patterns(values.get("import-services", "")),
            import_sites=_patterns(values.get("import-sites", "")),
            cost_us=int(cost),
        ),
    )


def _assignments(text: str, known_keys: Sequence[str], rule: str) -> dict[str, str]:
    found = {}
    for assignment in text.split():
        key, separator, value = assignment.partition("=")
        if not separator or key not in known_keys or not value:
            raise ConfigError(
                f"invalid item {assignment!r:.60} in the policy {rule!r:.80}",
                hint=f"use KEY=VALUE with one of the keys {', '.join(known_keys)}",
            )
        found[key] = value
    return found


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern for pattern in text.split(",") if pattern)


def _passes(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether `name` matches an including pattern and no excluding one (`!`).

    If there are no including patterns, every name that is not excluded passes.
    """
    if not patterns:
        return True
    included = [pattern for pattern in patterns if not pattern.startswith("!")]
    if any(fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return not included or any(fnmatch.fnmatchcase(name, pattern) for pattern in included)
