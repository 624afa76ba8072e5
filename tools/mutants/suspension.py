"""The rules by which a process that did not run for seconds joins again: before it acts on what it knew earlier."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant(
        "a suspension is noticed",
        "lifecycle/loop_lag.py",
        "return silence_s if silence_s > SUSPENDED_AFTER_S else 0.0",
        "return 0.0",
    ),
    Mutant(
        "a busy event loop is not a suspension",
        "lifecycle/loop_lag.py",
        "silence_s > SUSPENDED_AFTER_S",
        "silence_s > 2 * TICK_S",
    ),
    Mutant(
        "a suspension of the whole system is noticed",
        "lifecycle/loop_watch.py",
        'getattr(clock, "elapsed", clock.now)',
        "clock.now",
    ),
    Mutant(
        "a suspension is reported once",
        "lifecycle/loop_watch.py",
        "        self.start()\n        self._resumed",
        "        self._resumed",
    ),
    Mutant(
        "received data of a suspended link is dropped",
        "tunnel/link.py",
        "        if self.error is not None or self._loop_watch.check():",
        "        if self.error is not None:",
    ),
    Mutant(
        "a resumed node opens no session on its former links",
        "tunnel/tunnel.py",
        "        self.loop_watch.check()\n",
        "",
    ),
    Mutant(
        "a resumed node has a later incarnation",
        "tunnel/tunnel.py",
        "self._hello = replace(own, incarnation=max(own.incarnation + 1, following))",
        "self._hello = own",
    ),
    Mutant(
        "a resumed node ends its links",
        "tunnel/tunnel.py",
        "for link in [*self._links.values(), *self._pending, *self._retired]:\n            link.abort(error)",
        "for link in ():\n            link.abort(error)",
    ),
    Mutant(
        "a link of a later incarnation of this node replaces the earlier one",
        "tunnel/link_precedence.py",
        "    if new.own.incarnation != old.own.incarnation:",
        "    if False:",
    ),
    Mutant(
        "a resumed node dials at once",
        "network/network.py",
        "        self._peering.handle(Resumed())",
        "        pass",
    ),
    Mutant(
        "the record of a resumed node has its incarnation",
        "network/network.py",
        "replace(self._graph.own, incarnation=incarnation, sequence=1, neighbours=())",
        "replace(self._graph.own, neighbours=())",
    ),
    Mutant(
        "a suspended node writes nothing on its former links",
        "tunnel/link.py",
        "        if self._loop_watch.check():\n            return True\n",
        "",
    ),
    Mutant(
        "a resumed node renews its records in the registry",
        "node/node.py",
        "            self._tasks.start(self._registrations.renew())",
        "            pass",
    ),
    Mutant(
        "the routes of a resumed node have its incarnation",
        "node/composition.py",
        "    links.add_resumed_handler(routing.router.resumed)\n",
        "",
    ),
    Mutant(
        "a call of the site is not sent on a link from before the suspension",
        "proxy/proxy.py",
        "        self._check_suspension()\n",
        "",
    ),
    Mutant(
        "a resumed router has a later incarnation than the one that others may know",
        "routing/engine.py",
        "self._origin.restart(max(incarnation, self._origin.incarnation + 1))",
        "self._origin.restart(incarnation)",
    ),
    Mutant(
        "a draining router does not announce itself after a suspension",
        "routing/engine.py",
        "    def _resumed(self, incarnation: int) -> None:\n",
        "    def _resumed(self, incarnation: int) -> None:\n        self._origin.is_draining = False\n",
    ),
)

AREA = Area(
    name="suspension",
    folder="micro_core",
    tests=(
        ("tests/lifecycle/test_loop_watch.py", "tests/tunnel/test_link_precedence.py"),
        ("tests/tunnel/test_keepalive.py", "tests/node/test_planes.py", "tests/routing/test_engine_site.py"),
        ("tests/lab/test_suspended_node.py",),
    ),
    mutants=MUTANTS,
)
