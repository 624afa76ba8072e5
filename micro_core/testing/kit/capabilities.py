"""The words of `Driver.capabilities`, and what each adds to what the kit of its role demands.

A driver whose options decide (a durable stream, say) declares what always holds, and its tests say the rest in
`DriverUnderTest.capabilities`. Words of a driver's own begin with `x-`; any other word is a mistake, and a part says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from micro_core.contract import Role

CAPABILITIES: Mapping[Role, Mapping[str, str]] = {
    Role.REGISTRY: {
        "watch": "watchers hear of a change within one second, not at some later look",
        "persistent": "a record outlives a restart of the back end while its lease lasts",
    },
    Role.TRANSPORT: {},
    Role.BROKER: {
        "queue-groups": "members of a queue group share the work, also across processes: none that keeps up is left out",
        "wildcards": "in a subscription, `*` stands for one part between dots, and `>` at the end for one part or more",
        "durable": (
            "at least once: a message whose handler failed comes again, and what is published while no member of a "
            "queue group is there waits for the next"
        ),
    },
    Role.TUNNEL: {
        "lanes": "links have four lanes, and a lane that is full holds up no other",
    },
    Role.TABLE: {
        "persistent": "routes are back after a restart, in a driver made with the same state directory",
    },
    Role.RESOLVER: {
        "priorities": "the source carries priorities",
        "weights": "the source carries weights",
    },
}
"""By role: word, and the promise it stands for."""
