"""How likely a difference between two groups of devices is mere chance."""

from __future__ import annotations

from math import exp, lgamma
from typing import Final

_NEGLIGIBLE: Final = 1e-12


def chance(bad: int, of: int, control_bad: int, control: int) -> float:
    """How likely at least so many of some devices would be bad if they were like all others.

    All bad devices are put together and dealt out anew at random: this is the part of the deals in
    which `bad` or more fall to the `of` devices (Fisher's exact test, one-sided). It needs no
    minimum of devices and no assumption of how many are bad on a usual day, for the control group
    tells that of the same minutes.

    Args:
        bad: so many of the devices that are looked at.
        of: all of those devices.
        control_bad: so many of the others.
        control: all of the others.
    """
    total, all_bad = of + control, bad + control_bad
    found = 0.0
    for drawn in range(bad, min(of, all_bad) + 1):
        part = exp(
            _log_ways(all_bad, drawn)
            + _log_ways(total - all_bad, of - drawn)
            - _log_ways(total, of)
        )
        found += part
        if part < _NEGLIGIBLE * found and drawn * total > all_bad * of:
            break
    return min(found, 1.0)


def _log_ways(of: int, take: int) -> float:
    """The logarithm of how many ways there are to take some; minus infinity for none."""
    if not 0 <= take <= of:
        return float("-inf")
    return lgamma(of + 1) - lgamma(take + 1) - lgamma(of - take + 1)
