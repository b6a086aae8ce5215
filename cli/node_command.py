"""`exobus node`: turns options into a node's settings, and runs the node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.exit_codes import leave


def node(
    name: Annotated[
        str | None, typer.Option(envvar="EXOBUS_NAME", help="Name of the node.", show_default="host name")
    ] = None,
    join: Annotated[str | None, typer.Option(help="A join code, or a file with one; it is kept. [EXOBUS_JOIN]")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", envvar="EXOBUS_STRICT", help="Let in only nodes that were approved.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(envvar="EXOBUS_HOST", help="Address where other nodes reach this one; auto: the private one."),
    ] = "127.0.0.1",
    bus_port: Annotated[
        int | None,
        typer.Option(
            envvar="EXOBUS_BUS_PORT", min=0, max=65535, help="Port of the bus.", show_default="52416 or a free one"
        ),
    ] = None,
    join_port: Annotated[
        int | None,
        typer.Option(
            envvar="EXOBUS_JOIN_PORT",
            min=0,
            max=65535,
            help="Port where nodes knock that want to join.",
            show_default="52414 or a free one",
        ),
    ] = None,
    discovery_port: Annotated[
        int,
        typer.Option(envvar="EXOBUS_DISCOVERY_PORT", min=0, max=65535, help="UDP port of beacons; 0: none."),
    ] = 52413,
    peer: Annotated[
        list[str] | None, typer.Option(help="Join port host:port of another node; may be repeated. [EXOBUS_PEER]")
    ] = None,
    api_host: Annotated[
        str, typer.Option(envvar="EXOBUS_API_HOST", help="Address of the API; beyond this machine with --api-keys.")
    ] = "127.0.0.1",
    api_port: Annotated[
        int | None,
        typer.Option(
            envvar="EXOBUS_API_PORT", min=0, max=65535, help="Port of the API.", show_default="52415 or a free one"
        ),
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(envvar="EXOBUS_API_KEYS", help="A file of API keys, one a line.")
    ] = None,
    api_name: Annotated[
        list[str] | None,
        typer.Option(envvar="EXOBUS_API_NAME", help="Another host name of the API; may be repeated."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(envvar="EXOBUS_CORS", help="Origin of a web page that may use the API; may be repeated."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="EXOBUS_DATA_DIR", help="Key, join code and logs.", show_default="the user's data folder"),
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
    """Run a node until Ctrl-C: alone, or in the cluster whose join code it has."""
    from cli import node_process

    asked = node_process.Asked(
        name=name,
        join=join,
        strict=strict,
        host=host,
        bus_port=bus_port,
        join_port=join_port,
        discovery_port=discovery_port,
        peers=tuple(peer or ()),
        api_host=api_host,
        api_port=api_port,
        api_keys=api_keys,
        api_names=tuple(api_name or ()),
        cors=tuple(cors or ()),
        data_dir=data_dir,
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
