"""Go's `encoding/json` for the structs of the released agent, written from Go's own rules.

It is deliberately not built on Python's `json`, nor on the product's encoder: it is the second
opinion against which the product is checked. Text is decoded as `unquoteBytes` does it (invalid
UTF-8 and half surrogate pairs become U+FFFD), members are matched exactly or else by case folding,
unknown ones are skipped, null changes nothing in a scalar or struct and empties a slice or map,
duplicates are merged into what was there, and `marshal` is `json.Marshal` with its HTML escapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 10_000
_HEX = "0123456789abcdef"
_SPACE = b" \t\r\n"
_DIGITS = b"0123456789"
_ESCAPES = {0x22: '"', 0x5C: "\\", 0x2F: "/", 0x62: "\b", 0x66: "\f", 0x6E: "\n", 0x72: "\r"}
_ESCAPES[0x74] = "\t"


class DecodeError(Exception):
    """What `json.Unmarshal` returns as an error: bad syntax, or a value of the wrong type."""


@dataclass(frozen=True)
class Number:
    """A number as it stood in the text."""

    text: str


class Members(list[tuple[str, Any]]):
    """An object's members in the order of the text, duplicates included."""


class Scanner:
    """Reads one JSON text to its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data + b"\0"
        self.end = len(data)
        self.at = 0

    def document(self) -> Any:
        """The only value of the text."""
        value = self.value(0)
        self._space()
        if self.at != self.end:
            raise DecodeError(f"invalid character after top-level value at {self.at}")
        return value

    def value(self, depth: int) -> Any:
        """One value, and the space before it."""
        self._space()
        first = self.data[self.at]
        if first == 0x22:
            return self.string()
        if first in (0x7B, 0x5B):
            if depth >= MAX_DEPTH:
                raise DecodeError("exceeded max depth")
            return self._object(depth + 1) if first == 0x7B else self._array(depth + 1)
        if first == 0x2D or first in _DIGITS:
            return self._number()
        for word, value in ((b"null", None), (b"true", True), (b"false", False)):
            if self.data.startswith(word, self.at):
                self.at += len(word)
                return value
        raise self._bad("looking for beginning of value")

    def string(self) -> str:
        """One string literal, unquoted as Go does it."""
        if self.data[self.at] != 0x22:
            raise self._bad("looking for a string")
        out: list[str] = []
        at = self.at + 1
        data = self.data
        while True:
            byte = data[at]
            if byte == 0x22:
                self.at = at + 1
                return "".join(out)
            if byte < 0x20:
                self.at = at
                raise self._bad("in string literal")
            if byte == 0x5C:
                self.at = at
                out.append(self._escape())
                at = self.at
            elif byte < 0x80:
                out.append(chr(byte))
                at += 1
            else:
                rune, size = decode_rune(data, at)
                out.append(rune)
                at += size

    def _escape(self) -> str:
        kind = self.data[self.at + 1]
        if kind != 0x75:
            if kind not in _ESCAPES:
                raise self._bad("in string escape code")
            self.at += 2
            return _ESCAPES[kind]
        first = self._u4()
        self.at += 6
        if not 0xD800 <= first < 0xE000:
            return chr(first)
        if first < 0xDC00 and self.data[self.at : self.at + 2] == b"\\u":
            second = self._u4()
            if 0xDC00 <= second < 0xE000:
                self.at += 6
                return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
        return "\ufffd"

    def _u4(self) -> int:
        digits = self.data[self.at + 2 : self.at + 6].decode("latin-1").lower()
        if len(digits) != 4 or any(digit not in _HEX for digit in digits):
            raise self._bad("in \\u hexadecimal character escape")
        return int(digits, 16)

    def _object(self, depth: int) -> Members:
        members = Members()
        self.at += 1
        self._space()
        if self._take(0x7D):
            return members
        while True:
            self._space()
            key = self.string()
            self._space()
            if not self._take(0x3A):
                raise self._bad("after object key")
            members.append((key, self.value(depth)))
            self._space()
            if self._take(0x7D):
                return members
            if not self._take(0x2C):
                raise self._bad("after object key:value pair")

    def _array(self, depth: int) -> list[Any]:
        items: list[Any] = []
        self.at += 1
        self._space()
        if self._take(0x5D):
            return items
        while True:
            items.append(self.value(depth))
            self._space()
            if self._take(0x5D):
                return items
            if not self._take(0x2C):
                raise self._bad("after array element")

    def _number(self) -> Number:
        start = self.at
        self._take(0x2D)
        if not self._take(0x30):
            self._digits()
        if self._take(0x2E):
            self._digits()
        if self._take(0x65) or self._take(0x45):
            if not self._take(0x2B):
                self._take(0x2D)
            self._digits()
        return Number(self.data[start : self.at].decode())

    def _digits(self) -> None:
        start = self.at
        while self.data[self.at] in _DIGITS:
            self.at += 1
        if self.at == start:
            raise self._bad("in numeric literal")

    def _space(self) -> None:
        while self.data[self.at] in _SPACE:
            self.at += 1

    def _take(self, byte: int) -> bool:
        if self.data[self.at] != byte:
            return False
        self.at += 1
        return True

    def _bad(self, where: str) -> DecodeError:
        if self.at >= self.end:
            return DecodeError("unexpected end of JSON input")
        return DecodeError(f"invalid character {self.data[self.at]:#x} {where} at {self.at}")


def decode_rune(data: bytes, at: int) -> tuple[str, int]:
    """`utf8.DecodeRune`: the character at `at` and its length, or U+FFFD and 1 if it is invalid."""
    first = data[at]
    size = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4
    if first < 0xC2 or first > 0xF4 or at + size > len(data):
        return "\ufffd", 1
    rune = first & (0xFF >> (size + 1))
    for byte in data[at + 1 : at + size]:
        if byte & 0xC0 != 0x80:
            return "\ufffd", 1
        rune = rune << 6 | byte & 0x3F
    shortest = (0, 0, 0x80, 0x800, 0x10000)[size]
    if rune < shortest or rune > 0x10FFFF or 0xD800 <= rune < 0xE000:
        return "\ufffd", 1
    return chr(rune), size


class Text:
    """A Go string."""

    def zero(self) -> str:
        """The zero value."""
        return ""

    def decode(self, current: str, value: Any) -> str:
        """A string replaces, null leaves what is there."""
        if value is None:
            return current
        if not isinstance(value, str):
            raise DecodeError("cannot unmarshal into Go value of type string")
        return value

    def encode(self, value: str, out: list[str]) -> None:
        """`appendString` with escapeHTML, character by character."""
        out.append('"')
        for char in value:
            out.append(_quoted(char))
        out.append('"')


class Bool:
    """A Go bool."""

    def zero(self) -> bool:
        """The zero value."""
        return False

    def decode(self, current: bool, value: Any) -> bool:
        """A boolean replaces, null leaves what is there."""
        if value is None:
            return current
        if not isinstance(value, bool):
            raise DecodeError("cannot unmarshal into Go value of type bool")
        return value

    def encode(self, value: bool, out: list[str]) -> None:
        """`true` or `false`."""
        out.append("true" if value else "false")


@dataclass
class Items:
    """A Go slice that is not nil: its backing array, and how much of that it shows."""

    backing: list[Any]
    length: int

    def shown(self) -> list[Any]:
        """The elements of the slice."""
        return self.backing[: self.length]


class Slice:
    """A Go slice."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def zero(self) -> None:
        """The nil slice."""
        return

    def decode(self, current: Items | None, value: Any) -> Items | None:
        """An array is decoded *into* the elements that are there, as Go does it."""
        if value is None:
            return None
        if isinstance(value, Members) or not isinstance(value, list):
            raise DecodeError("cannot unmarshal into Go value of a slice type")
        if not value:
            return Items([], 0)
        backing = list(current.backing) if current else []
        for index, entry in enumerate(value):
            if index == len(backing):
                backing.append(self.inner.zero())
            backing[index] = self.inner.decode(backing[index], entry)
        return Items(backing, len(value))

    def encode(self, value: Items | None, out: list[str]) -> None:
        """nil is `null`, an empty slice is `[]`."""
        if value is None:
            out.append("null")
            return
        out.append("[")
        for index, entry in enumerate(value.shown()):
            if index:
                out.append(",")
            self.inner.encode(entry, out)
        out.append("]")


