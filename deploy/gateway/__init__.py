"""The Envoy gateway: one configuration for every environment, made from the access table.

`GatewaySettings` holds what differs between environments; `render` makes the files, `write` puts
them where a running Envoy follows them, `arguments` starts one.
"""

from deploy.gateway.limits import Limits, Rate, reflection_of, workers_of
from deploy.gateway.process import arguments
from deploy.gateway.render import BOOTSTRAP, render, write
from deploy.gateway.settings import Endpoints, GatewaySettings

__all__ = [
    "BOOTSTRAP",
    "Endpoints",
    "GatewaySettings",
    "Limits",
    "Rate",
    "arguments",
    "reflection_of",
    "render",
    "workers_of",
    "write",
]
