"""The filter language: what it takes, what it refuses, and that SQL means what Python means."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from servicekit.errors import DomainError
from servicekit.serials import serial_key
from services.enrollment.groups.filter_sql import FilterSql
from services.enrollment.groups.filters import MAX_TERMS, parse, terms_of
from tests.services.enrollment.groups.reference import Facts, matches
from tests.support.paths import LONG
from tests.support.servers import TestDatabase

FILTERS = 2_000 if LONG else 300
DEVICES = 60
DAY = datetime(2026, 8, 31, tzinfo=UTC)
BOOK = Facts(
    "5CD-0001", "Book 14", "Intel(R) Core(TM) i3", 8, 16 << 30, True, DAY, None, {"room": "214"}
)


@pytest.mark.parametrize(
    ("text", "is_matched"),
    [
        ('model = "Book 14"', True),
        ("model = 'book 14'", True),
        ('model = "Book*"', True),
        ("model=Book*", True),
        ("model = Book", False),
        ("model : ook", True),
        ("model != Book*", False),
        ("serial = 5cd-0001", True),
        ("serial = 5CD-000", False),
        ("NOT serial = 5CD*", False),
        ("cpu_count >= 8 AND total_ram_bytes > 8589934592", True),
        ("cpu_count < 8 OR has_tpm = true", True),
        ("has_tpm = FALSE", False),
        ("enrolled_at >= 2026-08-31", True),
        ('enrolled_at < "2026-08-31T00:00:00+01:00"', False),
        ("labels.room = 214", True),
        ("labels.room > 99", True),
        ("labels.room > 1000", False),
        ("labels.room = 21*", True),
        ("labels:room AND NOT labels:year", True),
        ("labels.room:* AND NOT (labels.year:* OR labels.cart:*)", True),
        ("labels.year != 7", True),
        ("labels.year = 7", False),
        ("enrollment_token = Cart*", False),
        ('model = "Book\\*"', False),
    ],
)
def test_a_filter_says_what_it_seems_to_say(text: str, is_matched: bool) -> None:
    """Texts without regard to case, `*` at the end, numbers, times, labels."""
    assert matches(parse(text), BOOK) is is_matched


def test_letters_with_accents_are_found_however_they_are_typed() -> None:
    """Labels and the names of tokens are kept composed; macOS sends some texts decomposed."""
    facts = Facts("SN-1", labels={"room": "Büro 1"}, token=(uuid4(), "Büro"))
    for text in ("labels.room = 'Bu\u0308ro*'", "enrollment_token = 'bu\u0308ro'"):
        assert matches(parse(text), facts)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        ("model", "at character 6: must be one of = != < <= > >= :"),
        ("model =", "at character 8: must be a value"),
        ("model = 'x", "at character 9: the quotation mark is not closed"),
        ("model < Book", "at character 7: must be one of = != : for model"),
        ("modle = x", "at character 1: no such field; known are serial, model"),
        ("labels.Room = 2", "at character 1: Room is no label"),
        ("labels = 2", "at character 8: must be : (labels:KEY)"),
        ("a = 1 AND", "at character 1: no such field"),
        ("has_tpm = true AND", "at character 19: must be a comparison"),
        ("has_tpm = maybe", "at character 11: must be true or false"),
        ("cpu_count = many", "at character 13: must be a whole number"),
        (f"cpu_count = {'9' * 19}", "at character 13: must be a whole number"),
        ("enrolled_at > yesterday", "at character 15: must be a date, as 2026-08-31"),
        ("has_tpm = true and cpu_count = 2", "at character 16: write AND in capital letters"),
        ("has_tpm = true cpu_count = 2", "at character 16: must be AND or OR"),
        ("model = a AND model = b OR model = c", "at character 25: AND beside OR needs"),
        ("(model = a", "at character 1: there is no ) for this ("),
        ("model = a)", "at character 10: there is no ( for this )"),
        ("model = B*k", "at character 9: * may only be at the end"),
        ("model : B*", "at character 9: * stands at the end of a text behind ="),
        ("labels.year > seven", "at character 15: must be a whole number"),
        ("model = x" + " OR model = x" * MAX_TERMS, f"has more than {MAX_TERMS} comparisons"),
        ("(" * 30 + "model = x" + ")" * 30, "levels"),
        ("NOT " * 30 + "model = x", "levels"),
        ("model = " + "x" * 2_000, "must have at most 2000 characters"),
        ("AND model = x", "at character 1: must be a comparison, not AND"),
        ('= "x"', "at character 1: must be a field"),
    ],
)
def test_a_wrong_filter_is_refused_with_its_place(text: str, rule: str) -> None:
    """The message says where and what."""
    with pytest.raises(DomainError) as refused:
        parse(text)
    assert rule in refused.value.message
    assert refused.value.violations[0].field == "filter"


def test_noise_never_breaks_the_reader() -> None:
    """Whatever is typed is read, or refused as a filter."""
    random = Random(7)
    pieces = [*"=:*\"'\\() <.xé\n", "!=", ">=", "-1", "AND", "OR", "NOT"]
    pieces += ["model", "labels.", "labels", "has_tpm", "labels.a-b"]
    for _ in range(5_000):
        text = "".join(random.choices(pieces, k=random.randint(1, 12)))
        try:
            assert terms_of(parse(text)) > 0
        except DomainError as refused:
            assert refused.reason == "INVALID_FIELD", text


_TEXTS = (
    "Book 14",
    "book 14",
    "Éclair",
    "éclair",
    "İx",
    "a*b",
    'quo"te',
    "",
    "x" * 40,
    "BOOK",
    "%_",
)
_LABELS = ("7", "07", "-3", "214", "10", "Room A", "room a", "9" * 19, "ß", "1.5")
_KEYS = ("year", "room", "a_b-c")


def _facts(random: Random, number: int, tokens: list[tuple[UUID, str]]) -> Facts:
    keys = random.sample(_KEYS, random.randint(0, 3))
    return Facts(
        serial=f"{random.choice(('SN', 'sn', 'Sé'))}-{number}{random.choice(('', 'A', 'ß'))}",
        model=random.choice(_TEXTS),
        cpu_model=random.choice(_TEXTS),
        cpu_count=random.choice((0, 2, 4, 8)),
        total_ram_bytes=random.choice((0, 1 << 33, (1 << 64) - 1)),
        has_tpm=random.random() < 0.5,
        enrolled_at=random.choice((None, DAY, DAY + timedelta(days=1, microseconds=1))),
        token=random.choice((None, *tokens)),
        labels={key: random.choice(_LABELS) for key in keys},
    )


def _quoted(text: str, *, star: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("*", "\\*")
    return f'"{escaped}{"*" if star else ""}"'


def _term(random: Random, tokens: list[tuple[UUID, str]]) -> str:
    signs = ("=", "!=", "<", "<=", ">", ">=")
    match random.randint(0, 8):
        case 0:
            text = random.choice(("SN-1", "sn-2A", "Sé-3ß", "SN"))
            return f"serial {random.choice('=:')} {_quoted(text)}"
        case 1 | 2:
            name = random.choice(("model", "cpu_model"))
            text = random.choice(_TEXTS)
            if random.random() < 0.3:
                return f"{name} = {_quoted(text[:3], star=True)}"
            sign = random.choice(("=", "!=", ":"))
            return f"{name} {sign} {_quoted(text or 'b')}"
        case 3:
            return f"cpu_count {random.choice(signs)} {random.choice((0, 2, 3, 8, -1))}"
        case 4:
            return f"total_ram_bytes {random.choice(signs)} {random.choice((0, 1 << 33, 10**17))}"
        case 5:
            return f"has_tpm {random.choice(('=', '!='))} {random.choice(('true', 'false'))}"
        case 6:
            at = random.choice(("2026-08-31", '"2026-09-01T00:00:00.000001Z"'))
            return f"enrolled_at {random.choice(signs)} {at}"
        case 7:
            id_, name = random.choice(tokens)
            text = random.choice((_quoted(str(id_)), _quoted(name), _quoted("Cart ", star=True)))
            return f"enrollment_token {random.choice(('=', '!='))} {text}"
    key = random.choice(_KEYS)
    if random.random() < 0.2:
        return random.choice((f"labels:{key}", f"labels.{key}:*"))
    if random.random() < 0.4:
        return f"labels.{key} {random.choice(signs[2:])} {random.choice((7, 10, -5, 10**17))}"
    return f"labels.{key} {random.choice(('=', '!=', ':'))} {_quoted(random.choice(_LABELS))}"


def _filter(random: Random, tokens: list[tuple[UUID, str]], depth: int = 0) -> str:
    kind = random.random()
    if depth > 2 or kind < 0.4:
        return _term(random, tokens)
    if kind < 0.55:
        return f"NOT ({_filter(random, tokens, depth + 1)})"
    word = random.choice((" AND ", " OR "))
    count = random.randint(2, 3)
    return "(" + word.join(_filter(random, tokens, depth + 1) for _ in range(count)) + ")"


async def test_sql_over_the_fleet_is_python_on_each_device(database: TestDatabase) -> None:
    """On generated devices and filters; and a filter is never NULL."""
    random = Random(22)
    org = uuid4()
    tokens = [(uuid4(), "Cart 3"), (uuid4(), "CART 4"), (uuid4(), "Room")]
    facts = {uuid4(): _facts(random, number, tokens) for number in range(DEVICES)}
    connection = await database.superuser()
    try:
        for id_, name in tokens:
            await connection.execute(
                "INSERT INTO enrollment.token (id, tenant_id, name, secret_hash, created_at,"
                " expires_at, max_uses, serial_count, require_approval)"
                " VALUES ($1, $2, $3, $4, now(), now(), 0, 0, false)",
                id_, org, name, id_.bytes * 2,
            )  # fmt: skip
        for id_, one in facts.items():
            await connection.execute(
                "INSERT INTO enrollment.device (id, tenant_id, serial, serial_key, model,"
                " cpu_model, cpu_count, total_ram_bytes, has_tpm, status, token_version,"
                " enrollment_token_id, created_at, enrolled_at, labels)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'active', 1, $10, now(), $11, $12)",
                id_, org, one.serial, serial_key(one.serial), one.model, one.cpu_model,
                one.cpu_count, Decimal(one.total_ram_bytes), one.has_tpm,
                one.token[0] if one.token else None, one.enrolled_at, json.dumps(dict(one.labels)),
            )  # fmt: skip
        both = 0
        for _ in range(FILTERS):
            text = _filter(random, tokens)
            found = parse(text)
            sql = FilterSql("$1")
            rows: list[Any] = await connection.fetch(
                f"SELECT d.id, {sql.condition(found)} AS is_matched FROM enrollment.device d",
                list(sql.values),
            )
            said = {row["id"]: row["is_matched"] for row in rows}
            assert said == {id_: matches(found, one) for id_, one in facts.items()}, text
            both += 0 < sum(said.values()) < DEVICES
        # The filters tell devices apart, most of them.
        assert both > FILTERS / 2
    finally:
        await connection.close()
