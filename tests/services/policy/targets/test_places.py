"""Where devices sit and what they reported, in one dictionary."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from services.policy.targets.places import Places, Report


class Seat:
    """Somewhere to sit."""


SEATS = [Seat() for _ in range(3)]
REPORTS = [Report(version, 1, rightful) for version in (1, 2) for rightful in (False, True)]
DEVICES = ["a", "b", "c"]
FORGETS = ["the device", "all reports"]


@given(
    st.lists(
        st.tuples(st.sampled_from(DEVICES), st.sampled_from([*SEATS, *REPORTS, None, *FORGETS]))
    )
)
def test_it_is_as_two_dictionaries(steps: list[tuple[str, object]]) -> None:
    places: Places[Seat] = Places()
    seats: dict[str, Seat] = {}
    reports: dict[str, Report] = {}
    for device, step in steps:
        if isinstance(step, Seat):
            places[device] = seats[device] = step
        elif isinstance(step, Report):
            places.note(device, step)
            reports[device] = step
        elif step is None:
            assert places.pop(device) == seats.pop(device, None)
        elif step == "the device":
            places.forget(device)
            seats.pop(device, None)
            reports.pop(device, None)
        else:
            places.forget_reports()
            reports.clear()
        assert dict(places.items()) == seats
        assert places.reports == len(reports)
        for one in DEVICES:
            assert places.get(one) is seats.get(one)
            assert places.report(one) == reports.get(one)


def test_nothing_keeps_a_seat_in_which_nobody_sits() -> None:
    """What is put together for devices goes by the seats that there are."""
    places: Places[Seat] = Places()
    seat = Seat()
    left = weakref.ref(seat)
    places["a"] = seat
    places.note("a", REPORTS[0])
    del seat
    assert left() is not None
    places["a"] = SEATS[0]
    gc.disable()
    try:
        assert left() is None
    finally:
        gc.enable()
    assert places.report("a") == REPORTS[0]
