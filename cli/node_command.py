"""`exobus node`: turns options into a node's settings, and runs the node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.exits import leave


def node(
    name: Annotated[
        str | None, typer.Option(envvar="EXOBUS_NAME", help="Name of the node.", show_default="host name")
    ] = None,
    host: Annotated[str, typer.Option(envvar="EXOBUS_HOST", help="Address to listen on.")] = "127.0.0.1",
    insecure: Annotated[
        bool,
        typer.Option("--insecure", envvar="EXOBUS_INSECURE", help="Listen beyond this machine without encryption."),
    ] = False,
    api_port: Annotated[
        int | None,
        typer.Option(
            envvar="EXOBUS_API_PORT", min=0, max=65535, help="Port of the API.", show_default="52415 or a free one"
        ),
    ] = None,
    bus_port: Annotated[
        int | None,
        typer.Option(
            envvar="EXOBUS_BUS_PORT", min=0, max=65535, help="Port of the bus.", show_default="52414 or a free one"
        ),
    ] = None,
    discovery_port: Annotated[
        int,
        typer.Option(envvar="EXOBUS_DISCOVERY_PORT", min=0, max=65535, help="UDP port of beacons; 0: none."),
    ] = 52413,
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="EXOBUS_DATA_DIR", help="Identity and logs.", show_default="the user's data folder"),
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Bus address host:port of another node; may be repeated. [EXOBUS_PEER]")
    ] = None,
    engine: Annotated[
        str, typer.Option(envvar="EXOBUS_ENGINE", help="One of auto, numpy, onnx, mlx, tinygrad.")
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(envvar="EXOBUS_MEMORY", help="Memory for models, such as 12GB.", show_default="what is free"),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            envvar="EXOBUS_KV_MEMORY",
            help="Most memory of a stage for keys and values, such as 2GB; 0: by itself.",
            show_default="by itself",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(envvar="EXOBUS_PRECISION", help="fast or exact, for an engine that has the choice.")
    ] = "fast",
    threads: Annotated[
        int | None,
        typer.Option(envvar="EXOBUS_THREADS", min=1, help="Threads of an engine.", show_default="its share of cores"),
    ] = None,
    cards: Annotated[Path | None, typer.Option(envvar="EXOBUS_CARDS", help="A folder of your own model cards.")] = None,
) -> None:
    """Run a node of the cluster until Ctrl-C."""
    from cli import node_process

    asked = node_process.Asked(
        name=name,
        host=host,
        insecure=insecure,
        api_port=api_port,
        bus_port=bus_port,
        discovery_port=discovery_port,
        data_dir=data_dir,
        peers=tuple(peer or ()),
        engine=engine,
        memory=memory,
        kv_memory=kv_memory,
        precision=precision,
        threads=threads,
        cards=cards,
    )
    sentence, status = node_process.run(asked)
    if sentence:
        leave(sentence, status)
