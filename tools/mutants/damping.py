"""The rules of damping: of services that flap, at their origin, and of links that flap."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant(
        "withdrawals are never suppressed",
        "origin.py",
        "offer = None if self.is_draining else offer_of(service, own.instances)\n        if offer is None:",
        "offer = None if self.is_draining else offer_of(service, own.instances)\n        if offer is None and not self.damper.may_announce(service, now):\n            return False\n        if offer is None:",
    ),
    Mutant(
        "announcements of flapping services are suppressed",
        "origin.py",
        "if not self.damper.may_announce(service, now):",
        "if False:",
    ),
    Mutant("losses are counted", "origin.py", "self.damper.record_loss(service, now)", "pass"),
    Mutant(
        "interest has a damping of its own",
        "damping.py",
        "return self.interest_policy if service.startswith(INTEREST_PREFIX) else self.policy",
        "return self.policy",
    ),
    Mutant(
        "flapping links are the last resort",
        "engine.py",
        "self._rib.costs[peer] = add(neighbour.cost.cost_us, self.link_damper.penalty_us(peer, now))\n        neighbour.expires_at",
        "self._rib.costs[peer] = neighbour.cost.cost_us\n        neighbour.expires_at",
    ),
    Mutant(
        "a damped link is used again",
        "engine.py",
        "            if peer in self._neighbours:\n                self._cost_changed(self._neighbours[peer], now, effects)\n        for origin",
        "            pass\n        for origin",
    ),
    Mutant(
        "the penalty has a ceiling",
        "damping.py",
        "min(history.policy.ceiling, self._decayed(history, now) + amount)",
        "self._decayed(history, now) + amount",
    ),
    Mutant(
        "reuse is guaranteed",
        "damping.py",
        "return min(latest, history.at + history.policy.half_life_s * math.log2(history.penalty / history.policy.reuse))",
        "return history.at + 1e9",
    ),
    Mutant("penalties decay", "damping.py", "history.penalty * 2.0 **", "history.penalty * 1.0 **"),
    Mutant("a dry run suppresses nothing", "damping.py", "return history.policy.dry_run", "return False"),
    Mutant(
        "a reused service is advertised",
        "engine.py",
        'self._history.record(now, service, "suppression ended")\n            self._origin.reuse(service, now)',
        'self._history.record(now, service, "suppression ended")',
    ),
    Mutant(
        "a first loss of a link holds nothing", "link_damping.py", "if penalty < self.hold_above:", "if penalty < 0:"
    ),
    Mutant(
        "each further loss holds a link for twice as long",
        "link_damping.py",
        "2.0 ** ((penalty - self.hold_above) / self.loss)",
        "1.0",
    ),
    Mutant("the hold of a link is bounded", "link_damping.py", "return min(hold_s, self.max_hold_s)", "return hold_s"),
    Mutant("a graceful close is not a loss", "link_damping.py", "        if is_graceful:\n", "        if False:\n"),
    Mutant(
        "a graceful close is recognized",
        "engine.py",
        "self.link_damper.link_lost(peer, now, is_graceful=is_graceful)",
        "self.link_damper.link_lost(peer, now)",
    ),
    Mutant(
        "the penalty of a link has a ceiling",
        "link_damping.py",
        "min(self.policy.ceiling, self._decayed(history, now) + self.policy.loss)",
        "self._decayed(history, now) + self.policy.loss",
    ),
    Mutant(
        "the penalty of a link decays",
        "link_damping.py",
        "history.penalty * 0.5 **",
        "history.penalty * 1.0 **",
    ),
    Mutant(
        "a hold is not shortened by a later loss",
        "link_damping.py",
        "max(history.hold_s, self.policy.hold_s(history.penalty))",
        "self.policy.hold_s(history.penalty)",
    ),
    Mutant(
        "a hold begins again when the link was lost meanwhile",
        "link_damping.py",
        "        history.up_at = None\n\n    def link_up",
        "\n    def link_up",
    ),
    Mutant(
        "the histories of links are bounded",
        "link_damping.py",
        "if len(self._histories) < self.policy.max_peers:",
        "if True:",
    ),
    Mutant(
        "a link that is given up is the last resort",
        "engine.py",
        "damper.policy.last_resort_us if neighbour.is_closing else ",
        "",
    ),
    Mutant(
        "a changed cost does not end the damping of a link",
        "engine.py",
        "if neighbour.is_closing else damper.penalty_us(peer, now)",
        "if neighbour.is_closing else 0",
    ),
)

AREA = Area(
    name="damping",
    folder="micro_core/routing",
    tests=(
        ("tests/routing/test_damping.py", "tests/routing/test_link_damping.py"),
        ("tests/routing/test_engine_offers.py", "tests/routing/test_engine_site.py"),
        ("tests/routing",),
    ),
    mutants=MUTANTS,
)
