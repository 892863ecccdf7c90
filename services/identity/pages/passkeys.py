"""The forms that ask a browser for a passkey."""

from __future__ import annotations

from services.identity.pages.render import Html, Page


def asking(page: Page, action: str, options: str, form: str, target: str = "") -> Html:
    """A form that asks for a passkey; nothing where there are no options.

    Args:
        action: the name of the form.
        options: what the browser is asked, as JSON.
        form: the token of the page's forms.
        target: where one wants to be afterwards.
    """
    if not options:
        return Html("")
    return page.part(
        "passkey",
        action=action,
        options=options,
        kind="get",
        form=form,
        next=target,
        name_field=Html(""),
        button=page.texts["use_passkey"],
    )


def making(page: Page, options: str, form: str) -> Html:
    """A form that makes a passkey."""
    return page.part(
        "passkey",
        action="new-passkey",
        options=options,
        kind="create",
        form=form,
        next="",
        name_field=page.part("passkey_name"),
        button=page.texts["make_passkey"],
    )
