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
        "forgot_mail_intro": "Enter the address of your account. You get a mail with a link, with"
        " which you choose a new password.",
        "forgot_mail_button": "Send me a link",
        "forgot_sent": "If {0} is the address of an account here, a mail to it is on its way. Its"
        " link works for one hour. Nothing in your mailbox? Look among the junk mail; there are at"
        " most three mails within an hour. Invited people without a password yet ask for a"
        " new invitation.",
        "link_mailed": "It goes there by mail, too.",
        "have_code": "You have a link or a code already?",
        "forgot_button": "Set password and sign in",
        "back_to_login": "Back to sign-in",
        "role": "Role",
        "organisation": "Organisation",
        "change_password": "Change password",
        "change_intro": "A new password signs you out everywhere else.",
        "current_password": "Current password",
        "change_button": "Change password",
        "changed": "Your password is changed. Everywhere else you are signed out.",
        "logout_button": "Sign out",
        "signed_in": "You are signed in",
        "signed_in_intro": "This installation has no web console. What you can do here:",
        "see_account": "See your account, change your password, sign out",
        "see_docs": "Read the API documentation",
        "factor": "Second factor",
        "factor_off": "Your password alone opens your account.",
        "factor_on": "Signing in takes a code of your authenticator app, since {0}. Recovery codes"
        " left: {1}.",
        "factor_required": "Your organisation asks for a second factor from {0} on.",
        "factor_done": "Your authenticator app is set up. From now on signing in takes a code of"
        " it. Everywhere else you are signed out.",
        "factor_removed": "Your authenticator app and your recovery codes open nothing any more.",
        "factor_needed": "Your organisation asks for a second factor: set up another app, which"
        " takes the place of this one.",
        "set_up_app": "Set up an authenticator app",
        "another_app": "Set up another app in its place",
        "new_codes": "New recovery codes",
        "remove_app": "Remove the authenticator app",
        "recovery_codes": "Your recovery codes",
        "codes_intro": "Each of them opens your account once, together with your password, when you"
        " do not have the app. Print them, or keep them where you keep passwords. They are not"
        " shown again.",
        "codes_kept": "I have kept them",
        "codes_stay": "Your recovery codes stay as they are.",
        "keep_codes": "1. Keep your recovery codes",
        "scan": "2. Scan this with your authenticator app",
        "or_type": "Or type this key into it:",
        "enter_code": "3. Enter the code that the app shows",
        "code": "Code",
        "confirm_button": "Confirm",
        "set_up": "Set up your authenticator app",
        "set_up_first": "A second factor is needed",
        "set_up_required": "Your organisation asks for a second factor. Have an authenticator app"
        " ready, such as Aegis, FreeOTP or Google Authenticator: it shows a code that you enter"
        " after your password.",
        "set_up_button": "Set up an app",
        "signed_in_with": "You sign in as",
        "second_factor": "Second step",
        "second_factor_intro": "Enter the six digits that your authenticator app shows, or one of"
        " your recovery codes.",
        "lost_app": "Neither at hand? An Owner of your organisation can reset your second factor.",
        "login_over": "That took too long, or codes were wrong. Sign in again.",
        "wrong_code": "The code is wrong, or was used before. Codes of an app are right only when"
        " the clock of your phone is: here it is {0} UTC.",
        "code_missing": "Enter a code, too.",
        "factor_passkeys": "Signing in takes a passkey, or your password with a recovery code."
        " Recovery codes left: {0}.",
        "passkey_name": "What to call it",
        "passkey_first_name": "My device",
        "passkey_failed": "The passkey could not be used. Try again, or sign in another way.",
        "passkey_script": "Passkeys need JavaScript, and a browser that has them.",
        "use_passkey": "Use a passkey",
        "make_passkey": "Make a passkey",
        "add_passkey": "Add a passkey",
        "add_passkey_intro": "Your device, or a security key, opens your account from then on with"
        " a fingerprint or a PIN, without password and code.",
        "remove_passkey": "Remove this passkey",
        "passkey_about": "added on {0}, last used: {1}",
        "passkey_done": "Your passkey is added.",
        "passkey_removed": "That passkey opens nothing any more.",
        "wrong_passkey": "The passkey was not recognised. Try again, or sign in another way.",
        "app_code_wrong": "is none that your app shows for this key now. The clock of your phone"
        " must be right: here it is {0} UTC.",
        "confirm": "Is it still you?",
        "confirm_intro": "You signed in a while ago. Before this is changed, enter your password"
        " again.",
        "confirm_elsewhere": "You signed in a while ago. Before this is changed, your organisation"
        " asks you once more who you are.",
        "confirmed": "Thank you. Now do once more what you wanted to do.",
        "sessions": "Where you are signed in",
        "this_session": "(this browser)",
        "end_session": "Sign out there",
        "end_others": "Sign out everywhere else",
        "session_ended_there": "That session has ended.",
        "others_ended": "Everywhere else you are signed out.",
        "invitations": "Invitations",
        "invitations_intro": "People who are invited and have not set a password yet. A new link"
        " ends the one before.",
        "invitations_mailed": "It goes to them by mail, and is shown here as well.",
        "invitations_not_mailed": "Nothing is mailed: make a link and send it to them yourself.",
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
        "sso_button": "Sign in with {0}",
        "sso_or": "Or with a password that you have here:",
        "sso_email": "Your address at your organisation",
        "sso_email_button": "Sign in with your organisation",
        "going": "Sign in",
        "sso_going": "You go on to the sign-in of your organisation.",
        "sso_done": "You are signed in.",
        "sso_leaving": (
            "You are signed out here. Your organisation's sign-in asks whether to sign out there,"
            " too."
        ),
        "sso_stale": "This sign-in was not begun in this browser, took longer than ten minutes, or"
        " was used already. Sign in again.",
        "sso_cancelled": "The sign-in of your organisation did not let you in, or you went back.",
        "sso_not_taken": "The sign-in of your organisation gave an answer that cannot be used. Try"
        " again; if it stays so, tell your administrator, who finds the reason in the log.",
        "sso_no_account": "Your organisation knows you, but you have no account here that it opens."
        " Ask an Owner of your organisation.",
        "sso_unverified": "The sign-in of your organisation has not verified your e-mail address.",
        "sso_away": "The sign-in of your organisation does not answer. Try again later; with a"
        " password that you have here you get in as always.",
        "no_provider": "No organisation signs in here with that. Check the address, or sign in with"
        " a password that you have here.",
        "disabled": "Your account is disabled. Ask an Owner of your organisation.",
        "archived": "Your organisation is archived; nobody can sign in.",
        "local_off": (
            "Only Owners of your organisation have a password here. Sign in with your"
            " organisation's account."
        ),
        "links": "Sign-in with your organisation",
        "links_intro": "Once linked, your organisation's sign-in opens this account, too. Your"
        " password goes on working.",
        "link_button": "Link with {0}",
        "unlink_button": "Unlink {0}",
        "linked": "Your account is linked.",
        "unlinked": "The link is taken back.",
        "already_linked": "That account of your organisation, or this one, is linked already.",
        "not_linkable": "This account cannot be linked with that.",
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
        "forgot_mail_intro": "Geben Sie die Adresse Ihres Kontos ein. Sie bekommen eine Mail mit"
        " einem Link, mit dem Sie ein neues Passwort wählen.",
        "forgot_mail_button": "Link schicken",
        "forgot_sent": "Wenn {0} die Adresse eines Kontos ist, ist eine Mail dorthin unterwegs. Der"
        " Link gilt eine Stunde. Nichts im Postfach? Sehen Sie bei den Spam-Mails nach; mehr als"
        " drei Mails in einer Stunde gibt es nicht. Wer eingeladen ist und noch kein Passwort hat,"
        " bittet um eine neue Einladung.",
        "link_mailed": "Er geht auch per Mail dorthin.",
        "have_code": "Sie haben schon einen Link oder Code?",
        "forgot_button": "Passwort festlegen und anmelden",
        "back_to_login": "Zurück zur Anmeldung",
        "role": "Rolle",
        "organisation": "Organisation",
        "change_password": "Passwort ändern",
        "change_intro": "Mit einem neuen Passwort werden Sie überall sonst abgemeldet.",
        "current_password": "Bisheriges Passwort",
        "change_button": "Passwort ändern",
        "changed": "Ihr Passwort ist geändert. Überall sonst sind Sie abgemeldet.",
        "logout_button": "Abmelden",
        "signed_in": "Sie sind angemeldet",
        "signed_in_intro": "Diese Installation hat keine Web-Konsole. Hier können Sie:",
        "see_account": "Ihr Konto ansehen, das Passwort ändern, sich abmelden",
        "see_docs": "die API-Dokumentation lesen",
        "factor": "Zweiter Faktor",
        "factor_off": "Ihr Passwort allein öffnet Ihr Konto.",
        "factor_on": "Zum Anmelden gehört ein Code Ihrer Authenticator-App, seit {0}. Übrige"
        " Wiederherstellungscodes: {1}.",
        "factor_required": "Ihre Organisation verlangt ab {0} einen zweiten Faktor.",
        "factor_done": "Ihre Authenticator-App ist eingerichtet. Von jetzt an gehört zum Anmelden"
        " ein Code daraus. Überall sonst sind Sie abgemeldet.",
        "factor_removed": "Ihre Authenticator-App und Ihre Wiederherstellungscodes öffnen nichts"
        " mehr.",
        "factor_needed": "Ihre Organisation verlangt einen zweiten Faktor: Richten Sie eine andere"
        " App ein, die an die Stelle dieser tritt.",
        "set_up_app": "Authenticator-App einrichten",
        "another_app": "Andere App an ihrer Stelle einrichten",
        "new_codes": "Neue Wiederherstellungscodes",
        "remove_app": "Authenticator-App entfernen",
        "recovery_codes": "Ihre Wiederherstellungscodes",
        "codes_intro": "Jeder davon öffnet einmal Ihr Konto, zusammen mit Ihrem Passwort, wenn Sie"
        " die App nicht haben. Drucken Sie sie aus oder legen Sie sie zu Ihren Passwörtern. Sie"
        " werden nicht noch einmal gezeigt.",
        "codes_kept": "Ich habe sie aufbewahrt",
        "codes_stay": "Ihre Wiederherstellungscodes bleiben, wie sie sind.",
        "keep_codes": "1. Wiederherstellungscodes aufbewahren",
        "scan": "2. Mit der Authenticator-App scannen",
        "or_type": "Oder diesen Schlüssel eintippen:",
        "enter_code": "3. Den Code eingeben, den die App zeigt",
        "code": "Einmalcode",
        "confirm_button": "Bestätigen",
        "set_up": "Authenticator-App einrichten",
        "set_up_first": "Ein zweiter Faktor ist nötig",
        "set_up_required": "Ihre Organisation verlangt einen zweiten Faktor. Halten Sie eine"
        " Authenticator-App bereit, etwa Aegis, FreeOTP oder Google Authenticator: Sie zeigt einen"
        " Code, den Sie nach dem Passwort eingeben.",
        "set_up_button": "App einrichten",
        "signed_in_with": "Sie melden sich an als",
        "second_factor": "Zweiter Schritt",
        "second_factor_intro": "Geben Sie die sechs Ziffern ein, die Ihre Authenticator-App zeigt,"
        " oder einen Ihrer Wiederherstellungscodes.",
        "lost_app": "Beides nicht zur Hand? Ein Owner Ihrer Organisation kann Ihren zweiten Faktor"
        " zurücksetzen.",
        "login_over": "Das hat zu lange gedauert, oder Codes waren falsch. Melden Sie sich neu an.",
        "wrong_code": "Der Code ist falsch oder schon gebraucht. Codes einer App stimmen nur, wenn"
        " die Uhr Ihres Telefons stimmt: Hier ist es {0} UTC.",
        "code_missing": "Geben Sie auch einen Code ein.",
        "factor_passkeys": "Zum Anmelden dient ein Passkey oder Ihr Passwort mit einem"
        " Wiederherstellungscode. Übrige Wiederherstellungscodes: {0}.",
        "passkey_name": "Wie er heißen soll",
        "passkey_first_name": "Mein Gerät",
        "passkey_failed": "Der Passkey ging nicht. Versuchen Sie es noch einmal, oder melden Sie"
        " sich anders an.",
        "passkey_script": "Passkeys brauchen JavaScript und einen Browser, der sie kennt.",
        "use_passkey": "Passkey verwenden",
        "make_passkey": "Passkey anlegen",
        "add_passkey": "Passkey hinzufügen",
        "add_passkey_intro": "Ihr Gerät oder ein Sicherheitsschlüssel öffnet dann Ihr Konto mit"
        " Fingerabdruck oder PIN, ohne Passwort und Code.",
        "remove_passkey": "Diesen Passkey entfernen",
        "passkey_about": "angelegt am {0}, zuletzt gebraucht: {1}",
        "passkey_done": "Ihr Passkey ist hinzugefügt.",
        "passkey_removed": "Dieser Passkey öffnet nichts mehr.",
        "wrong_passkey": "Der Passkey wurde nicht erkannt. Versuchen Sie es noch einmal, oder"
        " melden Sie sich anders an.",
        "app_code_wrong": "ist keiner, den Ihre App für diesen Schlüssel jetzt zeigt. Die Uhr Ihres"
        " Telefons muss stimmen: Hier ist es {0} UTC.",
        "confirm": "Sind Sie es noch?",
        "confirm_intro": "Sie haben sich vor einer Weile angemeldet. Bevor das geändert wird, geben"
        " Sie noch einmal Ihr Passwort ein.",
        "confirm_elsewhere": "Sie haben sich vor einer Weile angemeldet. Bevor das geändert wird,"
        " fragt Ihre Organisation noch einmal, wer Sie sind.",
        "confirmed": "Danke. Tun Sie jetzt noch einmal, was Sie vorhatten.",
        "sessions": "Wo Sie angemeldet sind",
        "this_session": "(dieser Browser)",
        "end_session": "Dort abmelden",
        "end_others": "Überall sonst abmelden",
        "session_ended_there": "Diese Sitzung ist beendet.",
        "others_ended": "Überall sonst sind Sie abgemeldet.",
        "invitations": "Einladungen",
        "invitations_intro": "Wer eingeladen ist und noch kein Passwort hat. Ein neuer Link beendet"
        " den vorigen.",
        "invitations_mailed": "Er geht per Mail dorthin und wird auch hier gezeigt.",
        "invitations_not_mailed": "Es geht keine Mail hinaus: Machen Sie einen Link und schicken"
        " Sie ihn selbst.",
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
        "sso_button": "Anmelden mit {0}",
        "sso_or": "Oder mit einem Passwort, das Sie hier haben:",
        "sso_email": "Ihre Adresse in Ihrer Organisation",
        "sso_email_button": "Mit Ihrer Organisation anmelden",
        "going": "Anmelden",
        "sso_going": "Es geht weiter zur Anmeldung Ihrer Organisation.",
        "sso_done": "Sie sind angemeldet.",
        "sso_leaving": (
            "Sie sind hier abgemeldet. Die Anmeldung Ihrer Organisation fragt, ob Sie sich auch"
            " dort abmelden."
        ),
        "sso_stale": "Diese Anmeldung hat nicht in diesem Browser begonnen, länger als zehn Minuten"
        " gedauert oder wurde schon benutzt. Melden Sie sich neu an.",
        "sso_cancelled": "Die Anmeldung Ihrer Organisation hat Sie nicht eingelassen, oder Sie sind"
        " umgekehrt.",
        "sso_not_taken": "Die Anmeldung Ihrer Organisation hat eine Antwort gegeben, die nicht"
        " brauchbar ist. Versuchen Sie es noch einmal; bleibt es so, sagen Sie es denen, die sie"
        " verwalten: Der Grund steht im Protokoll.",
        "sso_no_account": "Ihre Organisation kennt Sie, aber Sie haben hier kein Konto, das sie"
        " öffnet. Fragen Sie einen Owner Ihrer Organisation.",
        "sso_unverified": "Die Anmeldung Ihrer Organisation hat Ihre E-Mail-Adresse nicht"
        " bestätigt.",
        "sso_away": "Die Anmeldung Ihrer Organisation antwortet nicht. Versuchen Sie es später"
        " noch einmal; mit einem Passwort von hier kommen Sie hinein wie immer.",
        "no_provider": "Damit meldet sich hier keine Organisation an. Prüfen Sie die Adresse, oder"
        " melden Sie sich mit einem Passwort von hier an.",
        "disabled": "Ihr Konto ist gesperrt. Fragen Sie einen Owner Ihrer Organisation.",
        "archived": "Ihre Organisation ist archiviert; niemand kann sich anmelden.",
        "local_off": (
            "Nur Owner Ihrer Organisation haben hier ein Passwort. Melden Sie sich mit dem Konto"
            " Ihrer Organisation an."
        ),
        "links": "Anmelden mit Ihrer Organisation",
        "links_intro": "Verknüpft öffnet auch die Anmeldung Ihrer Organisation dieses Konto. Ihr"
        " Passwort gilt weiter.",
        "link_button": "Verknüpfen mit {0}",
        "unlink_button": "Nicht mehr verknüpfen mit {0}",
        "linked": "Ihr Konto ist verknüpft.",
        "unlinked": "Die Verknüpfung ist gelöst.",
        "already_linked": "Jenes Konto Ihrer Organisation oder dieses hier ist schon verknüpft.",
        "not_linkable": "Dieses Konto lässt sich damit nicht verknüpfen.",
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
    "WRONG_CODE": "wrong_code",
    "WRONG_PASSKEY": "wrong_passkey",
    "OTP_NEEDED": "code_missing",
    "SECOND_FACTOR_REQUIRED": "factor_needed",
    "SSO_STALE": "sso_stale",
    "SSO_CANCELLED": "sso_cancelled",
    "SSO_NOT_TAKEN": "sso_not_taken",
    "SSO_NO_ACCOUNT": "sso_no_account",
    "SSO_EMAIL_UNVERIFIED": "sso_unverified",
    "PROVIDER_AWAY": "sso_away",
    "NO_PROVIDER": "no_provider",
    "ACCOUNT_DISABLED": "disabled",
    "ORGANISATION_ARCHIVED": "archived",
    "LOCAL_LOGIN_OFF": "local_off",
    "ALREADY_LINKED": "already_linked",
    "NOT_LINKABLE": "not_linkable",
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
    (re.compile(r"is none that your app .* (\d\d:\d\d:\d\d) UTC").fullmatch, "app_code_wrong"),
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
