"""QR codes as SVG, which pages may hold: nothing in them is style or script."""

from __future__ import annotations

import segno


def qr_svg(text: str) -> str:
    """A picture of a text."""
    return str(
        segno.make_qr(text).svg_inline(scale=5, border=4, dark="#000", light="#fff", omitsize=False)
    )
