"""How likely a difference is mere chance."""

from __future__ import annotations

from math import comb

import pytest

from services.policy.rollouts.chance import chance


def test_it_is_the_part_of_all_deals() -> None:
    """By counting them."""
    for bad, of, control_bad, control in ((2, 3, 1, 7), (0, 4, 3, 4), (5, 5, 0, 5), (1, 1, 4, 20)):
        total, all_bad = of + control, bad + control_bad
        ways = sum(
            comb(all_bad, drawn) * comb(total - all_bad, of - drawn)
            for drawn in range(bad, min(of, all_bad) + 1)
        )
        assert chance(bad, of, control_bad, control) == pytest.approx(ways / comb(total, of))


def test_few_prove_little_and_many_much() -> None:
    """Three dead of three among living ones are no chance; three sleepers of five are."""
    assert chance(3, 3, 2, 200) < 1 / 10_000
    assert chance(3, 5, 90, 200) > 1 / 10
    assert chance(300, 1_000, 9_000, 99_000) < 1 / 10_000
    assert chance(100, 1_000, 9_900, 99_000) > 1 / 10
    assert chance(10, 10, 0, 0) == 1
