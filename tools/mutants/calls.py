"""The rules by which a proxy chooses routes, limits the calls of a busy site, and holds calls that have no route."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant(
        "calls beyond the window go to the next destination",
        "route_choice.py",
        "if destination.outstanding < destination.window:",
        "if True:",
    ),
    Mutant("suspect next hops are avoided", "route_choice.py", " or usage.route.gateway in suspects", ""),
    Mutant(
        "a full destination is better than one that refuses",
        "route_choice.py",
        "if is_full and group.is_avoided:",
        "if False:",
    ),
    Mutant("states of services are bounded", "route_choice.py", "if len(self._states) >= MAX_SERVICES:", "if False:"),
    Mutant(
        "a route that refuses is avoided ever longer",
        "route_usage.py",
        "INITIAL_AVOIDANCE_S * 2 ** (self.refusals - 1)",
        "INITIAL_AVOIDANCE_S",
    ),
    Mutant("an answer ends the avoidance", "route_usage.py", "self.refusals, self.avoided_until = 0, 0.0", "pass"),
    Mutant(
        "small waiting times never make calls leave",
        "destination.py",
        "allowed_s = max(allowed_s, MIN_ALLOWED_S)",
        "allowed_s = max(allowed_s, 0.0)",
    ),
    Mutant(
        "a window changes only after its last change was measured",
        "destination.py",
        "if now - self._changed_at < max(MIN_CHANGE_INTERVAL_S, latency_s) or not (is_measured or is_stalled):",
        "if False:",
    ),
    Mutant("an unused window is removed", "destination.py", "if now - self._filled_at > RELEASE_S:", "if False:"),
    Mutant("a destination that does not answer gets a window", "destination.py", "if is_stalled:", "if False:"),
    Mutant(
        "own measurements replace the advertised load",
        "destination.py",
        "return 0.0 if self._is_measured(now) else self.advertised_s",
        "return self.advertised_s",
    ),
    Mutant(
        "a refusal as overloaded reduces the window",
        "destination.py",
        "self.window = max(MIN_WINDOW, min(self.window, float(self.outstanding)) * MAX_DECREASE)",
        "pass",
    ),
    Mutant("only the first node holds calls", "waiting_calls.py", "if call.header.via or ", "if "),
    Mutant(
        "only calls to expected services wait",
        "waiting_calls.py",
        "or not (has_tried or self._is_expected(call, routes))",
        "",
    ),
    Mutant(
        "a call waits before its deadline ends",
        "waiting_calls.py",
        "DEADLINE_SHARE * (call.deadline - now)",
        "call.deadline - now",
    ),
    Mutant("refusals of a waiting call are bounded", "waiting_calls.py", "wait.refusals >= MAX_REFUSALS or ", ""),
    Mutant("waiting calls are bounded", "waiting_calls.py", "if self._count >= MAX_CALLS or ", "if "),
    Mutant("the size of waiting calls is bounded", "waiting_calls.py", " or self._bytes + size > MAX_BYTES", ""),
    Mutant("a stream that waits is bounded", "waiting_calls.py", "if self._bytes <= MAX_BYTES:", "if True:"),
    Mutant("errors of other nodes are final", "waiting_calls.py", " and reason.at in self._own_names", ""),
    Mutant(
        "refusals of restricted calls are final",
        "waiting_calls.py",
        "if is_restricted(header):",
        "if False:",
    ),
    Mutant(
        "a route that returns is tried again",
        "waiting_calls.py",
        "call.tried = [key for key in call.tried if key in current]",
        "pass",
    ),
    Mutant(
        "only calls whose routes have changed are woken",
        "waiting_calls.py",
        "if name in changed or self._source.lookup(name) is not service.routes:",
        "if True:",
    ),
)

AREA = Area(
    name="calls",
    folder="micro_core/proxy",
    tests=(
        ("tests/proxy/test_route_choice.py", "tests/proxy/test_destination.py", "tests/proxy/test_waiting_calls.py"),
        ("tests/proxy", "tests/lab/test_waiting_calls.py"),
    ),
    mutants=MUTANTS,
)
