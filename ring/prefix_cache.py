"""Which beginnings of texts a ring has computed already, so that a prompt that begins alike need not be computed again.

Keys and values are stored in blocks of `BLOCK` positions. A block stands for its own tokens and all before them, so
here it is known by the number of its parent block and its tokens, in a trie of whole blocks: the automatic prefix
caching of vLLM (W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
2023), with exact comparison in place of its chained hashes.

`PrefixIndex` decides, on the first stage. `PrefixStore` holds the payloads, on every stage, and obeys: as the frames of
a ring are ordered, every stage sees the same puts, drops and takes in the same order, and none misses what another has.

    a session opens    drop = index.shrink(admission.free, prompt); reuse = index.match(prompt)
                       every stage, at the opening: store.drop(drop), then store.take(reuse)
    its prompt is in   keeping = index.keep(prompt, admission.free); before its close the same with the answer
                       every stage, once it has computed these positions: store.drop, then store.put for each span
    a stage failed it  drop = index.forget(what it reused and kept), for that stage may not have come to keep it
                       every stage: store.drop(drop), which may come as a `CacheUpdate` without numbers

No arrays, no sockets, no clock: a payload is whatever the engine saved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from cluster.openings import BlockNumbers

BLOCK = 32  # positions: whole chat templates and system prompts fit closely, and a block is still one large copy
ROOT = -1  # stands where a first block's parent would

BlockT = TypeVar("BlockT")


class CacheUpdate(msgspec.Struct, frozen=True):
    """The first stage's word to all: drop the blocks `drop`, then store a session's positions from `start` on.

    `numbers` are those of the new blocks, one for each `BLOCK` positions, in order.
    """

    start: Annotated[int, Meta(ge=0)] = 0
    numbers: BlockNumbers = ()
    drop: BlockNumbers = ()

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Of each new block its number, its first position and the one after its last."""
        starts = range(self.start, self.start + len(self.numbers) * BLOCK, BLOCK)
        return [(number, start, start + BLOCK) for number, start in zip(self.numbers, starts, strict=True)]


class _Place(NamedTuple):
    """Where a block is in the trie: the number of the block before it, and its tokens."""

    parent: int
    tokens: tuple[int, ...]


class PrefixIndex:
    """The chains of token blocks that a ring stores, by number; at most `positions` positions.

    A number is never used again, so that a late message cannot mean another block. Whoever uses a block uses all
    before it, and those are marked after it: so a block is always older than its parent, and the oldest is a leaf.
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._numbers: dict[_Place, int] = {}
        self._places: OrderedDict[int, _Place] = OrderedDict()  # by number, least recently used first
        self._next = 0

    @property
    def stored(self) -> int:
        """The positions that the stored blocks take, on every stage."""
        return len(self._places) * BLOCK

    def match(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The numbers of the longest stored chain that `tokens` begin with, marked as used.

        At least one token is left over: a stage must compute something to have an answer.
        """
        chain = self._chain(tokens, (len(tokens) - 1) // BLOCK)
        self._mark_used(chain)
        return chain

    def keep(self, tokens: Sequence[int], most: int | None = None) -> CacheUpdate | None:
        """Store the whole blocks of `tokens` that are not stored yet, in at most `most` positions for all that is.

        Where there is no room for all, the first ones that fit once every other text is gone. None where nothing is
        new or nothing fits. All positions of `tokens` must be computed, or be so before the answer is obeyed.
        """
        chain = self._chain(tokens, len(tokens) // BLOCK)
        self._mark_used(chain)
        blocks = self._most_blocks(most)
        added = min(len(tokens) // BLOCK, blocks) - len(chain)
        if added <= 0:
            return None
        dropped = self._drop_oldest(len(self._places) + added - blocks)
        return CacheUpdate(len(chain) * BLOCK, self._add(tokens, chain, added), dropped)

    def shrink(self, most: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
        """Drop the blocks used longest ago until at most `most` positions are stored; answers their numbers.

        What `wanted` begins with goes last, from its end.
        """
        self._mark_used(self._chain(wanted, len(wanted) // BLOCK))
        return self._drop_oldest(len(self._places) - self._most_blocks(most))

    def forget(self, numbers: Collection[int]) -> tuple[int, ...]:
        """Drop these blocks and all that continue them; answers the numbers of those that were stored."""
        gone = set(numbers)
        for number, place in reversed(self._places.items()):  # parents are newer, so they come first
            if place.parent in gone:
                gone.add(number)
        return tuple(self._drop(number) for number in [number for number in self._places if number in gone])

    def clear(self) -> tuple[int, ...]:
        """Drop everything; answers the numbers. Numbers still are not used again."""
        return self._drop_oldest(len(self._places))

    def _most_blocks(self, most: int | None) -> int:
        return max(self.positions if most is None else min(most, self.positions), 0) // BLOCK

    def _chain(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        chain: list[int] = []
        for block in range(most):
            number = self._numbers.get(_place(tokens, block, chain[-1] if chain else ROOT))
            if number is None:
                break
            chain.append(number)
        return tuple(chain)

    def _mark_used(self, chain: tuple[int, ...]) -> None:
        for number in reversed(chain):
            self._places.move_to_end(number)

    def _add(self, tokens: Sequence[int], chain: tuple[int, ...], count: int) -> tuple[int, ...]:
        added = tuple(range(self._next, self._next + count))
        self._next += count
        parents = (*chain[-1:], *added) if chain else (ROOT, *added)
        for block, (parent, number) in enumerate(zip(parents, added, strict=False), len(chain)):
            self._places[number] = place = _place(tokens, block, parent)
            self._numbers[place] = number
        self._mark_used(chain + added)
        return added

    def _drop_oldest(self, count: int) -> tuple[int, ...]:
        return tuple(self._drop(next(iter(self._places))) for _ in range(count))

    def _drop(self, number: int) -> int:
        del self._numbers[self._places.pop(number)]
        return number


def _place(tokens: Sequence[int], block: int, parent: int) -> _Place:
    return _Place(parent, tuple(tokens[block * BLOCK : (block + 1) * BLOCK]))


class PrefixLost(Exception):
    """A stage was told to reuse a block that it does not hold; `number` is the block's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the stored beginning of this prompt is gone from a stage (block {number}); ask again")
        self.number = number


class PrefixStore(Generic[BlockT]):
    """The payloads that one stage holds, by block number. It decides nothing."""

    def __init__(self) -> None:
        self._blocks: dict[int, BlockT] = {}

    def __len__(self) -> int:
        """How many blocks are held."""
        return len(self._blocks)

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the blocks held."""
        return frozenset(self._blocks)

    def put(self, number: int, block: BlockT) -> None:
        """Hold a block. Raises KeyError for a number that is held: numbers are never used again."""
        if number in self._blocks:
            raise KeyError(number)
        self._blocks[number] = block

    def drop(self, numbers: Iterable[int]) -> None:
        """Let blocks go. One that is not held is no error: a session that failed may never have come to keep it."""
        for number in numbers:
            self._blocks.pop(number, None)

    def take(self, numbers: Iterable[int]) -> list[BlockT]:
        """The payloads of these blocks, in this order; they stay held. Raises PrefixLost."""
        try:
            return [self._blocks[number] for number in numbers]
        except KeyError as error:
            raise PrefixLost(error.args[0]) from None

    def clear(self) -> None:
        """Let everything go."""
        self._blocks.clear()
