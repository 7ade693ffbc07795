"""Curves of several seeds in one picture."""

import numpy as np

WINDOWS = 50


def align(curves, windows=WINDOWS):
    """Steps [W], and returns [S, W] of S curves over the steps that all of them have.

    Curves are lists of [step, return], at steps of their own: epochs of whole episodes end where
    the episodes end. Each is taken as linear between its points, and averaged over windows of equal
    width. So no value leaves the range of the curve's own.

    >>> steps, returns = align([[[0, 1.0], [8, 5.0]], [[0, 2.0], [8, 2.0]]], windows=2)
    >>> steps.round(6).tolist(), returns.round(6).tolist()
    ([2.0, 6.0], [[2.0, 4.0], [2.0, 2.0]])
    """
    columns = [np.array(curve, float).T for curve in curves]
    start, end = max(steps[0] for steps, _ in columns), min(steps[-1] for steps, _ in columns)
    parts = 20  # of a window, each measured in its middle
    fine = start + (end - start) * (np.arange(windows * parts) + 0.5) / (windows * parts)
    values = np.array([np.interp(fine, *column) for column in columns])
    return (
        fine.reshape(windows, parts).mean(axis=1),
        values.reshape(len(columns), windows, parts).mean(axis=2),
    )


def caption(seeds):
    """What every picture with bands says below itself; `seeds` are the counts of its lines.

    >>> caption([5, 5])
    'Line: mean of 5 seeds. Band: from the worst to the best seed.'
    """
    several = str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    return f"Line: mean of {several} seeds. Band: from the worst to the best seed."


def plot(axes, curves, *, color, windows=WINDOWS, **line):
    """Draws the mean of the curves and the range from worst to best, over thousands of steps."""
    steps, returns = align(curves, windows)
    thousands = steps / 1000
    low, high = returns.min(axis=0), returns.max(axis=0)
    axes.fill_between(thousands, low, high, color=color, alpha=0.25, linewidth=0, zorder=1.5)
    for edge in (low, high):
        axes.plot(thousands, edge, color=color, alpha=0.5, linewidth=0.5, zorder=1.6)
    axes.plot(thousands, returns.mean(axis=0), color=color, **line)
