"""What mails say, in English and German.

`{name}` stands for a detail of the mail. Each text is one paragraph; a link stands alone on a line,
so that programs that show mail find its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from servicekit.times import zone_of
from services.identity.mail.domain import Language


@dataclass(frozen=True, slots=True)
class Text:
    """A mail of a kind in one language."""

    subject: str
    paragraphs: Sequence[str]


_NOT_YOU_EN: Final = (
    "Was it not you? Then change your password now, end the sessions that you do not know, and tell"
    " an Owner of your organisation:\n{account}"
)
_NOT_YOU_DE: Final = (
    "Waren Sie das nicht? Dann ändern Sie jetzt Ihr Passwort, beenden Sie die Sitzungen, die Sie"
    " nicht kennen, und sagen Sie einem Owner Ihrer Organisation Bescheid:\n{account}"
)
_FOOT_EN: Final = (
    "You get this mail because {email} is the address of an account at {host}. Replies to it are"
    " not read."
)
_FOOT_DE: Final = (
    "Sie bekommen diese Mail, weil {email} die Adresse eines Kontos bei {host} ist. Antworten"
    " darauf liest niemand."
)

FEET: Final[Mapping[Language, str]] = {"en": _FOOT_EN, "de": _FOOT_DE}
"""The last paragraph of each mail."""
FEET_OF_TRIES: Final[Mapping[Language, str]] = {
    "en": "You get this mail because somebody tried {email} at {host}. Replies to it are not read.",
    "de": "Sie bekommen diese Mail, weil jemand bei {host} {email} ausprobiert hat. Antworten"
    " darauf liest niemand.",
}
"""That of a mail that may go to any address."""

TEXTS: Final[Mapping[Language, Mapping[str, Text]]] = {
    "en": {
        "invitation": Text(
            "Your invitation to {organisation}",
            (
                "{by} invites you to help manage the devices of {organisation}.",
                "Choose your password here:\n{link}",
                "The link works once, until {until}. If you expected no invitation, do nothing.",
            ),
        ),
        "invitation_again": Text(
            "Choose a new password",
            (
                "{by} has ended the password of your account at {organisation}, and asks you to"
                " choose a new one.",
                "Choose it here:\n{link}",
                "The link works once, until {until}. If this surprises you, ask an Owner of your"
                " organisation before you use it.",
            ),
        ),
        "reset": Text(
            "Set a new password",
            (
                "Somebody has asked for a new password for your account.",
                "If it was you, choose it here:\n{link}",
                "The link works once, until {until}. It signs you out everywhere. Your second"
                " factor, if you have one, stays as it is.",
                "If it was not you, do nothing: your password stays as it is.",
            ),
        ),
        "reset_elsewhere": Text(
            "Your password is kept elsewhere",
            (
                "Somebody has asked for a new password for your account. There is none here that"
                " could be changed: you sign in with the account of your organisation,"
                " {organisation}. Its password is changed there.",
                "Sign in here:\n{login}",
                "If it was not you who asked, do nothing.",
            ),
        ),
        "sign_in": Text(
            "New sign-in to your account",
            (
                "Your account was opened from a browser, or a network, from which you had not"
                " signed in during the last 30 days.",
                "When: {at}\nFrom: {source}\nWith: {program}",
                _NOT_YOU_EN,
            ),
        ),
        "app_added": Text(
            "Authenticator app added",
            (
                "An authenticator app was added to your account. When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "app_removed": Text(
            "Authenticator app removed",
            (
                "The authenticator app was removed from your account. When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "passkey_added": Text(
            "Passkey added",
            (
                "A passkey was added to your account. When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "passkey_removed": Text(
            "Passkey removed",
            (
                "A passkey was removed from your account. When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "factors_reset": Text(
            "Your second factor was reset",
            (
                "{by} has removed the second factor of your account: authenticator app, passkeys"
                " and recovery codes. Your sessions have ended. When: {at}.",
                "If you did not ask for it, tell an Owner of your organisation. Sign in and set up"
                " a new one here:\n{account}",
            ),
        ),
        "password_changed": Text(
            "Your password was changed",
            (
                "The password of your account was changed, and all other sessions have ended."
                " When: {at}.",
                "Was it not you? Then set a new password now, and tell an Owner of your"
                " organisation:\n{forgot}",
            ),
        ),
        "password_ended": Text(
            "Your password was ended",
            (
                "{by} has ended the password of your account. You get a link with which you choose"
                " a new one. When: {at}.",
                "If you did not ask for it, tell an Owner of your organisation.",
            ),
        ),
        "email_changed": Text(
            "The address of your account was changed",
            (
                "{by} has changed the e-mail address of your account from {old} to {new}. When:"
                " {at}.",
                "You sign in with the new address; mail goes there alone. If that is wrong, tell an"
                " Owner of your organisation.",
            ),
        ),
        "api_token_created": Text(
            "API token made",
            (
                "An API token was made that acts for your account. Its name: {token}. It works"
                " until {until}. When it was made: {at}.",
                "Was it not you? Then revoke the token, change your password, and tell an Owner of"
                " your organisation:\n{account}",
            ),
        ),
        "service_token_created": Text(
            "API token of a service account made",
            (
                "Your account has made an API token for the service account {holder}. Its name:"
                " {token}. It works until {until}. When it was made: {at}.",
                "Was it not you? Then revoke the token, change your password, and tell an Owner of"
                " your organisation:\n{account}",
            ),
        ),
        "codes_made": Text(
            "Recovery codes made",
            (
                "Recovery codes were made for your account; earlier ones do not work any more."
                " When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "code_used": Text(
            "Recovery code used",
            (
                "Somebody has signed in to your account with a recovery code. Codes that are left:"
                " {left}. When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "provider_linked": Text(
            "Another way to sign in to your account",
            (
                "From now on {provider} opens your account, too: anyone who signs in there as you."
                " When: {at}.",
                _NOT_YOU_EN,
            ),
        ),
        "api_token_ends": Text(
            "An API token ends soon",
            (
                "The API token {token}, which acts for your account, works until {until}, and has"
                " no successor. What uses it is refused from then on.",
                "Rotate it before, if it is still needed.",
            ),
        ),
        "test": Text(
            "Test mail",
            ("{by} has tried whether this installation can send mail. It can. When: {at}.",),
        ),
    },
    "de": {
        "invitation": Text(
            "Ihre Einladung zu {organisation}",
            (
                "{by} lädt Sie ein, die Geräte von {organisation} mit zu verwalten.",
                "Wählen Sie hier Ihr Passwort:\n{link}",
                "Der Link gilt einmal, bis {until}. Wenn Sie keine Einladung erwarten, tun Sie"
                " nichts.",
            ),
        ),
        "invitation_again": Text(
            "Wählen Sie ein neues Passwort",
            (
                "{by} hat das Passwort Ihres Kontos bei {organisation} für ungültig erklärt und"
                " bittet Sie, ein neues zu wählen.",
                "Wählen Sie es hier:\n{link}",
                "Der Link gilt einmal, bis {until}. Wenn Sie das überrascht, fragen Sie einen Owner"
                " Ihrer Organisation, bevor Sie ihn benutzen.",
            ),
        ),
        "reset": Text(
            "Neues Passwort wählen",
            (
                "Jemand hat um ein neues Passwort für Ihr Konto gebeten.",
                "Wenn Sie es waren, wählen Sie es hier:\n{link}",
                "Der Link gilt einmal, bis {until}. Er meldet Sie überall ab. Ein zweiter Faktor"
                " bleibt, wie er ist.",
                "Wenn Sie es nicht waren, tun Sie nichts: Ihr Passwort bleibt, wie es ist.",
            ),
        ),
        "reset_elsewhere": Text(
            "Ihr Passwort wird anderswo verwaltet",
            (
                "Jemand hat um ein neues Passwort für Ihr Konto gebeten. Hier gibt es keines, das"
                " sich ändern ließe: Sie melden sich mit dem Konto Ihrer Organisation an,"
                " {organisation}. Dessen Passwort ändern Sie dort.",
                "Hier melden Sie sich an:\n{login}",
                "Wenn nicht Sie darum gebeten haben, tun Sie nichts.",
            ),
        ),
        "sign_in": Text(
            "Neue Anmeldung an Ihrem Konto",
            (
                "Ihr Konto wurde in einem Browser oder aus einem Netz geöffnet, in dem Sie sich in"
                " den letzten 30 Tagen nicht angemeldet haben.",
                "Wann: {at}\nVon: {source}\nMit: {program}",
                _NOT_YOU_DE,
            ),
        ),
        "app_added": Text(
            "Authenticator-App hinzugefügt",
            (
                "Zu Ihrem Konto wurde eine Authenticator-App hinzugefügt. Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "app_removed": Text(
            "Authenticator-App entfernt",
            (
                "Die Authenticator-App wurde aus Ihrem Konto entfernt. Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "passkey_added": Text(
            "Passkey hinzugefügt",
            (
                "Zu Ihrem Konto wurde ein Passkey hinzugefügt. Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "passkey_removed": Text(
            "Passkey entfernt",
            (
                "Ein Passkey wurde aus Ihrem Konto entfernt. Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "factors_reset": Text(
            "Ihr zweiter Faktor wurde zurückgesetzt",
            (
                "{by} hat den zweiten Faktor Ihres Kontos entfernt: Authenticator-App, Passkeys und"
                " Wiederherstellungscodes. Ihre Sitzungen sind beendet. Wann: {at}.",
                "Wenn Sie nicht darum gebeten haben, sagen Sie einem Owner Ihrer Organisation"
                " Bescheid. Einen neuen zweiten Faktor richten Sie hier ein:\n{account}",
            ),
        ),
        "password_changed": Text(
            "Ihr Passwort wurde geändert",
            (
                "Das Passwort Ihres Kontos wurde geändert; alle anderen Sitzungen sind beendet."
                " Wann: {at}.",
                "Waren Sie das nicht? Dann wählen Sie jetzt ein neues Passwort und sagen Sie einem"
                " Owner Ihrer Organisation Bescheid:\n{forgot}",
            ),
        ),
        "password_ended": Text(
            "Ihr Passwort gilt nicht mehr",
            (
                "{by} hat das Passwort Ihres Kontos für ungültig erklärt. Sie bekommen einen Link,"
                " mit dem Sie ein neues wählen. Wann: {at}.",
                "Wenn Sie nicht darum gebeten haben, sagen Sie einem Owner Ihrer Organisation"
                " Bescheid.",
            ),
        ),
        "email_changed": Text(
            "Die Adresse Ihres Kontos wurde geändert",
            (
                "{by} hat die E-Mail-Adresse Ihres Kontos von {old} zu {new} geändert. Wann: {at}.",
                "Sie melden sich mit der neuen Adresse an; Mails gehen nur noch dorthin. Wenn das"
                " nicht stimmt, sagen Sie einem Owner Ihrer Organisation Bescheid.",
            ),
        ),
        "api_token_created": Text(
            "API-Token angelegt",
            (
                "Es wurde ein API-Token angelegt, das im Namen Ihres Kontos handelt. Sein Name:"
                " {token}. Es gilt bis {until}. Angelegt: {at}.",
                "Waren Sie das nicht? Dann widerrufen Sie das Token, ändern Sie Ihr Passwort und"
                " sagen Sie einem Owner Ihrer Organisation Bescheid:\n{account}",
            ),
        ),
        "service_token_created": Text(
            "API-Token eines Dienstkontos angelegt",
            (
                "Mit Ihrem Konto wurde ein API-Token für das Dienstkonto {holder} angelegt. Sein"
                " Name: {token}. Es gilt bis {until}. Angelegt: {at}.",
                "Waren Sie das nicht? Dann widerrufen Sie das Token, ändern Sie Ihr Passwort und"
                " sagen Sie einem Owner Ihrer Organisation Bescheid:\n{account}",
            ),
        ),
        "codes_made": Text(
            "Wiederherstellungscodes erstellt",
            (
                "Für Ihr Konto wurden Wiederherstellungscodes erstellt; frühere gelten nicht mehr."
                " Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "code_used": Text(
            "Wiederherstellungscode benutzt",
            (
                "Jemand hat sich mit einem Wiederherstellungscode an Ihrem Konto angemeldet. So"
                " viele Codes sind übrig: {left}. Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "provider_linked": Text(
            "Eine weitere Anmeldung für Ihr Konto",
            (
                "Von jetzt an öffnet auch {provider} Ihr Konto: Wer sich dort als Sie anmeldet, ist"
                " auch hier angemeldet. Wann: {at}.",
                _NOT_YOU_DE,
            ),
        ),
        "api_token_ends": Text(
            "Ein API-Token läuft bald ab",
            (
                "Das API-Token {token}, das im Namen Ihres Kontos handelt, gilt bis {until} und hat"
                " keinen Nachfolger. Was es benutzt, wird dann abgewiesen.",
                "Tauschen Sie es vorher aus, wenn es noch gebraucht wird.",
            ),
        ),
        "test": Text(
            "Testmail",
            (
                "{by} hat ausprobiert, ob diese Installation Mails verschicken kann. Sie kann es."
                " Wann: {at}.",
            ),
        ),
    },
}

_OPERATOR: Final[Mapping[Language, str]] = {
    "en": "The operator of the server",
    "de": "Der Betreiber des Servers",
}
_SOMEBODY: Final[Mapping[Language, str]] = {"en": "Somebody", "de": "Jemand"}
_UNKNOWN_PROGRAM: Final[Mapping[Language, str]] = {
    "en": "an unknown program",
    "de": "einem unbekannten Programm",
}
_PROGRAM: Final[Mapping[Language, str]] = {"en": "{0} on {1}", "de": "{0} unter {1}"}
_BROWSERS: Final = (
    ("Edg/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
    ("curl/", "curl"),
    ("evergreen", "evergreen"),
    ("python", "Python"),
)
"""What stands in a program's word of itself; the first that fits counts."""
_SYSTEMS: Final = (
    ("Android", "Android"),
    ("iPhone", "iOS"),
    ("iPad", "iPadOS"),
    ("CrOS", "ChromeOS"),
    ("Windows", "Windows"),
    ("Mac OS", "macOS"),
    ("Linux", "Linux"),
)
_MONTHS: Final[Mapping[Language, Sequence[str]]] = {
    "en": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    ),
    "de": (
        "Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September",
        "Oktober", "November", "Dezember",
    ),
}  # fmt: skip
_OF_TOKEN: Final = re.compile(r"token:.*\((\S+@\S+)\)", re.DOTALL)
"""Who calls with an API token: the token's name, which may be anything, and its holder."""
_ZONES_DE: Final = {"CET": "MEZ", "CEST": "MESZ"}


