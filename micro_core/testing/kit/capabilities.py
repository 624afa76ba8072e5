"""The names of `Driver.capabilities`, with the guarantee that each of them adds to the contract of a role.

A driver declares the capabilities that it has with every combination of options. If a capability depends on the options
(e.g. a durable stream), the tests declare it in `DriverUnderTest.capabilities`. Names that a plugin defines for itself
begin with `x-`; a check fails on any other unknown name.
"""

from __future__ import annotations

from collections.abc import Mapping

from micro_core.contract import Role

CAPABILITIES: Mapping[Role, Mapping[str, str]] = {
    Role.REGISTRY: {
        "watch": "watchers receive a change within one second, without waiting for the next poll",
        "persistent": "a record survives a restart of the back end until its lease ends",
    },
    Role.TRANSPORT: {},
    Role.BROKER: {
        "queue-groups": (
            "the messages of a queue group are distributed over all members that keep up, also across processes"
        ),
        "wildcards": (
            "in a subscription, `*` matches one dot-separated part of a topic, and `>` at the end matches one or more"
        ),
        "durable": (
            "at-least-once delivery: a message whose handler failed is delivered again, and messages that are published "
            "while a queue group has no member are kept for the next member"
        ),
    },
    Role.TUNNEL: {
        "lanes": "links have four lanes, and a full lane does not block the others",
    },
    Role.TABLE: {
        "persistent": "routes are restored after a restart by a driver with the same state directory",
    },
    Role.RESOLVER: {
        "priorities": "the source stores priorities",
        "weights": "the source stores weights",
    },
}
"""For each role: the capability names, each with its meaning."""
