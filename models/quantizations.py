"""Which GGUF files of a repository are one model, and which of its quantizations to take. Pure: sizes in, names out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import msgspec

from models.errors import NotOnHub

SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""The name of one part of a split model, as `llama-gguf-split` writes it."""

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?I?Q\d(?:_[A-Z0-9]+)*|T[QR]\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F(?:P)?16|F(?:P)?32)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_FLOAT = re.compile(r"BF16|FP?16|FP?32", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)


class GgufModel(msgspec.Struct, frozen=True):
    """One quantization of a model: its name in upper case, its files in order, and their size in bytes."""

    quant: str
    files: tuple[str, ...]
    size: int


def part_names(first: str, count: int) -> tuple[str, ...]:
    """Name all parts of a split model. `first` is the name of any part; other names stand for themselves."""
    match = SPLIT.fullmatch(first)
    if match is None:
        return (first,)
    before, after = first[: match.start("number")], first[match.end("number") :]
    return tuple(f"{before}{number:05d}{after}" for number in range(1, count + 1))


def gguf_models(sizes: Mapping[str, int]) -> tuple[GgufModel, ...]:
    """Group the GGUF files of a listing, given with sizes in bytes; the smallest model comes first.

    Incomplete split models and files that only go with a model (`mmproj`, `imatrix`) are left out.
    """
    found = {}
    for name in sorted(sizes):
        split = SPLIT.fullmatch(name)
        if not name.lower().endswith(".gguf") or _NO_MODEL.search(name) or (split and int(split["number"]) != 1):
            continue
        files = part_names(name, int(split["count"])) if split else (name,)
        if all(file in sizes for file in files):
            found[name] = GgufModel(quant_of(name), files, sum(sizes[file] for file in files))
    return tuple(sorted(found.values(), key=lambda model: (model.size, model.files)))


def quant_of(name: str) -> str:
    """Return the quantization that the name of a GGUF file ends with, or else its folder's, in upper case.

    Empty if neither names one, and for a file that only goes with a model.
    """
    split = SPLIT.fullmatch(name)
    path = PurePosixPath(split["stem"] if split else re.sub(r"\.gguf\Z", "", name, flags=re.IGNORECASE))
    for part in () if _NO_MODEL.search(name) else reversed(path.parts):
        if matches := _QUANT.findall(part):
            return str(matches[-1]).upper()
    return ""


def named_quant(models: Sequence[GgufModel], quant: str, repo: str) -> GgufModel:
    """Return the model of that quantization, in any case. Raises NotOnHub, which lists what there is."""
    for model in models:
        if model.quant.lower() == quant.lower():
            return model
    there = ", ".join(dict.fromkeys(model.quant for model in models if model.quant)) or "none with a name"
    raise NotOnHub(f"{repo} has no quantization {quant}; it has {there}")


def largest_that_fits(
    models: Sequence[GgufModel], need: Callable[[GgufModel], int], free: int
) -> tuple[GgufModel, str]:
    """Return the largest quantization that needs at most `free` bytes, and why it was chosen, as a sentence.

    Files of 16 or 32 bits count only if there are no others: Q8_0 is hardly worse and half as large. If nothing fits,
    it is the smallest, which the placer then refuses with the sizes of the nodes.
    """
    quantized = [model for model in models if not _FLOAT.fullmatch(model.quant)] or list(models)
    fitting = [model for model in quantized if need(model) <= free]
    chosen = max(fitting, key=lambda model: model.size) if fitting else min(quantized, key=lambda model: model.size)
    known = chosen.quant or chosen.files[0]
    has = f"needs {_gb(need(chosen))}, and {_gb(free)} are free"
    if not fitting:
        return chosen, f"{known} is the smallest of {len(quantized)}, but {has}"
    larger = [model for model in quantized if model.size > chosen.size]
    why = f"{known} is the largest of {len(quantized)} that fits: it {has}"
    return chosen, f"{why}; {larger[0].quant} would need {_gb(need(larger[0]))}" if larger else why


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
