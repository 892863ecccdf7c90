"""What help shows of values: `NUMBER`, not `<int range>`, and nothing where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from typer.core import TyperArgument, TyperOption

_WORDS: Final = {
    "str": "TEXT",
    "int": "NUMBER",
    "int range": "NUMBER",
    "float": "NUMBER",
    "float range": "NUMBER",
    "path": "PATH",
    "file": "FILE",
    "directory": "DIRECTORY",
    "UUID": "ID",
}
_METHOD: Final = "display_type"
_LIST: Final = re.compile(r"list\[(.*)\]").fullmatch


def plain_word(label: str) -> str:
    """The word for a type of value, as Typer calls it in angle brackets."""
    name = label.removeprefix("<").removesuffix(">")
    if several := _LIST(name):
        return f"{plain_word(several[1])}..."
    return _WORDS.get(name, name)


def show_plain_words() -> None:
    """Has the help of all commands show them."""
    for kind in (TyperArgument, TyperOption):
        # Typer has no setting for it.
        setattr(kind, _METHOD, _plain(getattr(kind, _METHOD)))


def _plain(told: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    def display_type(parameter: Any, context: Any) -> str:
        if getattr(parameter, "is_flag", False):
            return ""
        return plain_word(told(parameter, context))

    return display_type
