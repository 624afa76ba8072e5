"""The built-in scenarios. They are also examples for your own ones.

Your own scenario is a Python file with `async def scenario(lab, watch, count)`: create nodes with `lab`, measure the
convergence time of each step with `watch.settle("name of the step")`, and let time pass with `lab.advance_time(seconds)`.
"""

from micro_core.lab.scenarios import shapes  # isort: skip - the order of the list
from micro_core.lab.scenarios import faults, found  # isort: skip
from micro_core.lab.scenarios.faults import churn_for
from micro_core.lab.scenarios.registry import SCENARIOS, Body, Scenario, serve_each

__all__ = ["SCENARIOS", "Body", "Scenario", "churn_for", "faults", "found", "serve_each", "shapes"]
