"""The gateway's configuration as files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import yaml

try:
    from yaml import CSafeDumper as SafeDumper
except ImportError:  # without libyaml: the same files, a second later
    from yaml import SafeDumper  # type: ignore[assignment]

from contract.contexts import CONTEXTS
from deploy.gateway import api
from deploy.gateway.bootstrap import bootstrap
from deploy.gateway.clusters import INSIDE, INSIDE_CA, clusters
from deploy.gateway.envoy import Config, typed
from deploy.gateway.listener import certificates, listener
from deploy.gateway.settings import GatewaySettings

BOOTSTRAP: Final = "bootstrap.yaml"
LISTENER: Final = "listener.yaml"
CLUSTERS: Final = "clusters.yaml"


def render(settings: GatewaySettings) -> dict[str, str]:
    """The files by name, in the order in which a running Envoy should get them.

    Envoy is started with `bootstrap.yaml` and follows changes of the other files when they are
    replaced by renaming, as `write` does.

    Raises:
        ValueError: the settings lack a context, or the descriptors are another version's.
    """
    if missing := set(CONTEXTS) - settings.contexts.keys():
        raise ValueError(f"no endpoints for {', '.join(sorted(missing))}")
    descriptors = settings.descriptors.read_bytes()
    methods = api.public_methods(descriptors)
    where = settings.directory
    secrets = _secrets(settings)
    return {
        **{settings.secret_file(s["name"]).name: _resources([s]) for s in secrets},
        CLUSTERS: _resources(clusters(settings)),
        LISTENER: _resources([listener(settings, methods, descriptors)]),
        BOOTSTRAP: _yaml(bootstrap(settings, where / LISTENER, where / CLUSTERS)),
    }


def write(settings: GatewaySettings) -> Path:
    """Writes the files into the settings' directory; a running Envoy takes them over.

    Returns:
        The file that Envoy is started with.
    """
    for name, text in render(settings).items():
        _replace(settings.directory / name, text)
    return settings.directory / BOOTSTRAP


def _secrets(settings: GatewaySettings) -> list[Config]:
    found = [_certificate(name, *pair) for name, pair in certificates(settings).items()]
    if settings.inside is not None:
        own = settings.inside
        ca = {
            "trusted_ca": {"filename": str(own.ca_file)},
            "watched_directory": _directory_of(own.ca_file),
        }
        found.append(_certificate(INSIDE, own.certificate_file, own.key_file))
        found.append(_secret(INSIDE_CA, validation_context=ca))
    return found


def _certificate(name: str, certificate: Path, key: Path) -> Config:
    return _secret(
        name,
        tls_certificate={
            "certificate_chain": {"filename": str(certificate)},
            "private_key": {"filename": str(key)},
            "watched_directory": _directory_of(certificate),
        },
    )


def _directory_of(file: Path) -> Config:
    """Any file that is renamed there counts: Kubernetes renames a link, not the files."""
    return {"path": str(file.parent)}


def _secret(name: str, **what: Config) -> Config:
    return {**typed("extensions.transport_sockets.tls.v3.Secret"), "name": name, **what}


def _resources(resources: Iterable[Config]) -> str:
    return _yaml({"resources": list(resources)})


class _Dumper(SafeDumper):
    """Writes texts of several lines as such, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(config: Config) -> str:
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=120)


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
