"""A mail as it is sent: plain text, the same at each attempt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final
from urllib.parse import urlsplit

from services.identity.mail.domain import Mail, one_line, read_address
from services.identity.mail.texts import FEET, FEET_OF_TRIES, TEXTS, moment, program, who
from services.identity.users.domain import invitation_link

MESSAGE: Final = "message"
"""The kind of mails whose text another service has written."""
_TIMES: Final = ("at", "until")
_PLACE: Final = re.compile(r"\{([a-z_]+)\}")
_LONGEST_DETAIL: Final = 300


class Letters:
    """Writes mails.

    Args:
        public_url: where links lead.
        sender: whom they come from.
        name: the right half of their Message-IDs.
    """

    def __init__(self, public_url: str, sender: Address, name: str) -> None:
        self._public_url = public_url.rstrip("/")
        self._host = urlsplit(public_url).netloc
        self._sender = sender
        self._name = name.strip("[]").replace(":", ".")

    def write(self, mail: Mail) -> EmailMessage:
        """A mail with its headers.

        Raises:
            ValueError: the address is none that mail can be sent to, or a detail is missing.
        """
        subject, paragraphs = self._text(mail)
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = read_address(mail.address)
        message["Subject"] = one_line(f"[Evergreen] {subject}")
        message["Date"] = format_datetime(mail.created_at)
        message["Message-ID"] = f"<{mail.id}@{self._name}>"
        # RFC 3834, and what other programs look at: nobody's absence is to be told to us.
        message["Auto-Submitted"] = "auto-generated"
        message["X-Auto-Response-Suppress"] = "All"
        body = "\n\n".join((*paragraphs, f"-- \n{self._foot(mail)}")) + "\n"
        message.set_content(body, charset="utf-8", cte="quoted-printable")
        message["Content-Language"] = mail.language
        return message

    def _text(self, mail: Mail) -> tuple[str, Sequence[str]]:
        if mail.kind == MESSAGE:
            return self._told(mail)
        text = TEXTS[mail.language][mail.kind]
        known = self._known(mail)
        return _filled(text.subject, known), [_filled(one, known) for one in text.paragraphs]

    def _known(self, mail: Mail) -> Mapping[str, str]:
        details = {
            name: one_line(str(value), _LONGEST_DETAIL) for name, value in mail.details.items()
        }
        for name in _TIMES:
            if name in details:
                at = datetime.fromisoformat(details[name])
                details[name] = moment(mail.language, mail.time_zone, at)
        return details | {
            "by": who(mail.language, details.get("by", "")),
            "program": program(mail.language, details.get("program", "")),
            "account": f"{self._public_url}/auth/account",
            "forgot": f"{self._public_url}/auth/forgot",
            "login": f"{self._public_url}/login",
            "link": self._link(mail),
        }

    def _link(self, mail: Mail) -> str:
        if not mail.secret:
            return ""
        if mail.kind == "reset":
            return f"{self._public_url}/auth/forgot#token={mail.secret}"
        return invitation_link(self._public_url, mail.secret) or ""

    def _foot(self, mail: Mail) -> str:
        feet = FEET_OF_TRIES if mail.kind == "test" else FEET
        return _filled(feet[mail.language], {"email": mail.address, "host": self._host})

    def _told(self, mail: Mail) -> tuple[str, Sequence[str]]:
        """The text that another service has written, in the first of its languages that fits."""
        details = mail.details
        texts = details["texts"]
        assert isinstance(texts, dict)
        text = texts.get(mail.language) or next(iter(texts.values()))
        times = details.get("times", {})
        assert isinstance(times, dict)
        known = {
            name: moment(mail.language, mail.time_zone, datetime.fromisoformat(at))
            for name, at in times.items()
        }
        paragraphs = [_filled(one, known) for one in text["paragraphs"]]
        if path := str(details.get("path", "")):
            paragraphs.append(f"{self._public_url}{path}")
        return _filled(text["subject"], known), paragraphs


def _filled(text: str, known: Mapping[str, str]) -> str:
    """A text with its details; what is not known stays as it stands, and no detail is filled
    in turn."""
    return _PLACE.sub(lambda found: known.get(found[1], found[0]), text)
