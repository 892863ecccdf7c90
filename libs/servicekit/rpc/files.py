"""Files that are sent while they are read: CSV, JSON and text.

The number of rows is in the trailers `evergreen-rows` and `evergreen-rows-left-out`. A file that
fails in the middle breaks the HTTP response off (`servicekit.rpc.server`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Final, Generic, Protocol, TypeVar

from google.api.httpbody_pb2 import HttpBody

from servicekit.data.quarantine import readable
from servicekit.rpc.server import Context
from servicekit.spreadsheet import BYTE_ORDER_MARK, LINE_BREAK, csv_line

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

ROWS: Final = "evergreen-rows"
"""Trailer: the rows of the file."""
LEFT_OUT: Final = "evergreen-rows-left-out"
"""Trailer: the rows that could not be written, and are noted as quarantined."""


class Form(Protocol[T_contra]):
    """How items become a file."""

    media_type: str
    ending: str

    def begin(self) -> str:
        """What stands before the first items."""

    def part(self, items: Sequence[T_contra]) -> str:
        """The next items."""

    def end(self) -> str:
        """What makes the file complete."""

    def trailers(self) -> dict[str, str]:
        """What is told behind the file."""


class _Rows(Generic[T]):
    """Counts rows, and leaves out those that cannot be written; they are noted at `where`."""

    def __init__(self, where: str, text: Callable[[T], str], key: Callable[[T], object]) -> None:
        self._where = where
        self._text = text
        self._key = key
        self._rows = 0
        self._left_out = 0

    def _texts(self, items: Sequence[T]) -> list[str]:
        # What cannot be encoded is found here, where only its own row is left out.
        texts = readable(self._where, items, lambda item: _encodable(self._text(item)), self._key)
        self._rows += len(texts)
        self._left_out += len(items) - len(texts)
        return texts

    def trailers(self) -> dict[str, str]:
        """The number of rows, and of those that were left out."""
        return {ROWS: str(self._rows), LEFT_OUT: str(self._left_out)}


def _encodable(text: str) -> str:
    text.encode()
    return text


class CsvFile(_Rows[T]):
    """A CSV file for spreadsheets (`servicekit.spreadsheet`).

    Args:
        where: names this place in notes of rows that cannot be written (`quarantine.place`).
        columns: the header.
        row: an item's cells.
        key: what names an item in such a note.
    """

    media_type = "text/csv; charset=utf-8"
    ending = "csv"

    def __init__(
        self,
        where: str,
        columns: Iterable[str],
        row: Callable[[T], Iterable[str]],
        key: Callable[[T], object],
    ) -> None:
        super().__init__(where, lambda item: LINE_BREAK + csv_line(row(item)), key)
        self._columns = columns

    def begin(self) -> str:
        """The header, behind a byte order mark."""
        return BYTE_ORDER_MARK + csv_line(self._columns)

    def part(self, items: Sequence[T]) -> str:
        """The rows, each behind a line break."""
        return "".join(self._texts(items))

    def end(self) -> str:
        """The last line break, which only a complete file has."""
        return LINE_BREAK


class JsonFile(_Rows[T]):
    """A JSON file: a list, whose bracket closes when it is complete."""

    media_type = "application/json"
    ending = "json"

    def __init__(self, where: str, text: Callable[[T], str], key: Callable[[T], object]) -> None:
        super().__init__(where, text, key)

    def begin(self) -> str:
        """The opening bracket."""
        return "[\n"

    def part(self, items: Sequence[T]) -> str:
        """The items, behind a comma unless they are the first ones."""
        separator = ",\n" if self._rows else ""
        texts = self._texts(items)
        return separator + ",\n".join(texts) if texts else ""

    def end(self) -> str:
        """The closing bracket."""
        return "\n]\n"


class TextFile:
    """A file of texts as they come."""

    def __init__(self, media_type: str, ending: str) -> None:
        self.media_type = media_type
        self.ending = ending

    def begin(self) -> str:
        """Nothing."""
        return ""

    def part(self, items: Sequence[str]) -> str:
        """The texts, joined."""
        return "".join(items)

    def end(self) -> str:
        """Nothing."""
        return ""

    def trailers(self) -> dict[str, str]:
        """None."""
        return {}


async def send_file(
    context: Context, name: str, form: Form[T], pages: AsyncGenerator[Sequence[T], None]
) -> AsyncGenerator[HttpBody, None]:
    """A file in parts, behind headers that name it.

    The headers go with the first page: a refusal before it is an answer of its own.
    """
    text = form.begin()
    begun = False
    async with aclosing(pages):
        async for page in pages:
            if not begun:
                await context.send_headers(
                    {
                        "content-disposition": f'attachment; filename="{name}.{form.ending}"',
                        **({"trailer": ", ".join(names)} if (names := form.trailers()) else {}),
                    }
                )
                begun = True
            text += form.part(page)
            if text:
                yield HttpBody(content_type=form.media_type, data=text.encode())
            text = ""
    if text := text + form.end():
        yield HttpBody(content_type=form.media_type, data=text.encode())
    context.set_trailers(form.trailers())
