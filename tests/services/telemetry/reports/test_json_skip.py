"""Values that are stepped over: rightly, and at a cost that their shape cannot raise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import DomainError
from services.telemetry.reports import json_skip
from services.telemetry.reports.events import BadEvent, Batch, ReadEvent

SIZE = 12 << 20
HEAD, TAIL = b'{"device_id":"d","events":[', b"]}"


def closing(body: bytes, at: int = 0) -> int:
    steps = json_skip.closing(body, at)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


def naive(body: bytes) -> int | None:
    """Where the value ends that begins the text, character by character."""
    depth, quoted, escaped = 0, False, False
    for at, char in enumerate(body.decode("latin-1")):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "[{":
            depth += 1
        elif not quoted and char in "]}":
            depth -= 1
        if depth == 0 and not quoted:
            return at + 1
    return None


values = st.recursive(
    st.none() | st.integers() | st.text('a"\\[]{}é', max_size=12),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('"\\[]{}', max_size=4), inner),
    max_leaves=60,
).filter(lambda value: isinstance(value, list | dict | str))
pieces = st.lists(st.sampled_from(['"', "\\\\", '\\"', "[", "]", "{", "}", "x", "[]", "[[]"]))


@given(value=values, shortest=st.integers(1, 9), longest=st.integers(1, 40), rest=st.text('x"]'))
def test_a_value_ends_where_it_ends(value: object, shortest: int, longest: int, rest: str) -> None:
    """However it is cut into stretches, and whatever follows it."""
    text = json.dumps(value, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_skip, "_SHORTEST", shortest)
        patch.setattr(json_skip, "_LONGEST", longest)
        assert closing(text + rest.encode()) == len(text)
        assert closing(b"x" * 7 + text + rest.encode(), 7) == 7 + len(text)


@given(begin=st.sampled_from('"[{'), tokens=pieces, shortest=st.integers(1, 9))
def test_marks_in_any_order_end_where_one_by_one_they_do(
    begin: str, tokens: list[str], shortest: int
) -> None:
    """Also where no end comes."""
    # A backslash outside of strings is no JSON, and may count as it likes.
    kept, quoted = begin, begin == '"'
    for token in tokens:
        if token[0] != "\\" or quoted:
            kept += token
            quoted ^= token == '"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_skip, "_SHORTEST", shortest)
        patch.setattr(json_skip, "_LONGEST", shortest)
        expected = naive(kept.encode())
        if expected is None:
            with pytest.raises(json_skip.EndlessError):
                closing(kept.encode())
        else:
            assert closing(kept.encode()) == expected


def _of(part: str, around: str = "[{}]") -> str:
    return around.format(part * (SIZE // len(part)) + part.rstrip(","))


SHAPES = {
    "lists": _of("[],"),
    "objects": _of("{},", '{{"payload":[{}]}}'),
    "deep lists": "[" * (SIZE // 2) + "]" * (SIZE // 2),
    "deep objects": '{"payload":' + '{"a":' * (SIZE // 6) + "1" + "}" * (SIZE // 6) + "}",
    "lists of some depth": _of("[[[[[[[[[[]]]]]]]]]],"),
    "members": _of('"a":1,', "{{{}}}"),
    "members of a payload": _of('"a":[],', '{{"payload":{{{}}}}}'),
    "texts": _of('"",'),
    "escapes": _of('\\"', '{{"payload":"{}"}}'),
    "backslashes": _of("\\\\", '{{"payload":"{}"}}'),
    "brackets in texts": _of('"[]]",'),
    "one text": _of("x", '{{"payload":"{}"}}'),
    "one key": _of("k", '{{"{}":1}}'),
    "one number": _of("1", '{{"payload":{}}}'),
    "white space": _of(" ", '{{"payload":{}1}}'),
    "numbers": _of("1,"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_huge_event_is_quarantined_at_a_small_cost(shape: str) -> None:
    """Whatever it consists of: before, 62 MiB of empty lists took longer than a gateway waits."""
    event = SHAPES[shape].encode()
    batch = Batch(HEAD + event + b",1" + TAIL, lambda _: None)
    found: list[ReadEvent] = []
    longest = 0.0

    def timed(steps: Iterator[object]) -> Iterator[object]:
        nonlocal longest
        while True:
            begun = time.process_time()
            try:
                step = next(steps)
            except StopIteration:
                return
            finally:
                longest = max(longest, time.process_time() - begun)
            yield step

    begun = time.process_time()
    for _ in timed(iter(batch.check())):
        pass
    for events in timed(iter(batch.read())):
        found += events  # type: ignore[arg-type]  # lists of events
    took = time.process_time() - begun
    huge, small = found
    assert isinstance(huge, BadEvent)
    assert huge.content.encode() == event[: len(huge.content.encode())]
    assert isinstance(small, BadEvent)
    # Seconds of a processor, many times what is usual on an idle machine.
    assert took < 15
    assert longest < 8


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b'{"a":1,' + b'"a":1,' * 2_000 + HEAD[1:] + TAIL, "at most 1000 members"),
        (b'{"' + b"k" * SIZE + b'":1,' + HEAD[1:] + TAIL, "a key that is too long"),
        (b" " * SIZE + HEAD + TAIL, "too much white space"),
        (HEAD + b"1" + b" " * SIZE + b",2" + TAIL, "too much white space"),
        (HEAD + TAIL + b" " * SIZE, "too much white space"),
        (HEAD + b"[" * SIZE + TAIL, "must be valid JSON"),
    ],
)
def test_a_body_of_another_odd_shape_is_refused(body: bytes, rule: str) -> None:
    """As a whole, as far as it is looked at."""
    with pytest.raises(DomainError, match=rule):
        for _ in Batch(body, lambda _: None).read():
            pass
