"""Files that are sent while they are read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from google.api.httpbody_pb2 import HttpBody

from servicekit.grpc_server import Context
from services.telemetry.domain.files import csv_text

T = TypeVar("T")

_CSV: Final = "text/csv; charset=utf-8"
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_ENDING: Final = {_CSV: "csv", _JSON: "json", _TEXT: "txt"}


async def csv_file(
    pages: AsyncGenerator[list[T], None],
    columns: Sequence[str],
    row: Callable[[T], Sequence[str]],
) -> AsyncGenerator[HttpBody, None]:
    """A CSV file; its last line is `end` and the number of rows."""
    text = csv_text([columns])
    count = 0
    async with aclosing(pages):
        async for page in pages:
            text += csv_text(map(row, page))
            count += len(page)
            yield HttpBody(content_type=_CSV, data=text.encode())
            text = ""
    yield HttpBody(content_type=_CSV, data=csv_text([("end", str(count))]).encode())


async def json_file(
    pages: AsyncGenerator[list[T], None], text_of: Callable[[T], str]
) -> AsyncGenerator[HttpBody, None]:
    """A JSON file: a list, whose bracket closes when it is whole."""
    separator = "[\n"
    async with aclosing(pages):
        async for page in pages:
            text = separator + ",\n".join(map(text_of, page))
            yield HttpBody(content_type=_JSON, data=text.encode())
            separator = ",\n" if page else separator
    yield HttpBody(content_type=_JSON, data=b"\n]\n")


async def text_file(parts: AsyncGenerator[str, None]) -> AsyncGenerator[HttpBody, None]:
    """A file of plain text."""
    async with aclosing(parts):
        async for part in parts:
            yield HttpBody(content_type=_TEXT, data=part.encode())


async def send_file(
    context: Context, name: str, file: AsyncGenerator[HttpBody, None]
) -> AsyncGenerator[HttpBody, None]:
    """The parts of a file, behind headers that name it.

    The headers go with the first part: a refusal before is an answer of its own.
    """
    begun = False
    async with aclosing(file):
        async for part in file:
            if not begun:
                ending = _ENDING[part.content_type]
                await context.send_headers(
                    {"content-disposition": f'attachment; filename="{name}.{ending}"'}
                )
                begun = True
            yield part
