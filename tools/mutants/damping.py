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
        "self._costs_changed(self.link_damper.advance(now), now, effects)",
        "self.link_damper.advance(now)",
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
        "a first loss of a link holds it",
        "link_damping.py",
        "return min(hold_s, self.max_hold_s)",
        "return min(hold_s, self.max_hold_s) if penalty > self.loss else 0.0",
    ),
    Mutant(
        "each further loss holds a link for twice as long",
        "link_damping.py",
        "2.0 ** (penalty / self.loss - 1.0)",
        "1.0",
    ),
    Mutant(
        "holds of links end at different times",
        "link_damping.py",
        "self._random.uniform(1.0, 1.0 + policy.spread)",
        "1.0",
    ),
    Mutant("a stall is a loss", "link_damping.py", "or now - since < self.policy.stall_s", "or since"),
    Mutant("a short silence is not a stall", "link_damping.py", "or now - since < self.policy.stall_s", ""),
    Mutant(
        "a stall counts less than a loss",
        "link_damping.py",
        "self._peers.lost(peer, now, self.policy.stall)",
        "self._peers.lost(peer, now, self.policy.loss)",
    ),
    Mutant(
        "a given up link has not stalled",
        "engine.py",
        "        if not event.is_closing:\n            stalled",
        "        if True:\n            stalled",
    ),
    Mutant(
        "a stall changes the cost of the link",
        "engine.py",
        "self._costs_changed(stalled, now, effects)",
        "pass",
    ),
    Mutant(
        "a line that failed damps links to other nodes of the site",
        "link_damping.py",
        "or self._sites.is_damped(self._site(peer), now)",
        "",
    ),
    Mutant(
        "the loss of a node does not count for the line",
        "link_damping.py",
        "if not site or any(self._links[one].suspect_since is None for one in siblings):",
        "if not site:",
    ),
    Mutant(
        "suspect links do not show that the line works",
        "link_damping.py",
        "if not site or any(self._links[one].suspect_since is None for one in siblings):",
        "if not site or siblings:",
    ),
    Mutant(
        "links that are lost together count once for the line",
        "link_damping.py",
        "if history is None or now - history.at > SAME_FAULT_S:",
        "if True:",
    ),
    Mutant(
        "the hold of a line begins when it carries a link again",
        "link_damping.py",
        "        elif not siblings:\n            history.up_at = None\n",
        "",
    ),
    Mutant(
        "the links of the own site share no line",
        "link_damping.py",
        'frozenset(("", DEFAULT_SITE, own_site))',
        'frozenset(("", DEFAULT_SITE))',
    ),
    Mutant(
        "the links to unnamed sites share no line",
        "link_damping.py",
        'frozenset(("", DEFAULT_SITE, own_site))',
        'frozenset(("", own_site))',
    ),
    Mutant(
        "a line that failed changes the cost of its other links",
        "engine.py",
        "self._costs_changed(others, now, effects)",
        "pass",
    ),
    Mutant(
        "all links of a line are used again when its hold ends",
        "link_damping.py",
        'released |= dict.fromkeys(self._siblings("", site))',
        "pass",
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
        "min(policy.ceiling, self.decayed(history, now) + penalty)",
        "self.decayed(history, now) + penalty",
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
        "max(history.hold_s, policy.hold_after(history.penalty, spread))",
        "policy.hold_after(history.penalty, spread)",
    ),
    Mutant(
        "a hold begins again when the link was lost meanwhile",
        "link_damping.py",
        "        history.up_at = None\n\n    def closed",
        "\n    def closed",
    ),
    Mutant(
        "the histories of links are bounded",
        "link_damping.py",
        "if len(self) < self.policy.max_peers:",
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
        (
            "tests/routing/test_engine_lines.py",
            "tests/routing/test_engine_offers.py",
            "tests/routing/test_engine_site.py",
        ),
        ("tests/routing",),
    ),
    mutants=MUTANTS,
)
