"""Fairness between tenants."""

from __future__ import annotations

from servicekit.admission.fair import FairQueue, Shares


def _fill(shares: Shares, tenant: str) -> int:
    count = 0
    while shares.take(tenant):
        count += 1
    return count


def test_a_tenant_alone_gets_two_thirds() -> None:
    """And all of what it gave back again."""
    shares = Shares(900)
    assert _fill(shares, "a") == 600
    for _ in range(600):
        shares.give_back("a")
    assert shares.taken == 0
    assert _fill(shares, "a") == 600


def test_whoever_floods_there_is_room_for_others() -> None:
    """However many flood, one after another: the next one's first calls are taken."""
    shares = Shares(1024)
    held = {flood: _fill(shares, str(flood)) for flood in range(5)}
    assert held[0] == 683
    assert all(count > 0 for count in held.values())
    assert shares.take("quiet")
    assert shares.taken < shares.total


def test_a_flood_shrinks_to_its_share() -> None:
    """What the first has too much is not renewed; two that flood come to hold the same."""
    shares = Shares(1000)
    _fill(shares, "a")
    held = {"a": 666, "b": 0}
    for _ in range(2000):
        # Each ends one call and begins as many as it may.
        for tenant in ("a", "b"):
            if held[tenant]:
                shares.give_back(tenant)
                held[tenant] -= 1
            held[tenant] += _fill(shares, tenant)
    assert abs(held["a"] - held["b"]) <= 2
    assert held["a"] + held["b"] >= 790


def test_what_is_heavier_than_everything_is_taken_alone() -> None:
    """By an empty store only."""
    shares = Shares(10)
    assert shares.take("a", 50)
    assert not shares.has_room("b")
    shares.give_back("a", 50)
    assert shares.take("b", 3)
    assert not shares.take("a", 8)


def _order(queue: FairQueue[str]) -> list[str]:
    return [queue.pop()[1] for _ in range(len(queue))]


def test_tenants_take_turns() -> None:
    """A quiet one comes next, however much another one has queued."""
    queue: FairQueue[str] = FairQueue()
    for n in range(5):
        queue.push("a", 1, f"a{n}")
    assert queue.pop() == (1, "a0")
    assert queue.pop() == (1, "a1")
    queue.push("b", 1, "b0")
    queue.push("b", 1, "b1")
    assert _order(queue) == ["b0", "a2", "b1", "a3", "a4"]


def test_turns_are_by_weight() -> None:
    """Who sends heavy entries gets fewer of them through."""
    queue: FairQueue[str] = FairQueue()
    for n in range(3):
        queue.push("heavy", 10, f"h{n}")
    for n in range(25):
        queue.push("light", 1, f"l{n}")
    order = _order(queue)
    assert order.index("h1") == 11
    assert order.index("h2") == 22
    assert [name for name in order if name[0] == "l"] == [f"l{n}" for n in range(25)]


def test_who_was_away_has_saved_up_nothing() -> None:
    """An hour of silence gives no claim to the next hour."""
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 1, "a")
    for n in range(100):
        queue.push("b", 1, f"b{n}")
    for _ in range(51):
        queue.pop()
    queue.push("a", 1, "again")
    queue.push("a", 1, "and again")
    order = _order(queue)
    assert order.index("again") <= 1
    assert 1 <= order.index("and again") <= 3


def test_newcomers_without_end_do_not_starve_those_who_wait() -> None:
    """Names that nobody has checked, as tenant codes in enrollments, gain nothing."""
    queue: FairQueue[str] = FairQueue()
    for n in range(3):
        queue.push("real", 1, f"real {n}")
    for n in range(20):
        queue.push(f"fake {n}", 1, "x")
    served = []
    for n in range(100):
        queue.push(f"new {n}", 1, "x")
        served.append(queue.pop()[1])
    assert [name for name in served if name != "x"] == ["real 0", "real 1", "real 2"]


def test_tenants_of_the_past_are_forgotten() -> None:
    """A queue that never empties does not grow with everybody who ever came."""
    queue: FairQueue[str] = FairQueue()
    queue.push("first", 1, "first")
    for n in range(5000):
        queue.push(str(n), 1, "x")
        queue.pop()
    assert len(queue) == 1
    assert len(queue._ends) < 100
