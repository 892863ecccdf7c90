"""Reads and writes sets: files of YAML or JSON with a tenant's groups and policies.

Only `true`, `false`, `null` and whole numbers are other than text, so that no serial number, no
version and no time of day becomes something else. Anchors, tags and members that come twice are
refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from cli.errors import CliError

API_VERSION: Final = "evergreen/v1"
_MOST_BYTES: Final = 8 * 1024 * 1024
_MEMBERS: Final[Mapping[str, Mapping[str, type]]] = {
    "Set": {"metadata": dict, "org": str},
    "DeviceGroup": {
        "alias": str,
        "name": str,
        "description": str,
        "priority": int,
        "filter": str,
        "members": str,
        "renamedFrom": str,
    },
    "Policy": {
        "alias": str,
        "name": str,
        "description": str,
        "targets": list,
        "bundle": dict,
        "merging": dict,
        "draft": bool,
        "renamedFrom": str,
    },
    "Variable": {"name": str, "value": str, "overridable": bool},
    "SecretRef": {"name": str},
}
"""What a document of each kind has, beside `apiVersion` and `kind`."""
_NEEDED: Final = {
    "Set": ("metadata",),
    "DeviceGroup": ("alias",),
    "Policy": ("alias", "targets", "bundle"),
    "Variable": ("name", "value"),
    "SecretRef": ("name",),
}
_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    bool: "true or false",
}


@dataclass(slots=True)
class Set:
    """What the files of a directory say together."""

    name: str = ""
    org: str = ""
    """The tenant's code or id; empty where the command says it."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Entries as `ApplyDeviceGroupSet` takes them."""
    policies: list[dict[str, Any]] = field(default_factory=list)
    """Entries as `ApplyPolicySet` takes them."""
    variables: list[dict[str, Any]] = field(default_factory=list)
    """Likewise."""
    secrets: list[str] = field(default_factory=list)
    """Names of secrets that have to be set."""


class _Members(dict[Any, Any]):
    """An object of a file, which knows the lines of its members."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


class _Loader(yaml.SafeLoader):
    """YAML without what surprises: see the module."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name and type

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused("anchors are not taken", event)
        if getattr(event, "tag", None):
            raise _refused("tags are not taken", event)
        return super().compose_node(parent, index)


def _members(loader: _Loader, node: yaml.MappingNode) -> Iterator[_Members]:
    found = _Members()
    yield found
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _refused("names are texts", key_node)
        if key in found:
            raise _refused(f"{key} comes twice", key_node)
        found[key] = loader.construct_object(value_node, deep=True)
        found.lines[key] = key_node.start_mark.line + 1


_Loader.add_constructor("tag:yaml.org,2002:map", _members)
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"-?(?:0|[1-9][0-9]{0,17})", "-0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def read_set(directory: Path) -> Set:
    """What all `.yaml`, `.yml` and `.json` files below a directory say.

    Raises:
        CliError: a file cannot be read, or says what no set has; with its line.
    """
    if not directory.is_dir():
        raise CliError(f"{directory} is no directory")
    paths = sorted(
        path
        for path in directory.rglob("*")
        if path.suffix in {".yaml", ".yml", ".json"} and path.is_file()
    )
    found = Set()
    size = 0
    for path in paths:
        try:
            size += path.stat().st_size
            if size > _MOST_BYTES:
                raise CliError(f"{directory} has more than {_MOST_BYTES // 1024 // 1024} MiB")
            documents = list(yaml.load_all(path.read_text(encoding="utf-8"), _Loader))
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read {path}: {error}") from error
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or "is no YAML"
            raise CliError(f"{path}{line}: {problem}") from error
        for document in documents:
            if document is not None:
                _take(found, path, document)
    if not found.name:
        raise CliError(f"{directory} has no document of kind Set, which names the set")
    return found


