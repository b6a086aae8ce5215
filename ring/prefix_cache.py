"""Which beginnings of texts a ring has computed already, so that a prompt that begins alike need not be computed again.

Keys and values are stored in blocks of `BLOCK` positions. A block depends on its own tokens and all before them, so
it is identified by the number of its parent block and its tokens, in a trie of whole blocks: the automatic prefix
caching of vLLM (W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
2023), with exact comparison in place of its chained hashes.

`PrefixIndex` decides, on the first stage. `PrefixStore` holds the payloads, on every stage, and follows: as the frames
of a ring are ordered, every stage sees the same puts, drops and takes in the same order.

    a session opens       drop = index.shrink(admission.free, prompt); reuse = index.match(prompt)
                          every stage, at the opening: store.drop(drop), then store.take(reuse)
    its prompt is         update = index.store(prompt, admission.free); before its close the same with the answer
    computed              every stage, once it has computed these positions: store.drop, then store.put for each span
    a stage lacks blocks  drop_below = index.clear()
                          every stage: store.drop((), drop_below), with the next opening or update
    a stage has less      drop = index.shrink(most)
    memory                every stage: store.drop(drop), with an update

A payload is whatever the engine saved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Annotated, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from cluster.openings import BlockNumbers

BLOCK = 32  # positions: whole chat templates and system prompts fit closely, and a block is still one large copy
ROOT = -1  # the parent of a first block

BlockT = TypeVar("BlockT")


class CacheUpdate(msgspec.Struct, frozen=True):
    """Work for every stage: drop the blocks `drop`, and all whose number is smaller than `drop_below`; then store a
    session's positions from `start` on.

    `numbers` are those of the new blocks, one for each `BLOCK` positions, in order.
    """

    start: Annotated[int, Meta(ge=0)] = 0
    numbers: BlockNumbers = ()
    drop: BlockNumbers = ()
    drop_below: Annotated[int, Meta(ge=0)] = 0

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Each new block's number, its first position and the one after its last."""
        starts = range(self.start, self.start + len(self.numbers) * BLOCK, BLOCK)
        return [(number, start, start + BLOCK) for number, start in zip(self.numbers, starts, strict=True)]


class CacheReport(msgspec.Struct, frozen=True):
    """What a stage reports to the first one: the most positions that it may hold in its cache now, and whether it lacks
    blocks that were to be stored or dropped.
    """

    most: Annotated[int, Meta(ge=0)]
    lacks: bool = False


class _BlockKey(NamedTuple):
    """What identifies a block in the trie: the number of the block before it, and its tokens."""

    parent: int
    tokens: tuple[int, ...]


class PrefixIndex:
    """The chains of token blocks that a ring stores, by number; at most `positions` positions.

    A number is never used again, so that a late message cannot mean another block. A use of a block is a use of all
    before it, and those are marked after it: so a block is always older than its parent, and the oldest is a leaf.
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._numbers: dict[_BlockKey, int] = {}
        self._keys: OrderedDict[int, _BlockKey] = OrderedDict()  # by number, least recently used first
        self._next = 0

    def match(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of the longest stored chain that `tokens` begin with, and mark it as used.

        At least two tokens are left over: a stage must compute something to have an output, and engines compute a lone
        token in another way than several, so the output would depend on what is stored.
        """
        chain = self._chain(tokens, (len(tokens) - 2) // BLOCK)
        self._mark_used(chain)
        return chain

    def store(self, tokens: Sequence[int], most: int | None = None) -> CacheUpdate | None:
        """Index the whole blocks of `tokens` that are not stored yet; return what the stages have to do for it.

        All that is stored takes at most `most` positions. If there is no room for all blocks, the first ones that fit
        once every other text is gone are stored. Returns None if nothing is new or nothing fits. All positions of
        `tokens` must be computed before a stage applies the update.
        """
        chain = self._chain(tokens, len(tokens) // BLOCK)
        self._mark_used(chain)
        blocks = self._most_blocks(most)
        added = min(len(tokens) // BLOCK, blocks) - len(chain)
        if added <= 0:
            return None
        dropped = self._drop_oldest(len(self._keys) + added - blocks)
        return CacheUpdate(len(chain) * BLOCK, self._add(tokens, chain, added), dropped)

    def shrink(self, most: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
        """Drop the least recently used blocks until at most `most` positions are stored; return their numbers.

        The blocks that `wanted` begins with go last, from its end.
        """
        self._mark_used(self._chain(wanted, len(wanted) // BLOCK))
        return self._drop_oldest(len(self._keys) - self._most_blocks(most))

    def clear(self) -> int:
        """Drop everything; return a number that is larger than all used so far. They are not used again either."""
        self._drop_oldest(len(self._keys))
        return self._next

    def _most_blocks(self, most: int | None) -> int:
        return max(self.positions if most is None else min(most, self.positions), 0) // BLOCK

    def _chain(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        chain: list[int] = []
        for block in range(most):
            number = self._numbers.get(_key_of(tokens, block, chain[-1] if chain else ROOT))
            if number is None:
                break
            chain.append(number)
        return tuple(chain)

    def _mark_used(self, chain: tuple[int, ...]) -> None:
        for number in reversed(chain):
            self._keys.move_to_end(number)

    def _add(self, tokens: Sequence[int], chain: tuple[int, ...], count: int) -> tuple[int, ...]:
        added = tuple(range(self._next, self._next + count))
        self._next += count
        parents = (*chain[-1:], *added) if chain else (ROOT, *added)
        for block, (parent, number) in enumerate(zip(parents, added, strict=False), len(chain)):
            self._keys[number] = key = _key_of(tokens, block, parent)
            self._numbers[key] = number
        self._mark_used(chain + added)
        return added

    def _drop_oldest(self, count: int) -> tuple[int, ...]:
        dropped = []
        for _ in range(count):
            number, key = self._keys.popitem(last=False)
            del self._numbers[key]
            dropped.append(number)
        return tuple(dropped)


def _key_of(tokens: Sequence[int], block: int, parent: int) -> _BlockKey:
    return _BlockKey(parent, tuple(tokens[block * BLOCK : (block + 1) * BLOCK]))


class PrefixLost(Exception):
    """A stage has to reuse a block that it does not hold; `number` is the block's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the stored beginning of this prompt is gone from a stage (block {number}); try again")
        self.number = number


class PrefixStore(Generic[BlockT]):
    """The payloads that one stage holds, by block number. It decides nothing."""

    def __init__(self) -> None:
        self._blocks: dict[int, BlockT] = {}
        self._below = 0  # what was dropped so far: no smaller number comes again

    def __len__(self) -> int:
        """Return how many blocks are held."""
        return len(self._blocks)

    def put(self, number: int, block: BlockT) -> None:
        """Hold a block. Raises KeyError for a number that is held: numbers are never used again."""
        if number in self._blocks:
            raise KeyError(number)
        self._blocks[number] = block

    def drop(self, numbers: Iterable[int], below: int = 0) -> None:
        """Drop blocks, and all whose number is smaller than `below`.

        One that is not held is no error: its session may have failed before it was stored.
        """
        for number in numbers:
            self._blocks.pop(number, None)
        if below > self._below:
            self._below = below
            self._blocks = {number: block for number, block in self._blocks.items() if number >= below}

    def take(self, numbers: Iterable[int]) -> list[BlockT]:
        """Return the payloads of these blocks, in this order; they stay held. Raises PrefixLost if one is missing."""
        try:
            return [self._blocks[number] for number in numbers]
        except KeyError as error:
            raise PrefixLost(error.args[0]) from None
