"""`python -m gateway`: the gateway's process, started by a node's supervisor."""

from bus.process import run_actor
from gateway.gateway_actor import GatewayActor
from models.errors import CatalogueError

run_actor(GatewayActor, GatewayActor.name, fatal=CatalogueError)
