"""What the pages say, in English and German."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from services.identity.authenticators.password_rules import BREACHED, COMMON, NAMES, REPEATS, SAME

LANGUAGES: Final = ("en", "de")

TEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        "product": "Evergreen",
        "error_prefix": "Error: ",
        "problem": "There is a problem",
        "email": "E-mail address",
        "password": "Password",
        "docs": "API documentation",
        "account": "Your account",
        "console": "Console",
        "login": "Sign in",
        "login_intro": "For administrators of devices.",
        "login_button": "Sign in",
        "forgot_link": "Forgot your password?",
        "accept_link": "Invited? Set your password",
        "signed_out": "You are signed out.",
        "signed_in_as": "You are signed in as",
        "go_on": "Go on",
        "accept": "Accept your invitation",
        "accept_intro": "Choose a password. With it and your e-mail address you sign in from then"
        " on.",
        "token": "Invitation code",
        "token_hint": "The link that you were given, or the code in it behind “token=”.",
        "new_password": "New password",
        "new_password_hint": "At least {0} characters. Four or five words that nobody connects"
        " with you are easy to remember.",
        "repeat": "Repeat the new password",
        "accept_button": "Set password and sign in",
        "forgot": "Forgot your password?",
        "forgot_intro": "This installation sends no mail. Ask an Owner of your organisation to"
        " invite you again: you get a link with which you choose a new password. Who runs the"
        " server can help the last Owner.",
        "have_code": "You have a link or a code already?",
        "forgot_button": "Set password and sign in",
        "back_to_login": "Back to sign-in",
        "role": "Role",
        "organisation": "Organisation",
        "change_password": "Change password",
        "change_intro": "You are signed out everywhere else.",
        "current_password": "Current password",
        "change_button": "Change password",
        "changed": "Your password is changed. Everywhere else you are signed out.",
        "logout_button": "Sign out",
        "signed_in": "You are signed in",
        "signed_in_intro": "This installation has no web console. What you can do here:",
        "see_account": "See your account, change your password, sign out",
        "see_docs": "Read the API documentation",
        "invitations": "Invitations",
        "invitations_intro": "People who are invited and have not set a password yet. Nothing is"
        " mailed: make a link and send it to them yourself. A new link ends the one before.",
        "nobody_invited": "Nobody is waiting for a link.",
        "new_link": "New link",
        "owners_invite": "Only an Owner may invite this person again.",
        "more_invitations": "More invitations",
        "link": "Invitation link",
        "link_made": "This is the link for",
        "link_once": "Copy it now: it is not shown again. It works once, within seven days.",
        "role_may_not": "Only Owners and Admins may do this.",
        "not_there": "There is no such user.",
        "wrong_credentials": "The e-mail address or the password is wrong.",
        "wrong_invitation": "This invitation is not valid any more, or incomplete. Ask for a new"
        " one.",
        "session_ended": "Your session has ended. Sign in again.",
        "too_many": "There were too many attempts. Wait a moment, then try again.",
        "unavailable": "That does not work just now. Try again in a moment.",
        "foreign_form": "The form was open for too long, or your browser does not keep cookies."
        " Please send it again.",
        "must_repeat": "The two passwords are not the same.",
        "missing": "is missing",
        "too_short": "must have at least {0} characters",
        "no_such_character": "must not contain the character {0}",
        "repeats": "must not repeat or continue itself, as abcabc or 123456 do",
        "made_of_names": "must be more than your name or address, your organisation or this product"
        " with digits",
        "made_of_words": "must be more than one or two common words with digits",
        "breached": "is on the list of passwords that were stolen elsewhere; choose another one",
        "the_same": "must be another one than until now",
        "too_long": "must have at most {0} characters",
        "no_email": "must be an e-mail address, such as name@school.example",
        "wrong": "is wrong",
    },
    "de": {
        "product": "Evergreen",
        "error_prefix": "Fehler: ",
        "problem": "Das hat nicht geklappt",
        "email": "E-Mail-Adresse",
        "password": "Passwort",
        "docs": "API-Dokumentation",
        "account": "Ihr Konto",
        "console": "Konsole",
        "login": "Anmelden",
        "login_intro": "Für alle, die Geräte verwalten.",
        "login_button": "Anmelden",
        "forgot_link": "Passwort vergessen?",
        "accept_link": "Eingeladen? Passwort festlegen",
        "signed_out": "Sie sind abgemeldet.",
        "signed_in_as": "Sie sind angemeldet als",
        "go_on": "Weiter",
        "accept": "Einladung annehmen",
        "accept_intro": "Wählen Sie ein Passwort. Damit und mit Ihrer E-Mail-Adresse melden Sie"
        " sich künftig an.",
        "token": "Einladungscode",
        "token_hint": "Der Link, den Sie bekommen haben, oder der Code darin hinter „token=“.",
        "new_password": "Neues Passwort",
        "new_password_hint": "Mindestens {0} Zeichen. Vier oder fünf Wörter, die niemand mit"
        " Ihnen verbindet, merken sich leicht.",
        "repeat": "Neues Passwort wiederholen",
        "accept_button": "Passwort festlegen und anmelden",
        "forgot": "Passwort vergessen?",
        "forgot_intro": "Diese Installation verschickt keine Mails. Bitten Sie einen Owner Ihrer"
        " Organisation, Sie neu einzuladen: Sie bekommen einen Link, mit dem Sie ein neues"
        " Passwort wählen. Dem letzten Owner hilft, wer den Server betreibt.",
        "have_code": "Sie haben schon einen Link oder Code?",
        "forgot_button": "Passwort festlegen und anmelden",
        "back_to_login": "Zurück zur Anmeldung",
        "role": "Rolle",
        "organisation": "Organisation",
        "change_password": "Passwort ändern",
        "change_intro": "Überall sonst werden Sie abgemeldet.",
        "current_password": "Bisheriges Passwort",
        "change_button": "Passwort ändern",
        "changed": "Ihr Passwort ist geändert. Überall sonst sind Sie abgemeldet.",
        "logout_button": "Abmelden",
        "signed_in": "Sie sind angemeldet",
        "signed_in_intro": "Diese Installation hat keine Web-Konsole. Hier können Sie:",
        "see_account": "Ihr Konto ansehen, das Passwort ändern, sich abmelden",
        "see_docs": "die API-Dokumentation lesen",
        "invitations": "Einladungen",
        "invitations_intro": "Wer eingeladen ist und noch kein Passwort hat. Es geht keine Mail"
        " hinaus: Machen Sie einen Link und schicken Sie ihn selbst. Ein neuer Link beendet den"
        " vorigen.",
        "nobody_invited": "Niemand wartet auf einen Link.",
        "new_link": "Neuer Link",
        "owners_invite": "Nur ein Owner kann diese Person wieder einladen.",
        "more_invitations": "Weitere Einladungen",
        "link": "Einladungslink",
        "link_made": "Das ist der Link für",
        "link_once": "Kopieren Sie ihn jetzt: Er wird nicht noch einmal gezeigt. Er gilt einmal,"
        " innerhalb von sieben Tagen.",
        "role_may_not": "Das können nur Owner und Admins.",
        "not_there": "Diesen Benutzer gibt es nicht.",
        "wrong_credentials": "Die E-Mail-Adresse oder das Passwort ist falsch.",
        "wrong_invitation": "Diese Einladung gilt nicht mehr oder ist unvollständig. Bitten Sie um"
        " eine neue.",
        "session_ended": "Ihre Sitzung ist beendet. Melden Sie sich neu an.",
        "too_many": "Es gab zu viele Versuche. Warten Sie einen Moment und versuchen Sie es noch"
        " einmal.",
        "unavailable": "Das geht gerade nicht. Versuchen Sie es gleich noch einmal.",
        "foreign_form": "Das Formular war zu lange offen, oder Ihr Browser behält keine Cookies."
        " Bitte schicken Sie es noch einmal ab.",
        "must_repeat": "Die beiden Passwörter sind nicht gleich.",
        "missing": "fehlt",
        "too_short": "muss mindestens {0} Zeichen haben",
        "no_such_character": "enthält ein Zeichen, das nicht erlaubt ist: {0}",
        "repeats": "darf sich nicht wiederholen oder fortsetzen wie abcabc oder 123456",
        "made_of_names": "muss mehr sein als Ihr Name, Ihre Adresse, Ihre Organisation oder dieses"
        " Produkt mit Ziffern",
        "made_of_words": "muss mehr sein als ein oder zwei übliche Wörter mit Ziffern",
        "breached": "steht auf der Liste anderswo gestohlener Passwörter; wählen Sie ein anderes",
        "the_same": "muss ein anderes sein als bisher",
        "too_long": "darf höchstens {0} Zeichen haben",
        "no_email": "muss eine E-Mail-Adresse sein, etwa name@schule.example",
        "wrong": "ist falsch",
    },
}

REASONS: Final[Mapping[str, str]] = {
    "WRONG_CREDENTIALS": "wrong_credentials",
    "WRONG_INVITATION": "wrong_invitation",
    "SESSION_ENDED": "session_ended",
    "NO_USER_TOKEN": "session_ended",
    "FOREIGN_FORM": "foreign_form",
    "ROLE_MAY_NOT": "role_may_not",
    "OWNERS_MANAGE_OWNERS": "owners_invite",
    "OWNERS_INVITE_ADMINS_AGAIN": "owners_invite",
    "NOT_FOUND": "not_there",
}
"""The text for an error's reason."""

