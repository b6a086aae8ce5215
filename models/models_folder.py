"""A folder of the user in which every model folder and .gguf file is a model: its cards, kept as it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from models.catalogue import write_card
from models.errors import ModelError
from models.fingerprint import model_files
from models.own import id_of, own_card
from models.quantizations import SPLIT

MAX_MODELS = 256
_State = tuple[tuple[str, int, int], ...]


class ModelsFolder:
    """Writes the cards of the models in `folder` into `cards`. `taken` says whether another model has an id."""

    def __init__(self, folder: Path, cards: Path, taken: Callable[[str], bool]) -> None:
        self._folder = folder
        self._cards = cards
        self._taken = taken
        self._seen: dict[Path, _State] = {}

    def update(self) -> list[str]:
        """Bring the cards up to date. Returns a sentence for each model that came or changed and cannot be used."""
        found = dict(self._found())
        changed = [path for path, state in found.items() if self._seen.get(path) != state]
        gone = [path for path in self._seen if path not in found]
        for path in (*gone, *changed):
            if path in self._seen:
                (self._cards / f"{id_of(path)}.json").unlink(missing_ok=True)
        self._seen = found
        return [sentence for path in changed if (sentence := self._add(path))]

    def _found(self) -> Iterator[tuple[Path, _State]]:
        """List the models with the sizes and times of their files. A folder that cannot be read has none."""
        try:
            paths = sorted(path for path in self._folder.iterdir() if _is_model(path))[:MAX_MODELS]
            for path in paths:
                files = [(file, file.stat()) for file in model_files(path)]
                yield path, tuple((file.name, status.st_size, status.st_mtime_ns) for file, status in files)
        except OSError:
            return  # a file is being moved, or a disk was taken away; the next look sees how that ended

    def _add(self, path: Path) -> str:
        """Write a model's card. Returns why it cannot be used, or ""."""
        if self._taken(id_of(path)):
            return f"{path} is left out: the catalogue has another model {id_of(path)}; rename it"
        try:
            write_card(self._cards, own_card(path))
        except (ModelError, OSError) as error:
            return f"{path} is left out: {error}"
        return ""


def _is_model(path: Path) -> bool:
    """Return whether a path is a model folder or the first file of a GGUF model."""
    if path.is_dir():
        return (path / "config.json").is_file() or any(path.glob("*.gguf"))
    split = SPLIT.fullmatch(path.name)
    later = split is not None and int(split["number"]) != 1
    return path.suffix.lower() == ".gguf" and "mmproj" not in path.name.lower() and not later
