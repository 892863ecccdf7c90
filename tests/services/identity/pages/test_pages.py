"""The pages' texts, templates and small decisions."""

from __future__ import annotations

import html.parser
import string

import pytest
from starlette.requests import Request

from services.identity.pages.browsers import cookie
from services.identity.pages.http import token_of
from services.identity.pages.passkeys import asking, making
from services.identity.pages.render import Html, Page, Problem
from services.identity.pages.targets import next_of
from services.identity.pages.texts import LANGUAGES, TEXTS, language_of, rule_text
from services.identity.second_factor.qr import qr_svg

_VALUES = {
    "login": {
        "form": "f",
        "next": "",
        "email": "a@b.example",
        "org": "",
        "session": Html(""),
        "sso": Html("<p>sso</p>"),
        "passkey": Html(""),
    },
    "accept": {"new_password": Html("<p>form</p>")},
    "forgot": {"by_mail": Html(""), "new_password": Html("<p>form</p>")},
    "signed_in": {"email": "a@b.example"},
    "account": {
        "form": "f",
        "email": "a@b.example",
        "role": "Owner",
        "organisation": "School",
        "links": Html(""),
        "least": "15",
        "password_hint": "15",
        "factor": Html("<p>factor</p>"),
        "sessions": Html("<p>sessions</p>"),
        "providers": Html("<p>providers</p>"),
    },
    "second_factor": {"form": "f", "next": "", "email": "a@b.example", "passkey": Html("")},
    "add_passkey": {"passkey": Html("")},
    "confirm": {"first": Html(""), "passkey": Html("")},
    "set_up_first": {"form": "f", "next": "", "email": "a@b.example"},
    "set_up": {
        "form": "f",
        "next": "",
        "action": "/x",
        "codes": Html(""),
        "qr": Html(qr_svg("otpauth://totp/x")),
        "secret": "ABCD",
    },
    "recovery_codes": {"codes": Html("<li>x</li>")},
    "going": {"text": "You are signed in.", "url": "/auth/signed-in"},
    "invitations": {"by_mail": "", "link": Html(""), "people": Html(""), "more": Html("")},
}


_WITHOUT_PASSWORD = {
    "signed_in",
    "invitations",
    "second_factor",
    "set_up",
    "set_up_first",
    "add_passkey",
    "recovery_codes",
    "going",
}