_RULES: Final[tuple[tuple[Callable[[str], re.Match[str] | None], str], ...]] = (
    (re.compile(r"must have at least 1 characters").fullmatch, "missing"),
    (re.compile(r"must have at least (\d+) characters").fullmatch, "too_short"),
    (re.compile(r"must have at most (\d+) characters").fullmatch, "too_long"),
    (re.compile(r"must not contain the character (U\+[0-9A-F]+).*").fullmatch, "no_such_character"),
    (re.compile(r"must be an e-mail address").fullmatch, "no_email"),
    (re.compile(re.escape(REPEATS)).fullmatch, "repeats"),
    (re.compile(re.escape(NAMES)).fullmatch, "made_of_names"),
    (re.compile(re.escape(COMMON)).fullmatch, "made_of_words"),
    (re.compile(re.escape(BREACHED)).fullmatch, "breached"),
    (re.compile(re.escape(SAME)).fullmatch, "the_same"),
    (re.compile(r"is wrong").fullmatch, "wrong"),
)


def rule_text(texts: Mapping[str, str], rule: str) -> str:
    """A rule that a field breaks, in the page's language; as it is where no text is known."""
    for matches, key in _RULES:
        if (found := matches(rule)) is not None:
            return texts[key].format(*found.groups())
    return rule


def language_of(accept_language: str) -> str:
    """The first of our languages that a browser prefers; English without a wish for one of them."""
    wishes = []
    for position, part in enumerate(accept_language.split(",")[:20]):
        tag, _, weight = part.partition(";")
        language = tag.strip().lower().partition("-")[0]
        try:
            quality = float(weight.strip().removeprefix("q=")) if weight.strip() else 1.0
        except ValueError:
            continue
        if language in LANGUAGES and quality > 0:
            wishes.append((-quality, position, language))
    return min(wishes)[2] if wishes else LANGUAGES[0]
