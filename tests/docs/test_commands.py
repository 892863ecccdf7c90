"""Every command of the documentation says where it is run."""

from __future__ import annotations

import ast
import re
from typing import Final

import pytest

from tests.docs.test_pages import pages, text
from tests.support.documented import COMMANDS, TARGETS, read

RUN_BY: Final = {
    ("README.md", "make-run"): "tests/docs/test_make_run.py::test_a_devices_day",
    ("docs/alerts.md", "make-run"): "tests/docs/test_make_run.py::test_alerts",
    ("docs/api-tokens.md", "make-run"): "tests/docs/test_make_run.py::test_api_tokens",
    ("docs/audit.md", "make-run"): "tests/docs/test_make_run.py::test_audit",
    ("docs/backup.md", "make-run"): "tests/docs/test_make_run.py::test_another_machine",
    ("docs/attestation.md", "make-run"): "tests/docs/test_make_run.py::test_attestation_gates",
    ("docs/certificates.md", "make-run"): "tests/docs/test_make_run.py::test_another_machine",
    ("docs/console.md", "make-run"): "tests/docs/test_make_run.py::test_people",
    ("docs/data.md", "make-run"): "tests/docs/test_make_run.py::test_data",
    ("docs/enrollment.md", "make-run"): "tests/docs/test_make_run.py::test_enrollment_tokens",
    ("docs/faq.md", "make-run"): "tests/docs/test_make_run.py::test_questions",
    ("docs/forwarding.md", "make-run"): "tests/docs/test_make_run.py::test_forwarding",
    ("docs/groups.md", "make-run"): "tests/docs/test_make_run.py::test_groups",
    ("docs/integrators.md", "make-run"): "tests/docs/test_make_run.py::test_integrators",
    ("docs/mail.md", "make-run"): "tests/e2e/test_mail.py::test_the_example",
    ("docs/monitoring.md", "make-run"): "tests/docs/test_make_run.py::test_monitoring",
    ("docs/organisations.md", "make-run"): "tests/docs/test_make_run.py::test_organisations",
    ("docs/people.md", "make-run"): "tests/docs/test_make_run.py::test_people",
    ("docs/policies.md", "make-run"): "tests/docs/test_make_run.py::test_policies",
    ("docs/policy-keys.md", "make-run"): "tests/docs/test_make_run.py::test_policy_keys",
    ("docs/policy-secrets.md", "make-run"): "tests/docs/test_make_run.py::test_policy_secrets",
    ("docs/policy-sets.md", "make-run"): "tests/docs/test_make_run.py::test_policy_sets",
    ("docs/reports.md", "make-run"): "tests/docs/test_make_run.py::test_reports",
    ("docs/runbooks.md", "make-run"): "tests/docs/test_make_run.py::test_the_doctor",
    ("docs/scim.md", "make-run"): "tests/docs/test_make_run.py::test_scim",
    ("docs/second-factor.md", "make-run"): "tests/docs/test_make_run.py::test_second_factors",
    ("docs/sign-in.md", "make-run"): (
        "tests/docs/test_make_run.py::test_passwords_for_owners_only"
    ),
    ("docs/simulator.md", "make-run"): "tests/docs/test_make_run.py::test_the_simulator",
    ("docs/troubleshooting.md", "make-run"): "tests/docs/test_make_run.py::test_the_doctor",
    ("docs/upgrade.md", "make-run"): "tests/upgrade/test_homes.py::test_there_and_back",
    ("README.md", "compose"): "tests/compose/test_documented.py::machine",
    ("docs/backup.md", "compose"): "tests/compose/test_documented.py::test_backup_and_restore",
    ("docs/certificates.md", "compose"): "tests/compose/test_documented.py::test_certificates",
    ("docs/install.md", "compose"): "tests/compose/test_documented.py::test_a_proxy_in_front",
    ("docs/people.md", "compose"): "tests/compose/test_documented.py::test_a_lost_password",
    ("docs/troubleshooting.md", "compose"): "tests/compose/test_documented.py::test_trouble",
    ("docs/upgrade.md", "compose"): "tests/compose/test_upgrade.py::test_there_and_back",
    (
        "docs/backup.md",
        "kubernetes",
    ): "tests/kubernetes/test_restore.py::test_a_new_installation_takes_over",
    ("docs/certificates.md", "kubernetes"): (
        "tests/kubernetes/test_documented.py::test_a_ca_is_replaced"
    ),
    ("docs/install.md", "kubernetes"): "tests/kubernetes/test_documented.py::test_a_trial",
    ("docs/people.md", "kubernetes"): "tests/kubernetes/test_documented.py::test_days_with_it",
    ("docs/runbooks.md", "kubernetes"): "tests/kubernetes/test_documented.py::test_days_with_it",
    ("docs/troubleshooting.md", "kubernetes"): (
        "tests/kubernetes/test_documented.py::test_days_with_it"
    ),
    ("docs/upgrade.md", "kubernetes"): "tests/kubernetes/test_documented.py::test_an_upgrade",
    ("docs/certificates.md", "servers"): (
        "tests/external/test_moving.py::test_an_installation_moves_to_another_name"
    ),
    ("docs/moving.md", "servers"): (
        "tests/external/test_moving.py::test_an_installation_moves_to_another_name"
    ),
    ("docs/install.md", "servers"): (
        "tests/external/test_systemd.py::test_a_service_runs_and_comes_back"
    ),
    ("docs/single-sign-on.md", "servers"): (
        "tests/external/test_single_sign_on.py::test_the_example"
    ),
    ("docs/sign-in.md", "servers"): "tests/external/test_sign_in.py::test_the_example",
    ("docs/upgrade.md", "servers"): (
        "tests/external/test_postgres_upgrade.py::test_an_older_servers_data_go_on"
    ),
    ("docs/postgresql.md", "servers"): (
        "tests/external/test_managed_postgresql.py::"
        "test_the_documented_commands_make_roles_and_schema"
    ),
}
"""The blocks of a page for a target → the test or the fixture that runs all of them."""
BY_HAND: Final = {
    "README.md": "starting a clone installs its packages; `make` is what starts the tests, too",
    "docs/attestation.md": "it asks, of makers' files; tests/e2e/test_attestation.py has some",
    "docs/audit.md": "the authority is another's; tests/cli/test_audit_timestamp.py has OpenSSL's",
    "docs/benchmarks.md": "it measures for 14 minutes",
    "docs/certificates.md": "cert-manager is not here; tests/helm renders against its schemas",
    "docs/chaos.md": "it breaks an installation for ten minutes",
    "docs/console.md": "the console and its packages are another project's, from other servers",
    "docs/contributing.md": "starting a clone installs its packages",
    "docs/fips.md": (
        "it needs a module and a build against it; tests/external/test_fips.py has the module,"
        " tests/cli/test_fips.py runs the commands, tests/compose/test_fips.py the containers"
    ),
    "docs/forwarding.md": "the receivers are others'; tests/external has rsyslog and syslog-ng",
    "docs/install.md": (
        "a registry, a PostgreSQL, a certificate and CRDs of others; tests/kubernetes installs the"
        " production profile with what stands for them"
    ),
    "docs/policy-keys.md": "a machine without a network signs; tests/cli/test_policy_keys.py does",
    "docs/release.md": "a release is made in a clone by tests/release; publishing it pushes",
    "docs/scim.md": "the person comes from a provider; tests/services/identity/scim unlinks one",
    "docs/single-sign-on.md": "Google and Microsoft are not here; Keycloak's commands are run",
    "docs/sign-in.md": "Windows is not here; the same commands run with OpenLDAP",
    "docs/monitoring.md": "Grafana is in no package; test_prometheus_watches_all starts the rest",
}
"""Pages with commands that no test runs → why."""
_OWN = [page for page in pages() if not page.startswith(("docs/adr/", "docs/measurements/"))]


