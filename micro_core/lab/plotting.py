"""A picture of a run: routes, messages and penalties over time. Needs matplotlib: pip install micro-network[plot]."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from micro_core.contract.errors import ConfigError
from micro_core.lab.report import Sample


def plot(samples: Sequence[Sample], title: str, path: Path) -> None:
    """Write an SVG or PNG, by the file's ending. Raises ConfigError."""
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"{path}: a picture is .svg or .png")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib", hint="pip install 'micro-network[plot]'") from error
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    times = [sample.at for sample in samples]
    upper.plot(times, [sample.routes for sample in samples])
    upper.set_ylabel("routes in all tables")
    upper.set_title(title)
    rates = [0, *(after.messages - before.messages for before, after in itertools.pairwise(samples))]
    middle.plot(times, rates)
    middle.set_ylabel("routing messages a second")
    lower.plot(times, [sample.penalty for sample in samples], label="worst penalty")
    lower.fill_between(times, [sample.held * 100.0 for sample in samples], alpha=0.3, label="services held (x 100)")
    lower.set_ylabel("damping")
    lower.set_xlabel("virtual seconds")
    lower.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
