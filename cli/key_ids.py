"""Ids of keys as arguments: base64url, of which one in 64 begins as an option does."""

from __future__ import annotations

import re
from typing import Any, Final

from typer.core import TyperCommand

SHORT: Final = 16
"""Characters of an id in tables: commands take its beginning, and --json has all of it."""
_WHOLE: Final = 43
_DASHED: Final = re.compile(r"-[\w-]+", re.ASCII)


class KeyCommand(TyperCommand):
    """A command whose argument is a key: `-IyaDEJ_Zr2PhgS8` is one, and not options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes ids for arguments, whole or as tables show them; else as any command."""
        if "--" not in args:
            options = {name for parameter in self.params for name in parameter.opts}
            keys = [arg for arg in args if arg not in options and _is_dashed_id(arg)]
            if keys:
                args = [*(arg for arg in args if arg not in keys), "--", *keys]
        return super().parse_args(ctx, args)


def _is_dashed_id(text: str) -> bool:
    return len(text) in {SHORT, _WHOLE} and _DASHED.fullmatch(text) is not None