@pytest.mark.parametrize("page", _OWN)
def test_a_command_says_where_it_is_run(page: str) -> None:
    """In the first line of its block; a block that is indented alone could not say it."""
    for block in read(page):
        assert block.language or not block.target, block.place
        if block.language in COMMANDS:
            assert block.target in TARGETS, f"{block.place}: one of {', '.join(TARGETS)}"
        assert block.language != "sh" or not block.file, block.place
    outside = re.sub(r"^( *)```.*?^\1```$", "", text(page), flags=re.M | re.S)
    assert re.findall(r"\n\n {4,}\S.*", outside) == []


def test_every_command_is_run() -> None:
    """By the test that is named for its page, or the page says why not; no name is left over."""
    blocks = [block for page in _OWN for block in read(page) if block.target]
    kinds = {(block.page, block.target) for block in blocks}
    assert {kind for kind in kinds if kind[1] != "by-hand"} == set(RUN_BY)
    assert {page for page, target in kinds if target == "by-hand"} == set(BY_HAND)


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_what_runs_commands_is_there(test: str) -> None:
    """It begins from the page: a file that does not name it could not run it."""
    path, _, name = test.partition("::")
    code = text(path)
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    assert name in {node.name for node in ast.parse(code).body if isinstance(node, functions)}
    for (page, _), by in RUN_BY.items():
        assert by != test or page in code, page
