"""The options of `exobus node`, each written once: help, default, variable, and the setting that it becomes.

The signature of the command and the node's settings are both derived from `NodeOptions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import typer

from cli.text import parse_bytes, parse_seconds

LOOPBACK = "127.0.0.1"
FOR_EVER = -1


@dataclass(frozen=True, kw_only=True)
class _Option:
    """What an option is besides the name, type and default of its field.

    `shown` is the default in the help, if another text says it better. `flag` and `setting` are given if they differ
    from the field's name; an empty `setting` means that no setting of the node follows from this option alone.
    `variable` is false if the node reads the variable itself, and `variable_name` another name of it.
    """

    help: str
    metavar: str | None = None
    shown: str = ""
    minimum: int | None = None
    maximum: int | None = None
    flag: str = ""
    variable: bool = True
    variable_name: str = ""
    setting: str | None = None
    convert: Callable[[Any], object] = lambda value: value


def _about(help: str, **facts: Any) -> dict[str, _Option]:
    return {"option": _Option(help=help, **facts)}


def _port(help: str, shown: str = "") -> dict[str, _Option]:
    return _about(help, metavar="PORT", shown=shown, minimum=0, maximum=65535)


def _size(help: str, shown: str) -> dict[str, _Option]:
    return _about(help, metavar="SIZE", shown=shown, convert=lambda text: parse_bytes(text) if text else 0)


def _path(path: Path | None) -> str:
    return str(path.expanduser().absolute()) if path else ""


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """The options of `exobus node`; None if an option was not given. `join` is a join code or the path of a file."""

    name: str | None = field(
        default=None, metadata=_about("Name of the node.", metavar="NAME", shown="host name", setting="")
    )
    join: str | None = field(
        default=None,
        metadata=_about(
            "A join code, or a file with one; it is kept. [EXOBUS_JOIN]", metavar="CODE", variable=False, setting=""
        ),
    )
    strict: bool = field(default=False, metadata=_about("Admit only nodes that were approved."))
    host: str = field(
        default=LOOPBACK,
        metadata=_about("Address where other nodes reach this one; auto: the private one.", metavar="ADDRESS"),
    )
    bus_port: int | None = field(default=None, metadata=_port("Port of the bus.", "52416 or a free one"))
    join_port: int | None = field(default=None, metadata=_port("Port where new nodes join.", "52414 or a free one"))
    discovery_port: int = field(default=52413, metadata=_port("UDP port of beacons; 0: none."))
    peers: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Join port of another node; may be repeated. [EXOBUS_PEER]",
            metavar="HOST:PORT",
            flag="--peer",
            variable=False,
        ),
    )
    api_host: str = field(
        default=LOOPBACK,
        metadata=_about("Address of the API; one that others reach needs --api-keys.", metavar="ADDRESS"),
    )
    api_port: int | None = field(default=None, metadata=_port("Port of the API.", "52415 or a free one"))
    api_keys: Path | None = field(
        default=None, metadata=_about("A file of API keys, one a line.", metavar="FILE", convert=_path)
    )
    api_names: tuple[str, ...] = field(
        default=(),
        metadata=_about("Another host name of the API; may be repeated.", metavar="NAME", flag="--api-name"),
    )
    cors: tuple[str, ...] = field(
        default=(), metadata=_about("Origin of a web page that may use the API; may be repeated.", metavar="ORIGIN")
    )
    data_dir: Path | None = field(
        default=None,
        metadata=_about("Key, join code and logs.", metavar="FOLDER", shown="the user's data folder", setting=""),
    )
    engine: str = field(
        default="auto", metadata=_about("One of auto, numpy, onnx, mlx, tinygrad, llamacpp.", metavar="ENGINE")
    )
    memory: str | None = field(default=None, metadata=_size("Memory for models, such as 12GB.", "what is free"))
    kv_memory: str | None = field(
        default=None,
        metadata=_size("Limit of a stage's memory for keys and values, such as 2GB; 0: no limit.", "no limit"),
    )
    max_stages: int = field(
        default=8,
        metadata=_about(
            "Stages, so parts of models, that run here; for one more, a model that is idle is unloaded.",
            metavar="COUNT",
            minimum=1,
        ),
    )
    keep_loaded: str | None = field(
        default=None,
        metadata=_about(
            "How long an idle model stays loaded, such as 30s, 10m or 2h. Without it a model stays until another needs "
            "its memory; 0 unloads it after each chat, as Ollama's keep_alive does, and -1 means for ever.",
            metavar="TIME",
            shown="for ever",
            setting="keep_loaded_s",
            convert=lambda text: parse_seconds(text) if text else FOR_EVER,
        ),
    )
    precision: str = field(
        default="fast",
        metadata=_about("fast, exact, or invariant: the same text whatever else runs.", metavar="PRECISION"),
    )
    quantize: str = field(
        default="auto",
        metadata=_about("Bits of blocks for 16-bit models on ONNX Runtime: 8, 4, none or auto.", metavar="BITS"),
    )
    threads: int | None = field(
        default=None,
        metadata=_about(
            "Threads of an engine.",
            metavar="COUNT",
            shown="its share of cores",
            minimum=1,
            convert=lambda count: count or 0,
        ),
    )
    cards: Path | None = field(
        default=None,
        metadata=_about("A folder of your own model cards.", metavar="FOLDER", setting="cards_dir", convert=_path),
    )

    models_dir: Path | None = field(
        default=None,
        metadata=_about(
            "A folder in which every model folder and .gguf file is a model.",
            metavar="FOLDER",
            variable_name="EXOBUS_MODELS",
            convert=_path,
        ),
    )

    def settings(self) -> dict[str, Any]:
        """Return the fields of `NodeConfig` that follow from options."""
        values = {}
        for f in fields(self):
            option = _option_of(f)
            if name := f.name if option.setting is None else option.setting:
                values[name] = option.convert(getattr(self, f.name))
        return values


def flags() -> list[str]:
    """Return the names of all options, such as `--bus-port`."""
    return [_flag(f) for f in fields(NodeOptions)]


def signature() -> inspect.Signature:
    """Return the signature of the command, as typer reads it: a keyword for each option."""
    types = get_type_hints(NodeOptions)
    return inspect.Signature([_parameter(f, types[f.name]) for f in fields(NodeOptions)])


def from_command(**values: Any) -> NodeOptions:
    """Return the options from the keywords that typer passes. It passes a repeated option as a list, or None."""
    repeated = {f.name for f in fields(NodeOptions) if f.default == ()}
    values |= {name: tuple(values[name] or ()) for name in repeated & values.keys()}
    return NodeOptions(**values)


def _parameter(f: Field[Any], kind: Any) -> inspect.Parameter:
    option, repeated = _option_of(f), f.default == ()
    declared = typer.Option(
        None if repeated else f.default,
        _flag(f),
        metavar=option.metavar,
        envvar=_variable(f) if option.variable else None,
        help=option.help,
        show_default=option.shown or True,
        min=option.minimum,
        max=option.maximum,
    )
    annotation = list[str] | None if repeated else kind
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=annotation)


def _option_of(f: Field[Any]) -> _Option:
    option: _Option = f.metadata["option"]
    return option


def _variable(f: Field[Any]) -> str:
    return _option_of(f).variable_name or "EXOBUS_" + _flag(f).lstrip("-").replace("-", "_").upper()


def _flag(f: Field[Any]) -> str:
    return _option_of(f).flag or "--" + f.name.replace("_", "-")
