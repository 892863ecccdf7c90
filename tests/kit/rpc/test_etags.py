"""What a call expects of the resource that it changes."""

from __future__ import annotations

import pytest

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import DomainError
from servicekit.etags import check_etag, etag_of, expect


def _verdict(if_match: list[str], field: str | None, etag: str = "5") -> str | int:
    """`good`, the HTTP status of a mismatch (0 for the code's own), or the wrong field."""
    request = pb.UpdateUserRequest(etag=field)
    try:
        expect(if_match, request, writes=True)
    except DomainError as wrong:
        return wrong.violations[0].field
    try:
        check_etag(etag)
    except DomainError as mismatch:
        assert mismatch.reason == "ETAG_MISMATCH"
        return mismatch.http_status or 0
    return "good"


@pytest.mark.parametrize(
    ("if_match", "field", "verdict"),
    [
        ([], None, "good"),
        ([], "", "good"),
        ([], "5", "good"),
        ([], "4", 0),
        (['"5"'], None, "good"),
        (['"4", "5"'], None, "good"),
        (['"4"', '"5"'], None, "good"),
        (['"4,5"'], None, 412),
        (['"4"'], None, 412),
        (['""'], None, 412),
        (['W/"5"'], None, 412),
        (['W/"5", "5"'], None, "good"),
        (["*"], None, "good"),
        ([" * "], None, "good"),
        (["*"], "5", "good"),
        (["*"], "4", 412),
        (['"5"'], "5", "good"),
        (['"4"'], "4", 412),
        (['"5"'], "4", "etag"),
        (['W/"5"'], "5", "etag"),
        (["5"], None, "If-Match"),
        ([""], None, "If-Match"),
        ([" "], None, "If-Match"),
        (['w/"5"'], None, "If-Match"),
        (['"5'], None, "If-Match"),
        (['"5" "6"'], None, "If-Match"),
        (["*", '"5"'], None, "If-Match"),
        (['"5"' * 1000], None, "If-Match"),
        ([", ".join(['"6"'] * 300)], None, "If-Match"),
    ],
)
def test_what_matches(if_match: list[str], field: str | None, verdict: str | int) -> None:
    """As RFC 9110 has it; the field beside the header has to be one of its etags."""
    assert _verdict(if_match, field) == verdict


def test_a_weak_etag_is_named() -> None:
    """Nothing was changed meanwhile: the message does not say so."""
    found = expect(['W/"5"'], pb.UpdateTenantRequest(), writes=True)
    assert found is not None
    with pytest.raises(DomainError, match="a weak etag") as refused:
        found.check("5")
    assert refused.value.reason == "ETAG_MISMATCH"


def test_a_call_without_the_field_takes_no_header() -> None:
    """When it changes something; one that reads may have any."""
    request = pb.CreateTenantRequest()
    with pytest.raises(DomainError):
        expect(['"5"'], request, writes=True)
    found = expect(['"5"'], request, writes=False)
    assert found is not None
    assert expect([], request, writes=True) is None
    check_etag("anything")


def test_an_etag_is_another_one_when_anything_is() -> None:
    """Also where texts could be taken together otherwise."""
    shown = [("a", "b"), ("ab", ""), ("a", None), ("a", "None"), (1, "b"), ("1", "b"), (["a"], "b")]
    assert len({etag_of(*values) for values in shown}) == len(shown)
    assert etag_of("a", "b") == etag_of("a", "b")
