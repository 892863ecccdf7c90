"""The pages as HTML: templates of the standard library, in which every value is escaped."""

from __future__ import annotations

import html
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final

from services.identity.pages.texts import TEXTS

_FOLDER: Final = resources.files("services.identity.pages").joinpath("templates")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


class _Template(string.Template):
    """`${name}`, or `${t.key}` for a text of the page's language."""

    idpattern = r"(?-i:[a-z_]+(?:\.[a-z_]+)?)"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to correct, in a field (by its id) or in the whole form."""

    text: str
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page before it is written in a language."""

    name: str
    """Its template, and the text that is its heading."""
    language: str
    values: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[Problem] = ()
    notice: str = ""
    """Something that went well."""

    @property
    def texts(self) -> Mapping[str, str]:
        """The texts of its language."""
        return TEXTS[self.language]

    def html(self) -> str:
        """The page as a whole."""
        heading = self.texts[self.name]
        prefix = self.texts["error_prefix"] if self.problems else ""
        return _fill(
            "layout",
            self.texts,
            language=self.language,
            title=f"{prefix}{heading} - {self.texts['product']}",
            heading=heading,
            problems=self._problems(),
            notice=_fill("notice", self.texts, notice=self.notice) if self.notice else Html(""),
            content=self.part(self.name, **self.values),
        )

    def part(self, name: str, **values: str) -> Html:
        """A part of the page, with the problems of its fields."""
        return _fill(name, self.texts, **{**self._errors(), **values})

    def _problems(self) -> Html:
        if not self.problems:
            return Html("")
        items = "".join(
            f'<li><a href="#{html.escape(one.field)}">{html.escape(one.text)}</a></li>'
            if one.field
            else f"<li>{html.escape(one.text)}</li>"
            for one in self.problems
        )
        return _fill("problems", self.texts, items=Html(items))

    def _errors(self) -> dict[str, str]:
        """What stands at each field: `error_<field>` above it, `invalid_<field>` in its tag."""
        found: dict[str, str] = {}
        for name in _FIELDS:
            text = next((one.text for one in self.problems if one.field == name), "")
            found[f"error_{name}"] = (
                Html(f'<p class="error" id="{name}-error">{html.escape(text)}</p>')
                if text
                else Html("")
            )
            described = [f"{name}-error"] if text else []
            if self.name not in {"login", "confirm"} and name in _HINTED:
                described.append(f"{name}-hint")
            found[f"invalid_{name}"] = Html(
                (' aria-invalid="true"' if text else "")
                + (f' aria-describedby="{" ".join(described)}"' if described else "")
            )
        return found


_FIELDS: Final = ("email", "password", "repeat", "token", "current", "code")
_HINTED: Final = ("password", "token")


def _fill(name: str, texts: Mapping[str, str], **values: str) -> Html:
    escaped = {
        key: value if isinstance(value, Html) else html.escape(value)
        for key, value in values.items()
    }
    said = {f"t.{key}": html.escape(text, quote=True) for key, text in texts.items()}
    return Html(_template(name).substitute(said, **escaped))


@cache
def _template(name: str) -> _Template:
    return _Template(_FOLDER.joinpath(f"{name}.html").read_text(encoding="utf-8"))


@cache
def asset(name: str) -> bytes:
    """A file that pages load."""
    return _FOLDER.joinpath(name).read_bytes()