class _Checker(html.parser.HTMLParser):
    """Collects ids, references to ids, and what is left open."""

    _VOID = frozenset({"meta", "link", "input", "br", "!doctype"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.inputs: list[dict[str, str | None]] = []
        self.labels: list[str | None] = []
        self.open: list[str] = []
        self.language: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "html":
            self.language = found.get("lang")
        if tag not in self._VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"] or "")
        self.references += (found.get("aria-describedby") or "").split()
        if tag == "a" and (href := found.get("href") or "").startswith("#"):
            self.references.append(href[1:])
        if tag == "input" and found.get("type") != "hidden" and "hidden" not in found:
            self.inputs.append(found)
        if tag == "label":
            self.labels.append(found.get("for"))
        assert not any(name.startswith("on") or name == "style" for name in found), found

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _checked(text: str) -> _Checker:
    checker = _Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.references) <= set(checker.ids)
    for field in checker.inputs:
        assert field.get("id") in checker.labels
        assert field.get("autocomplete")
    return checker


def test_both_languages_say_everything() -> None:
    """No text is missing in one of them, nor a place for a number."""
    english, german = (TEXTS[language] for language in LANGUAGES)
    assert english.keys() == german.keys()
    for key, text in english.items():
        fields = {field for _, field, _, _ in string.Formatter().parse(text)}
        assert fields == {field for _, field, _, _ in string.Formatter().parse(german[key])}, key
        assert (text == german[key]) is (key in {"product", "organisation"}), key


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", _VALUES)
def test_every_page_is_sound_html(name: str, language: str) -> None:
    """Labels, references and tags fit, with and without something to correct."""
    for problems in ([], [Problem("Wrong", "password"), Problem("All wrong")]):
        page = Page(name=name, language=language, problems=problems, notice="Done")
        values = dict(_VALUES[name])
        if "new_password" in values:
            token = page.part("token", token="t")
            values["new_password"] = page.part(
                "new_password",
                action="/x",
                form="f",
                token_field=token,
                button="Go",
                least="15",
                password_hint="15",
            )
        elif name == "invitations":
            button = page.part("invitation_button", form="f", id="1")
            person = {"email": "a@b.example", "role": "Admin", "organisation": "School"}
            people = [
                page.part("invitation", id=str(number), button=one, **person)
                for number, one in enumerate((button, page.part("invitation_owners")))
            ]
            values["people"] = Html(f"<ul>{''.join(people)}</ul>")
            values["link"] = page.part(
                "invitation_link", email="a@b.example", link="https://x", mailed=""
            )
            values["more"] = page.part("invitations_more", before="1")
        elif name == "account":
            more = page.part(
                "account_factor_more",
                form="f",
                remove=page.part("account_remove_app", form="f"),
            )
            values["factor"] = page.part(
                "account_factor",
                said="x",
                form="f",
                button="Go",
                more=more,
                passkeys=page.part("passkey_row", id="1", called="x", about="y", form="f"),
            )
            button = page.part("session_end", form="f", id="1")
            row = page.part(
                "session_row", id="1", what="x", where="y", seen="z", here="", button=button
            )
            values["sessions"] = Html(f"<ul>{row}</ul>{page.part('sessions_end', form='f')}")
        elif name == "confirm":
            values["first"] = page.part(
                "confirm_password", form="f", email="a@b.example", code=page.part("confirm_code")
            )
        elif name == "login":
            values["passkey"] = asking(page, "passkey", '{"a": "b"}', "f")
        elif name == "add_passkey":
            values["passkey"] = making(page, '{"a": "b"}', "f")
        elif name == "set_up":
            values["codes"] = Html(
                page.part("set_up_codes", codes=Html("<li>x</li>")) + page.part("set_up_codes_kept")
            )
        if name in _WITHOUT_PASSWORD and problems:
            continue  # has no fields
        whole = Page(
            name=name, language=language, values=values, problems=problems, notice="Done"
        ).html()
        checker = _checked(whole)
        assert checker.language == language
        assert TEXTS[language][name] in whole


def test_values_are_escaped() -> None:
    """Also in attributes and in problems."""
    evil = """"'><script>alert(1)</script>"""
    text = Page(
        name="login",
        language="en",
        values={
            "form": evil,
            "next": evil,
            "email": evil,
            "org": evil,
            "session": Html(""),
            "sso": Html(""),
            "passkey": Html(""),
        },
        problems=[Problem(evil, evil)],
        notice=evil,
    ).html()
    assert "<script>a" not in text
    assert text.count("&lt;script&gt;") == 7


@pytest.mark.parametrize(
    ("wish", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en"),
        ("fr-FR,fr;q=0.9,de;q=0.5,en;q=0.4", "de"),
        ("fr", "en"),
        ("de;q=0, en;q=0.1", "en"),
        ("de;q=x, *", "en"),
        ("en;q=0.5,de;q=0.9", "de"),
        ("," * 500, "en"),
    ],
)
def test_the_first_language_that_there_is_is_spoken(wish: str, language: str) -> None:
    """By the weights of Accept-Language, English otherwise."""
    assert language_of(wish) == language


@pytest.mark.parametrize(
    ("wish", "path"),
    [
        ("/auth/account", "/auth/account"),
        ("/auth/invitations", "/auth/invitations"),
        ("/dashboard/devices?status=online", "/dashboard/devices?status=online"),
        ("/dashboard", "/dashboard"),
        ("//evil.example/dashboard", ""),
        ("https://evil.example", ""),
        ("/\\evil.example", ""),
        ("/dashboard\r\nset-cookie: x", ""),
        ("/dashboardx", ""),
        ("/auth/forms/logout", ""),
        ("", ""),
    ],
)
def test_a_login_leads_to_pages_of_ours_alone(wish: str, path: str) -> None:
    """Whatever a link to the login page says."""
    assert next_of(wish) == path


@pytest.mark.parametrize(
    "pasted",
    [
        "pbn2-Ab_9",
        "  pbn2-Ab_9\n",
        "https://evergreen.school.example/auth/accept#token=pbn2-Ab_9",
        "#token=pbn2-Ab_9",
        "token=pbn2-Ab_9",
    ],
)
def test_a_pasted_link_is_as_good_as_its_code(pasted: str) -> None:
    """People copy what they have."""
    assert token_of(pasted) == "pbn2-Ab_9"


def test_rules_are_told_in_the_pages_language() -> None:
    """And as they are where no text is known."""
    german = TEXTS["de"]
    twelve = rule_text(german, "must have at least 12 characters")
    assert twelve == "muss mindestens 12 Zeichen haben"
    assert rule_text(german, "must have at least 1 characters") == "fehlt"
    tab = rule_text(german, "must not contain the character U+0009")
    assert tab == "enthält ein Zeichen, das nicht erlaubt ist: U+0009"
    assert rule_text(german, "something new") == "something new"


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b"a=1; __Host-x=ours", "ours"),
        (b"a=1;\t__Host-x=ours; __Host-x=other", "ours"),
        (b"\xa0__Host-x=tossed; __Host-x=ours", "ours"),
        (b"\x85__Host-x=tossed", ""),
        (b"\xe2\x80\x83__Host-x=tossed", ""),
        (b"__Host-x\xa0=tossed; x=1", ""),
    ],
)
def test_no_sibling_domain_sets_a_cookie_of_the_host(sent: bytes, value: str) -> None:
    """Browsers let a server of the whole domain set a name that only begins with another blank."""
    request = Request({"type": "http", "headers": [(b"cookie", sent)]})
    assert cookie(request, "__Host-x") == value
