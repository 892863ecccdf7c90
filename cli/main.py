"""The `evergreen` command: one file a subject, registered here."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Final

import typer

from cli import (
    alerts,
    audit,
    bootstrap,
    certificates,
    database,
    device_lists,
    devices,
    directories,
    enrollment_tokens,
    events,
    factors,
    fips,
    former_names,
    forwarders,
    gates,
    groups,
    init,
    keys,
    mail,
    migrate,
    nats,
    orgs,
    people,
    policies,
    policy_changes,
    policy_drafts,
    policy_sealing,
    policy_variables,
    postgres,
    reports,
    rollouts,
    scim,
    service,
    service_accounts,
    services,
    sets,
    simulate,
    sso_providers,
    tokens,
    tpm_roots,
    up,
    users,
    version,
)
from cli.backup import scheduled as backup
from cli.cluster import commands as cluster
from cli.doctor import commands as doctor
from cli.plain_help import show_plain_words

show_plain_words()
app = typer.Typer(
    name="evergreen",
    help="Runs and administers the Evergreen Selfhost Backend.",
    no_args_is_help=True,
    # A traceback with local variables could show secrets.
    pretty_exceptions_show_locals=False,
)
app.command("up")(up.up)
app.add_typer(service.app)
app.add_typer(postgres.app)
app.add_typer(migrate.app)
app.add_typer(database.app)
backup.app.command("restore-release")(cluster.restore_release)
app.add_typer(backup.app)
app.command("doctor")(doctor.doctor)
app.command("former-names")(former_names.former_names)
app.add_typer(audit.app)
app.add_typer(keys.app)
app.add_typer(fips.app)
app.command("sim")(simulate.sim)
app.command("init")(init.init)
app.command("version")(version.version)
app.command("bootstrap")(bootstrap.bootstrap)
app.add_typer(init.gateway_app)
app.add_typer(nats.app)
app.add_typer(certificates.app)
app.add_typer(events.app)
app.add_typer(forwarders.app)
app.add_typer(alerts.app)
app.add_typer(reports.app)
# As the other nouns were once.
app.add_typer(reports.app, name="report", hidden=True)
app.add_typer(orgs.app)
app.add_typer(users.app)
app.add_typer(people.app)
app.add_typer(factors.app)
device_lists.add_to(devices.app)
app.add_typer(tokens.app)
app.add_typer(service_accounts.app)
app.add_typer(directories.app)
app.add_typer(directories.domains)
app.add_typer(sso_providers.app)
app.add_typer(mail.app)
app.add_typer(scim.app)
app.add_typer(devices.app)
app.add_typer(groups.app)
app.add_typer(enrollment_tokens.app)
policies.app.command("simulate")(policy_changes.simulate)
policy_drafts.add_to(policies.app)
policies.app.command("seal")(policy_sealing.seal)
app.add_typer(policies.app)
app.add_typer(policy_variables.variables)
app.add_typer(policy_variables.secrets)
app.add_typer(rollouts.app)
app.add_typer(gates.app)
app.command("plan")(sets.plan)
app.command("apply")(sets.apply)
app.command("export")(sets.export)
app.add_typer(tpm_roots.app)
services.add_to(app)

_PANELS: Final = {
    "Devices and policies": (
        "devices", "groups", "enrollment-tokens", "policies", "variables", "secrets", "rollouts",
        "gates", "plan", "apply", "export", "tpm-roots", "sim",
    ),
    "People and programs": (
        "orgs", "users", "people", "factors", "tokens", "service-accounts", "directories",
        "email-domains", "sso-providers", "scim", "mail",
    ),
    "What happened": ("audit", "reports", "alerts", "forwarders", "events"),
}  # fmt: skip
"""How the help groups commands; all others are about the installation."""


def _panel(name: str) -> str:
    return next((panel for panel, names in _PANELS.items() if name in names), "The installation")


for _group in app.registered_groups:
    if _group.typer_instance is not None:
        _group.rich_help_panel = _panel(str(_group.typer_instance.info.name))
for _command in app.registered_commands:
    if not isinstance(_command.rich_help_panel, str):
        _command.rich_help_panel = _panel(_command.name or "")


@app.callback()
def _evergreen(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=version.show, is_eager=True, help="Show the release and end."
        ),
    ] = False,
) -> None:
    """Keeps `up` a command of its own, however few others there are."""
    # nats-py's streams do not know that they have TLS; asyncio warns of it whenever NATS hangs up.
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.addFilter(lambda record: "eof_received" not in record.getMessage())


def run() -> None:
    """Runs the command of `sys.argv`; of all groups, only one that it names is built.

    To build all of them takes longer than most commands.
    """
    # A shell that completes a line gives it in the environment.
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    words = line.split() if line else sys.argv
    word = words[1] if len(words) > 1 else ""
    every = app.registered_groups
    app.registered_groups = [
        group
        for group in every
        if group.typer_instance is not None and group.typer_instance.info.name == word
    ] or every
    app()


if __name__ == "__main__":
    run()
