"""What is told to a neighbour and believed of it: rules by the neighbour's name or site. Pure.

    site=us: export=local services=go.micro.srv.*,!go.micro.srv.internal cost=5000
    name=edge-*: export=best import=none
    *: export=all

The first rule that fits a neighbour counts; without any, everything is told and believed. `services` and `sites` restrict what is
told, `import-services` and `import-sites` what is believed: names or patterns, a `!` before what is left out. `cost` is added to
the link, in microseconds.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from micro_core.contract.errors import ConfigError
from micro_core.routing.events import Announce

MAX_COST_US = 60_000_000


class Export(enum.Enum):
    """How much is told."""

    ALL = "all"
    """The best way to every service at every origin."""
    BEST = "best"
    """Of each service only the best origin."""
    LOCAL = "local"
    """This site's own services: nobody travels through here."""
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one neighbour is told and believed."""

    export: Export = Export.ALL
    believes: bool = True
    services: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    import_services: tuple[str, ...] = ()
    import_sites: tuple[str, ...] = ()
    cost_us: int = 0

    def tells(self, announce: Announce, *, is_own: bool) -> bool:
        """Whether the neighbour may hear this; which of several origins is best is not asked here."""
        if self.export is Export.NONE or (self.export is Export.LOCAL and not is_own):
            return False
        return _passes(announce.service, self.services) and _passes(announce.site, self.sites)

    def takes(self, announce: Announce) -> bool:
        """Whether the neighbour is believed about this."""
        return (
            self.believes
            and _passes(announce.service, self.import_services)
            and _passes(announce.site, self.import_sites)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy, and whom it is for."""

    name: str = "*"
    site: str = "*"
    policy: Policy

    def fits(self, name: str, site: str) -> bool:
        return fnmatch.fnmatchcase(name, self.name) and fnmatch.fnmatchcase(site, self.site)


def policy_for(rules: Sequence[Rule], name: str, site: str) -> Policy:
    """The policy of the first rule that fits."""
    return next((rule.policy for rule in rules if rule.fits(name, site)), Policy())


def parse(text: str) -> Rule:
    """A rule as it is written in settings. Raises ConfigError."""
    whom, separator, what = text.partition(":")
    if not separator:
        raise ConfigError(f"the policy {text!r:.80} has no colon", hint="as in site=us: export=local")
    selectors = {} if whom.strip() == "*" else _words(whom, ("name", "site"), text)
    said = _words(what, ("export", "import", "services", "sites", "import-services", "import-sites", "cost"), text)
    try:
        export = Export(said.get("export", "all"))
    except ValueError:
        raise ConfigError(f"export: {said['export']!r:.40} is none of all, best, local, none") from None
    if said.get("import", "all") not in ("all", "none"):
        raise ConfigError(f"import: {said['import']!r:.40} is neither all nor none")
    cost = said.get("cost", "0")
    if not cost.isascii() or not cost.isdigit() or int(cost) > MAX_COST_US:
        raise ConfigError(f"cost: {cost!r:.40} is no number of microseconds up to {MAX_COST_US}")
    return Rule(
        name=selectors.get("name", "*"),
        site=selectors.get("site", "*"),
        policy=Policy(
            export=export,
            believes=said.get("import", "all") == "all",
            services=_patterns(said.get("services", "")),
            sites=_patterns(said.get("sites", "")),
            import_services=_patterns(said.get("import-services", "")),
            import_sites=_patterns(said.get("import-sites", "")),
            cost_us=int(cost),
        ),
    )


def _words(text: str, known: Sequence[str], rule: str) -> dict[str, str]:
    found = {}
    for word in text.split():
        key, separator, value = word.partition("=")
        if not separator or key not in known or not value:
            raise ConfigError(
                f"{word!r:.60} in the policy {rule!r:.80} is not understood", hint=f"one of {', '.join(known)}"
            )
        found[key] = value
    return found


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _passes(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether `name` fits one of the patterns and none of those with a `!`; where there are only such, all others pass."""
    if not patterns:
        return True
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    if any(fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