def who(language: Language, actor: str) -> str:
    """Who did something, as a mail begins its sentence."""
    if actor.startswith("token:"):
        found = _OF_TOKEN.fullmatch(actor)
        return found[1] if found else _SOMEBODY[language]
    if "@" in actor:
        return actor
    return _OPERATOR[language] if actor.startswith("operator") else _SOMEBODY[language]


def program(language: Language, user_agent: str) -> str:
    """A program by what it says of itself: of words that we know alone, for anybody can write
    anything there."""
    return known_program(language, user_agent) or _UNKNOWN_PROGRAM[language]


def known_program(language: Language, user_agent: str) -> str:
    """The same; empty for one that we do not know."""
    name = next((shown for part, shown in _BROWSERS if part in user_agent), "")
    system = next((shown for part, shown in _SYSTEMS if part in user_agent), "")
    return _PROGRAM[language].format(name, system) if name and system else name


def moment(language: Language, time_zone: str, at: datetime) -> str:
    """A time to the minute, in a time zone (IANA) whose short name it says."""
    local = at.astimezone(zone_of(time_zone) or UTC)
    short = local.tzname() or "UTC"
    short = f"UTC{short}" if short[0] in "+-" else short
    month = _MONTHS[language][local.month - 1]
    if language == "de":
        short = _ZONES_DE.get(short, short)
        return f"{local.day}. {month} {local.year}, {local:%H:%M} Uhr ({short})"
    return f"{local.day} {month} {local.year}, {local:%H:%M} ({short})"
