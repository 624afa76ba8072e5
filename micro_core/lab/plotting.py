"""Plots of a run: routes, messages and penalties over time. Requires matplotlib (pip install micro-network[plot])."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from micro_core.contract.errors import ConfigError
from micro_core.lab.report import Sample


def plot(samples: Sequence[Sample], title: str, path: Path) -> None:
    """Write a plot of `samples` to an .svg or .png file.

    Raises ConfigError if the file has another suffix or cannot be written, or if matplotlib is missing.
    """
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"cannot plot to {path}: the file name must end in .svg or .png")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "cannot plot: matplotlib is not installed", hint="pip install 'micro-network[plot]'"
        ) from error
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    times = [sample.at for sample in samples]
    upper.plot(times, [sample.routes for sample in samples])
    upper.set_ylabel("routes in all tables")
    upper.set_title(title)
    rates = [0, *(after.messages - before.messages for before, after in itertools.pairwise(samples))]
    middle.plot(times, rates)
    middle.set_ylabel("routing messages per second")
    lower.plot(times, [sample.penalty for sample in samples], label="highest penalty")
    lower.fill_between(
        times, [sample.suppressed * 100.0 for sample in samples], alpha=0.3, label="suppressed services (x 100)"
    )
    lower.set_ylabel("damping")
    lower.set_xlabel("virtual seconds")
    lower.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
