"""What a console's form does among layers, whatever the others are."""

from __future__ import annotations

import json
import time
from typing import Any, Final
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.policy.authoring.configuration import compile_bundle
from services.policy.authoring.document import Security
from services.policy.authoring.goencoding import encode_document
from services.policy.authoring.layering import InForce, Own, folded, own_document, own_of
from services.policy.layers.merging import Folded, Layer, Level, Merging, Source

LEVELS: Final = (Level.ROOT, Level.RESELLER, Level.ORG, Level.GROUP, Level.DEVICE)
GUARDED: Final = Security(usbguard=True, usbguard_rules=("allow id 1d6b:0002",))
BASELINE: Final = {
    "selinux_enforce": True,
    "ssh_enabled": False,
    "usbguard": False,
    "allow_root_login": False,
}
FORM: Final = {"configuration": {"updateChannel": "stable"}}
NOTHING: Final = Merging()


def own(bundle: Any, merging: Merging = NOTHING, standing: Security | None = None) -> Own:
    compiled = compile_bundle(bundle, standing=standing).document
    return own_of(bundle, encode_document(compiled), merging)


def stack(*several: Own) -> list[InForce]:
    return [InForce(Source(LEVELS[at], UUID(int=at + 1)), one) for at, one in enumerate(several)]


def security(*several: Own) -> dict[str, Any]:
    found: dict[str, Any] = folded(stack(*several)).document().get("security", {})
    return found


mergings = st.builds(
    Merging,
    locked=st.lists(
        st.sampled_from(["security", "security.selinux_enforce", "security.usbguard"]),
        max_size=2,
        unique=True,
    ).map(tuple),
    inherit=st.booleans(),
)
documents = st.builds(
    own,
    st.fixed_dictionaries(
        {},
        optional={
            "security": st.fixed_dictionaries(
                {}, optional={name: st.booleans() for name in BASELINE}
            )
        },
    ),
    mergings,
)
forms = st.builds(own, st.just(FORM), mergings, st.sampled_from([None, GUARDED]))


@given(st.lists(documents | forms, max_size=4), forms)
def test_a_form_never_switches_anything_off(above: list[Own], form: Own) -> None:
    """Each switch is as some layer says, or as a form's baseline has it; none is left out."""
    found = security(*above, form)
    for name, strict in BASELINE.items():
        path = f"security.{name}"
        said = [one.sets[path] for one in above if path in one.sets]
        stands = [one.baseline[path] for one in (*above, form) if one.baseline is not None]
        assert found[name] in [strict, *said, *stands]
        locked = any(one.merging.locks(path) for one in above)
        if not said and (name != "usbguard" or not locked):
            assert found[name] == (form.baseline or {})[path]
        if not form.merging.inherit and not locked:
            assert found[name] == (form.baseline or {})[path]


@given(st.lists(documents, max_size=3), forms, st.lists(documents, max_size=1))
def test_layers_below_a_form_leave_what_they_do_not_say(
    above: list[Own], form: Own, below: list[Own]
) -> None:
    """Only a document that inherits nothing ends a baseline, as it would alone."""
    found = security(*above, form, *below)
    if all(one.merging.inherit for one in below):
        assert found.keys() >= BASELINE.keys()


def test_a_form_that_inherits_nothing_keeps_its_baseline() -> None:
    """Of its own, alone and below others; what is above it does not count, locks do."""
    alone = own(FORM, Merging(inherit=False), GUARDED)
    document = json.loads(own_document(alone, UUID(int=1)))
    wanted = {**BASELINE, "usbguard": True, "usbguard_rules": ["allow id 1d6b:0002"]}
    assert document["security"] == wanted
    loose = {"security": {"selinux_enforce": False, "ssh_enabled": True}}
    assert security(own(loose), alone) == wanted
    locked = own(loose, Merging(locked=("security",)))
    assert security(locked, alone) == {**BASELINE, **loose["security"]}


def test_a_locked_field_has_nothing_of_a_form_below() -> None:
    """USBGuard of a form is as in the school's own policy before, which a lock above keeps out."""
    form = own(FORM, NOTHING, GUARDED)
    lock = own({}, Merging(locked=("security",)))
    assert security(lock, form) == BASELINE
    assert security(own(FORM, Merging(locked=("security",)), GUARDED), own(FORM)) == {
        **BASELINE,
        "usbguard": True,
        "usbguard_rules": ["allow id 1d6b:0002"],
    }
    (found,) = (v for v in folded(stack(lock, form)).values if v.path == "security.usbguard")
    assert (found.locked, found.source) == (True, Source(Level.BASELINE, UUID(int=2)))


def test_many_items_are_folded_in_linear_time() -> None:
    """As many networks as fit, taken away by their names: no poll waits for it."""
    count = 8_000
    wifi = [{"ssid": f"n{number}", "security": "none"} for number in range(count)]
    removed = {"network.wifi": tuple(f"n{number}" for number in range(count))}
    layers = [
        Layer(Source(Level.ROOT, UUID(int=1)), {"network.wifi": wifi}),
        Layer(Source(Level.ORG, UUID(int=2)), {"network.wifi": wifi}, Merging(removed=removed)),
    ]
    before = time.process_time()
    assert len(Folded(layers).document()["network"]["wifi"]) == count
    assert time.process_time() - before < 5