def _take(found: Set, path: Path, document: Any) -> None:
    if not isinstance(document, _Members):
        raise CliError(f"{path}: each document is an object")
    version, kind = document.get("apiVersion", API_VERSION), str(document.get("kind"))
    if version != API_VERSION:
        raise CliError(f"{path}: apiVersion is {API_VERSION}")
    if kind not in _MEMBERS:
        known = ", ".join(_MEMBERS)
        raise CliError(f"{path}: kind is one of {known}, not {kind}")
    known_members = _MEMBERS[kind]
    for name, value in document.items():
        if name in {"apiVersion", "kind"}:
            continue
        where = f"{path}:{document.lines[name]}"
        if name not in known_members:
            close = difflib.get_close_matches(name, known_members, 1)
            hint = f"; is it {close[0]}?" if close else ""
            raise CliError(f"{where}: a {kind} has no member {name}{hint}")
        wanted = known_members[name]
        if (dict if type(value) is _Members else type(value)) is not wanted:
            raise CliError(f"{where}: {name} is {_KINDS[wanted]}")
    for name in _NEEDED[kind]:
        if name not in document:
            raise CliError(f"{path}: a {kind} needs the member {name}")
    _MAKE[kind](found, path, document)


def _make_set(found: Set, path: Path, document: Mapping[str, Any]) -> None:
    if found.name:
        raise CliError(f"{path}: a directory has one document of kind Set")
    name = document["metadata"].get("name")
    if not isinstance(name, str) or set(document["metadata"]) != {"name"}:
        raise CliError(f"{path}: metadata has the set's name, and nothing else")
    found.name, found.org = name, document.get("org", "")


def _make_group(found: Set, path: Path, document: Mapping[str, Any]) -> None:
    if ("filter" in document) == ("members" in document):
        raise CliError(f"{path}: the group {document['alias']} has a filter, or members: external")
    if document.get("members", "external") != "external":
        raise CliError(f"{path}: members are listed elsewhere: members: external")
    found.groups.append(
        {key: value for key, value in document.items() if key not in {*_HEAD, "members"}}
    )


def _make_policy(found: Set, path: Path, document: Mapping[str, Any]) -> None:
    entry = {key: value for key, value in document.items() if key not in {*_HEAD, "targets"}}
    targets = document["targets"]
    groups = [str(one).removeprefix("group:") for one in targets if str(one).startswith("group:")]
    if targets not in (["org"], [f"group:{alias}" for alias in groups]) or not targets:
        raise CliError(f"{path}: targets of {document['alias']} are [org], or group:… for groups")
    found.policies.append({**entry, "groups": groups})


_HEAD: Final = ("apiVersion", "kind")


def _make_variable(found: Set, path: Path, document: Mapping[str, Any]) -> None:
    del path
    found.variables.append({key: one for key, one in document.items() if key not in _HEAD})


def _make_secret(found: Set, path: Path, document: Mapping[str, Any]) -> None:
    del path
    found.secrets.append(document["name"])


_MAKE: Final = {
    "Set": _make_set,
    "DeviceGroup": _make_group,
    "Policy": _make_policy,
    "Variable": _make_variable,
    "SecretRef": _make_secret,
}


def write_set(
    directory: Path,
    name: str,
    org: str,
    groups: Sequence[Mapping[str, Any]],
    policies: Sequence[Mapping[str, Any]],
    variables: Sequence[Mapping[str, Any]] = (),
    secrets: Sequence[str] = (),
) -> list[Path]:
    """Writes a set into a directory that is empty or not there; answers the files.

    Raises:
        CliError: there is something in it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise CliError(f"{directory} is not empty")
        files: dict[str, list[dict[str, Any]]] = {
            "evergreen.yaml": [{"kind": "Set", "metadata": {"name": name}, "org": org}]
        }
        if groups:
            files["groups.yaml"] = [{"kind": "DeviceGroup", **group} for group in groups]
        if variables:
            files["variables.yaml"] = [{"kind": "Variable", **one} for one in variables]
        if secrets:
            files["secrets.yaml"] = [{"kind": "SecretRef", "name": one} for one in secrets]
        for policy in policies:
            files[f"policies/{policy['alias']}.yaml"] = [{"kind": "Policy", **policy}]
        for path, documents in files.items():
            (directory / path).parent.mkdir(exist_ok=True)
            whole = [{"apiVersion": API_VERSION, **document} for document in documents]
            (directory / path).write_text(
                yaml.dump_all(
                    whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
                ),
                encoding="utf-8",
            )
    except OSError as error:
        raise CliError(f"cannot write {directory}: {error}") from error
    return [directory / path for path in files]


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader above, or another one, would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True