class StringMap:
    """A Go map[string]string."""

    def zero(self) -> None:
        """The nil map."""
        return

    def decode(self, current: dict[str, str] | None, value: Any) -> dict[str, str] | None:
        """Members are added to the map that is there; the element starts from zero."""
        if value is None:
            return None
        if not isinstance(value, Members):
            raise DecodeError("cannot unmarshal into Go value of type map[string]string")
        out = dict(current or {})
        for key, entry in value:
            out[key] = Text().decode("", entry)
        return out

    def encode(self, value: dict[str, str] | None, out: list[str]) -> None:
        """Keys in the order of their UTF-8 bytes."""
        if value is None:
            out.append("null")
            return
        out.append("{")
        for index, key in enumerate(sorted(value, key=lambda name: name.encode())):
            if index:
                out.append(",")
            Text().encode(key, out)
            out.append(":")
            Text().encode(value[key], out)
        out.append("}")


class Struct:
    """A Go struct: named members in a fixed order. Its value is a dict of all of them."""

    def __init__(self, **members: Any) -> None:
        self.members = members
        self.folded = {fold(name): name for name in members}

    def zero(self) -> dict[str, Any]:
        """The struct of zero values."""
        return {name: member.zero() for name, member in self.members.items()}

    def decode(self, current: dict[str, Any], value: Any) -> dict[str, Any]:
        """Members by exact name, else by folded name; unknown ones are skipped."""
        if value is None:
            return current
        if not isinstance(value, Members):
            raise DecodeError("cannot unmarshal into Go value of a struct type")
        out = dict(current)
        for key, entry in value:
            name = key if key in self.members else self.folded.get(fold(key))
            if name is not None:
                out[name] = self.members[name].decode(out[name], entry)
        return out

    def encode(self, value: dict[str, Any], out: list[str]) -> None:
        """All members, in order, none left out."""
        out.append("{")
        for index, (name, member) in enumerate(self.members.items()):
            if index:
                out.append(",")
            Text().encode(name, out)
            out.append(":")
            member.encode(value[name], out)
        out.append("}")


def fold(name: str) -> str:
    """`foldName` as far as it matters for ASCII names: two letters beyond ASCII fold into it."""
    return "".join(
        char.upper() if char < "\x80" else {"\u017f": "S", "\u212a": "K"}.get(char, char)
        for char in name
    )


def _quoted(char: str) -> str:
    if char in ('"', "\\"):
        return "\\" + char
    if char in "\b\f\n\r\t":
        return "\\" + {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}[char]
    code = ord(char)
    if code < 0x20 or char in "<>&":
        return "\\u00" + _HEX[code >> 4] + _HEX[code & 0xF]
    if code in (0x2028, 0x2029):
        return "\\u202" + _HEX[code & 0xF]
    return char


def unmarshal(schema: Any, data: bytes) -> Any:
    """`json.Unmarshal` into a fresh value of the schema. Raises `DecodeError`."""
    return schema.decode(schema.zero(), Scanner(data).document())


def marshal(schema: Any, value: Any) -> bytes:
    """`json.Marshal` of a value of the schema."""
    out: list[str] = []
    schema.encode(value, out)
    return "".join(out).encode()
