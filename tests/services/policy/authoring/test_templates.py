"""Templates: what is put together of hostile ones is bounded before it is made."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from servicekit.errors import DomainError
from services.policy.authoring.document import MAX_DOCUMENT, MAX_SECRET
from services.policy.authoring.domain import compile_policy
from services.policy.authoring.templates import Values
from services.policy.authoring.violations import MAX_TEXT

SECRET = "s" * MAX_SECRET


def _faults(document: Any, **values: str) -> dict[str, str]:
    named = {name.replace("_", ".", 1): value for name, value in values.items()}
    with pytest.raises(DomainError) as refused:
        compile_policy({"template": document}, values=Values(named))
    return {one.field: one.rule for one in refused.value.violations}


def _vpns(*values: str) -> dict[str, Any]:
    return {
        "network": {
            "vpns": [{"name": f"V{at}", "data": {"x": one}} for at, one in enumerate(values)]
        }
    }


@pytest.mark.parametrize("braces", ["{{", "{{a", "}}", "{{{"])
def test_braces_are_found_in_one_pass(braces: str) -> None:
    """A text as long as may be takes no time by the square of its length."""
    text = (braces * MAX_SECRET)[:MAX_SECRET]
    began = time.process_time()
    faults = _faults(_vpns(text) | {"browser": {"homepage": text[:MAX_TEXT]}})
    assert time.process_time() - began < 1
    assert set(faults) == {
        "bundle.template.browser.homepage",
        "bundle.template.network.vpns[0].data.x",
    }


def test_a_text_that_is_too_long_is_not_looked_through() -> None:
    began = time.process_time()
    faults = _faults({"browser": {"homepage": "{{" * 500_000}})
    assert time.process_time() - began < 1
    assert "at most 8192 characters" in faults["bundle.template.browser.homepage"]


@pytest.mark.parametrize("copies", [2, 5_000])
def test_what_values_make_is_measured_before_it_is_made(copies: int) -> None:
    """Nor does the answer tell how long the value is."""
    document = _vpns("{{secret.w}}" * copies)
    tracemalloc.start()
    faults = _faults(document, secret_w=SECRET)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    wanted = f"must have at most {MAX_SECRET} characters, with the values that it names"
    assert faults == {"bundle.template.network.vpns[0].data.x": wanted}


def test_no_answer_tells_how_long_a_secret_is() -> None:
    """One that is too long for a passphrase, in either form."""
    wanted = f"must have at most {MAX_TEXT} characters, with the values that it names"
    wifi = {"ssid": "Class", "security": "sae", "passphrase": "{{secret.w}}"}
    form = {"ssid": "Class", "passphrase": "{{secret.w}}"}
    for document, place in (
        ({"network": {"wifi": [wifi]}}, "network.wifi[0]"),
        (
            {"configuration": {"network": {"wifiNetworks": [form]}}},
            "configuration.network.wifiNetworks[0]",
        ),
    ):
        faults = _faults(document, secret_w="s" * (MAX_TEXT + 1))
        assert faults == {f"bundle.template.{place}.passphrase": wanted}


def test_values_make_no_document_that_is_too_large() -> None:
    """Many texts, each of which may be as long as it is."""
    document = _vpns(*["{{secret.w}}"] * 900)
    tracemalloc.start()
    faults = _faults(document, secret_w=SECRET)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
    wanted = f"must be at most {MAX_DOCUMENT} bytes as a document"
    assert faults == {"bundle.template": wanted}
