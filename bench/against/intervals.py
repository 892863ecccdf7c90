"""What pairs of rounds say: the ratio of two sides, and how sure that is.

Hodges and Lehmann's interval, from Wilcoxon's signed-rank test: of the logarithms of the pairs'
ratios, the means of any two are put in order, and so many are cut off at both ends that the rest
holds the true one in at least 95 % of all runs. It asks only that a pair's noise is as likely to
favour one side as the other, which rounds in the order A B B A see to; a stranger who takes the
machine for a round or two does not move it, as he would a mean. (Hollander, Wolfe and Chicken,
Nonparametric Statistical Methods, 3rd edition, 3.2 and 3.3.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio with its bounds."""

    low: float
    middle: float
    high: float
    confidence: float
    """How often such bounds hold the true ratio: 95 % or a little more; less with under 6 pairs."""


def signed_rank_tail(pairs: int) -> list[float]:
    """The chance that the sum of the positive ranks is at most 0, 1, 2, …, without a difference."""
    ways = [1]
    for rank in range(1, pairs + 1):
        longer = ways + [0] * rank
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    found, so_far = [], 0
    for count in ways:
        so_far += count
        found.append(so_far / 2**pairs)
    return found


def interval(ratios: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The interval of the ratio that pairs of rounds have.

    Args:
        ratios: of each pair, one side's cost over the other's; above 0.
        confidence: at least how often it is to hold the true ratio.

    Raises:
        ValueError: there is no pair.
    """
    if not ratios:
        raise ValueError("no pair of rounds")
    logs = [math.log(ratio) for ratio in ratios]
    means = sorted((a + b) / 2 for n, a in enumerate(logs) for b in logs[n:])
    tail = signed_rank_tail(len(logs))
    # So many means are cut off at each end; at least the outermost ones are kept.
    cut = sum(1 for chance in tail if 2 * chance <= 1 - confidence)
    outermost = max(cut - 1, 0)
    return Interval(
        low=math.exp(means[outermost]),
        middle=math.exp(median(means)),
        high=math.exp(means[-1 - outermost]),
        confidence=1 - 2 * tail[outermost],
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides' costs in pairs of rounds, each pair side by side."""

    base: Sequence[float]
    tree: Sequence[float]

    @property
    def ratio_of_medians(self) -> float:
        return median(self.tree) / median(self.base)

    @property
    def interval(self) -> Interval:
        """Of the ratio tree to base."""
        return interval([t / b for b, t in zip(self.base, self.tree, strict=True)])

    def is_at_most(self, dearer: float) -> bool:
        """Whether the interval reaches down to 1 + `dearer`, a share like 0.03."""
        return self.interval.low <= 1 + dearer

    def is_sharp(self, dearer: float) -> bool:
        """Whether the interval is narrow enough to tell "no dearer" from "`dearer` more"."""
        return self.interval.high / self.interval.low <= 1 + dearer
