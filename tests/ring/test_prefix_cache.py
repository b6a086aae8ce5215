"""`ring.prefix_cache`, driven by `ring.ring_memory`, as a model of a ring: the first stage decides, and every stage
follows, late but in order.

The payload of a block is the whole text up to its end, as keys and values depend on all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.failures import FailureCode
from cluster.openings import Opening
from cluster.sampling import SamplingParams
from ring.prefix_cache import BLOCK, CacheReport, CacheUpdate, PrefixIndex, PrefixLost, PrefixStore
from ring.ring_memory import RingMemory

Tokens = tuple[int, ...]

PARAGRAPHS = st.lists(st.booleans(), max_size=3).map(lambda words: tuple(int(w) for w in words for _ in range(BLOCK)))
TAILS = st.sampled_from([(2,) * length for length in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1)])
TEXTS = st.builds(lambda head, tail: head + tail, PARAGRAPHS, TAILS).filter(bool)


class Stage:
    """Follows the first stage's commands: a store, and the slots of its sessions as the tokens they hold."""

    def __init__(self) -> None:
        self.store: PrefixStore[Tokens] = PrefixStore()
        self.slots: dict[int, Tokens] = {}
        self.reserved: dict[int, int] = {}
        self.commands: deque[Callable[[Stage], None]] = deque()
        self.failed: list[int] = []  # sessions of which the first stage has not received the failure
        self.lacks = 0  # reports of missing blocks that the first stage has not received
        self.overdue: set[int] = set()  # blocks of which the drop was lost

    @property
    def numbers(self) -> set[int]:
        return set(self.store._blocks)

    @property
    def positions(self) -> int:
        return sum(self.reserved.values()) + len(self.numbers - self.overdue) * BLOCK

    def open(self, session: int, opening: Opening) -> None:
        self.store.drop(opening.drop, opening.drop_below)
        self.reserved[session] = opening.positions
        if missing := set(opening.reuse) - self.numbers:
            with pytest.raises(PrefixLost) as lost:
                self.store.take(opening.reuse)
            assert lost.value.number in missing
            self.fail(session)
            self.lacks += 1
            return
        reused, prompt = self.store.take(opening.reuse), opening.prompt
        assert reused == [prompt[:end] for end in range(BLOCK, (len(reused) + 1) * BLOCK, BLOCK)]
        assert len(reused) * BLOCK < len(prompt)
        self.slots[session] = prompt

    def answer(self, session: int, tokens: Tokens) -> None:
        if session in self.slots:
            self.slots[session] += tokens
            assert len(self.slots[session]) <= self.reserved[session]

    def update(self, session: int, update: CacheUpdate) -> None:
        self.store.drop(update.drop, update.drop_below)
        if update.numbers and session not in self.slots:
            self.lacks += 1
            return
        for number, _, end in update.spans:
            assert end <= len(self.slots[session])
            self.store.put(number, self.slots[session][:end])

    def close(self, session: int) -> None:
        self.slots.pop(session, None)
        self.reserved.pop(session, None)

    def fail(self, session: int) -> None:
        self.close(session)
        self.failed.append(session)


@dataclass
class Live:
    """What the first stage knows of a session."""

    text: Tokens
    answer: int


class Ring(RuleBasedStateMachine):
    """Sessions open, are stored and close at the first stage; the stages follow in any interleaving."""

    @initialize(stages=st.integers(1, 3), positions=st.integers(4 * BLOCK, 12 * BLOCK), sessions=st.integers(1, 3))
    def begin(self, stages: int, positions: int, sessions: int) -> None:
        self.stages = [Stage() for _ in range(stages)]
        self.positions = positions
        self.memory = RingMemory(positions, sessions)
        self.live: dict[int, Live] = {}
        self.held: set[int] = set()  # numbers of the blocks that all stages hold once they have followed
        self.updates: dict[Callable[[Stage], None], CacheUpdate] = {}  # by the command that carries it out
        self.last = 0

    @precondition(lambda self: self.memory.waiting < 2)
    @rule(prompt=TEXTS, answer=st.integers(1, BLOCK), starts=st.booleans())
    def enqueue(self, prompt: Tokens, answer: int, starts: bool) -> None:
        self.last += 1
        opening = Opening(prompt, len(prompt), answer, frozenset(), SamplingParams(), ())
        if failure := self.memory.enqueue(self.last, opening):
            assert failure.code is FailureCode.TOO_LARGE
            assert opening.positions > self.positions
            return
        self.admit(starts)

    def admit(self, starts: bool = True) -> None:
        while admitted := self.memory.admit(0.0):
            session, opening = admitted
            if not starts:  # its owner went away while it waited
                self.memory.undo_admission(session, opening, 0.0)
                continue
            self.open(session, opening)

    def open(self, session: int, opening: Opening) -> None:
        self.drop(opening.drop)
        self.live[session] = Live(opening.prompt, opening.max_tokens)
        self.command(lambda stage: stage.open(session, opening))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        self.store_text(data.draw(st.sampled_from(sorted(self.live))))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), word=st.integers(0, 1), left_early=st.booleans())
    def close(self, data: st.DataObject, word: int, left_early: bool) -> None:
        session = data.draw(st.sampled_from(sorted(self.live)))
        live = self.live[session]
        if not left_early:
            answer = (word,) * live.answer
            live.text += answer
            self.command(lambda stage: stage.answer(session, answer))
            self.store_text(session)
        self.end(session)

    @rule(data=st.data(), commands=st.integers(1, 4))
    def follow(self, data: st.DataObject, commands: int) -> None:
        stage = data.draw(st.sampled_from(self.stages))
        for _ in range(min(commands, len(stage.commands))):
            stage.commands.popleft()(stage)
            assert stage.positions <= self.positions

    @rule(stage=st.integers(0, 2), most=st.integers(0, 12 * BLOCK))
    def report_memory(self, stage: int, most: int) -> None:
        self.memory.reported(stage, CacheReport(most))

    @rule()
    def trim(self) -> None:
        if update := self.memory.trim(0.0):
            self.drop(update.drop)
            self.send_update(0, update)

    def send_update(self, session: int, update: CacheUpdate) -> None:
        def follow(stage: Stage) -> None:
            stage.update(session, update)

        self.updates[follow] = update
        self.command(follow)

    @invariant()
    def stored_blocks_leave_room_for_the_sessions(self) -> None:
        reserved = sum(len(live.text) + live.answer for live in self.live.values())
        assert len(self.held) * BLOCK + reserved <= self.positions

    def teardown(self) -> None:
        if not hasattr(self, "stages"):
            return
        while self.live:  # an end admits the next one that waits
            self.end(min(self.live))
        self.follow_all()
        self.open_and_close_a_short_one()  # carries what is to be dropped
        self.check_stores()
        self.memory.invalidate()
        self.open_and_close_a_short_one()
        assert not any(stage.numbers for stage in self.stages)

    def check_stores(self) -> None:
        for stage in self.stages:
            assert stage.numbers == self.held
            assert not stage.failed

    def open_and_close_a_short_one(self) -> None:
        self.last += 1
        assert self.memory.enqueue(self.last, Opening((9,), 1, 1, frozenset(), SamplingParams(), ())) is None
        self.admit()
        self.end(self.last)
        self.follow_all()

    def store_text(self, session: int) -> None:
        update = self.memory.store(self.live[session].text)
        if update is not None:
            assert update.numbers
            assert self.held.isdisjoint(update.numbers)
            self.drop(update.drop)
            self.held |= set(update.numbers)
            self.send_update(session, update)

    def drop(self, numbers: Tokens) -> None:
        assert self.held >= set(numbers), "a block is dropped once"
        self.held -= set(numbers)

    def end(self, session: int) -> None:
        del self.live[session]
        self.memory.remove(session, 0.0)
        self.command(lambda stage: stage.close(session))
        self.admit()

    def follow_all(self) -> None:
        for stage in self.stages:
            while stage.commands:
                stage.commands.popleft()(stage)

    def command(self, command: Callable[[Stage], None]) -> None:
        for stage in self.stages:
            stage.commands.append(command)


class FailingRing(Ring):
    """Stages fail sessions, and updates are lost on their way: in the end all stages hold the same blocks again."""

    @precondition(lambda self: any(stage.slots for stage in self.stages))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from([stage for stage in self.stages if stage.slots]))
        stage.fail(data.draw(st.sampled_from(sorted(stage.slots))))

    @precondition(lambda self: any(self.updates_of(stage) for stage in self.stages))
    @rule(data=st.data())
    def lose_an_update(self, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from([stage for stage in self.stages if self.updates_of(stage)]))
        command = data.draw(st.sampled_from(self.updates_of(stage)))
        stage.commands.remove(command)
        stage.overdue |= set(self.updates[command].drop)
        stage.lacks += 1  # which the stage before it reports

    def updates_of(self, stage: Stage) -> list[Callable[[Stage], None]]:
        return [command for command in stage.commands if command in self.updates]

    @rule()
    def receive_reports(self) -> None:
        for stage in self.stages:
            while stage.failed:
                if (session := stage.failed.pop()) in self.live:
                    self.end(session)
            if stage.lacks:
                stage.lacks = 0
                self.memory.invalidate()
                self.held.clear()

    def follow_all(self) -> None:
        while any(stage.commands or stage.failed or stage.lacks for stage in self.stages):
            super().follow_all()
            self.receive_reports()


for machine in (Ring, FailingRing):
    machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestRing = Ring.TestCase
TestFailingRing = FailingRing.TestCase


def text(words: str, tail: int = 2) -> Tokens:
    """Return a block for each letter, and `tail` tokens more."""
    return tuple(ord(word) for word in words for _ in range(BLOCK)) + (0,) * tail


def index_of(*texts: str, blocks: int = 100) -> tuple[PrefixIndex, dict[str, int]]:
    """Return an index that stores these texts, and the number of each text's last block."""
    index = PrefixIndex(blocks * BLOCK)
    for words in texts:
        index.store(text(words))
    return index, {words: index.match(text(words))[-1] for words in texts}


def stored(index: PrefixIndex, words: str) -> int:
    """Return how many blocks of a text are stored, and mark them as used."""
    return len(index.match(text(words)))


@given(st.lists(TEXTS, max_size=8), TEXTS)
def test_match_finds_the_longest_stored_beginning(kept: list[Tokens], prompt: Tokens) -> None:
    index = PrefixIndex(10_000 * BLOCK)
    payloads: dict[int, Tokens] = {}
    for tokens in kept:
        for number, start, end in (index.store(tokens) or CacheUpdate()).spans:
            assert end - start == BLOCK
            payloads[number] = tokens[:end]
    ends = range(BLOCK, len(prompt) - 1, BLOCK)
    expected = [prompt[:end] for end in ends if any(tokens[:end] == prompt[:end] for tokens in kept)]
    assert [payloads[number] for number in index.match(prompt)] == expected
    assert len(set(payloads.values())) == len(payloads)


def test_shared_system_prompt_is_stored_once() -> None:
    index = PrefixIndex(100 * BLOCK)
    updates = [index.store(text("system" + question)) for question in "abc"]
    assert updates == [
        CacheUpdate(0, (0, 1, 2, 3, 4, 5, 6)),
        CacheUpdate(6 * BLOCK, (7,)),
        CacheUpdate(6 * BLOCK, (8,)),
    ]
    assert [stored(index, "system" + question) for question in "abc"] == [7, 7, 7]


def test_match_leaves_two_tokens_to_compute() -> None:
    index = PrefixIndex(100 * BLOCK)
    update = index.store(text("ab", tail=0))
    assert update == CacheUpdate(0, (0, 1))
    assert index.match(text("ab", tail=0)) == (0,)
    assert index.match(text("ab", tail=1)) == (0,)
    assert index.match(text("ab", tail=2)) == (0, 1)
    assert index.match(()) == ()


def test_same_tokens_after_another_beginning_differ() -> None:
    index, numbers = index_of("ab", "cb")
    assert numbers["ab"] != numbers["cb"]
    assert index.match(text("b")) == ()


def test_shrink_drops_least_recently_used_from_its_end() -> None:
    index, numbers = index_of("ab", "cd")
    index.match(text("ab"))
    assert index.shrink(3 * BLOCK) == (numbers["cd"],)
    assert index.shrink(3 * BLOCK - 1) == (numbers["cd"] - 1,)
    assert (stored(index, "ab"), stored(index, "cd")) == (2, 0)


def test_shrink_drops_a_new_text_from_its_end() -> None:
    index = PrefixIndex(100 * BLOCK)
    index.store(text("abc"))
    assert index.shrink(1 * BLOCK) == (2, 1)
    assert stored(index, "abc") == 1


def test_shrink_drops_wanted_text_last() -> None:
    index, _ = index_of("ab", "cd")
    index.shrink(1 * BLOCK, wanted=text("ab"))
    assert (stored(index, "ab"), stored(index, "cd")) == (1, 0)


def test_store_drops_other_texts_but_not_its_own() -> None:
    index, numbers = index_of("ab", "axy", blocks=4)
    update = index.store(text("abcdef"))
    assert update is not None
    assert update.start == 2 * BLOCK
    assert len(update.numbers) == 2
    assert update.drop == (numbers["axy"], numbers["axy"] - 1)
    assert stored(index, "abcdef") == 4
    assert index.store(text("abcdef")) is None


def test_store_stays_within_the_free_positions() -> None:
    index, numbers = index_of("ab", blocks=4)
    assert index.store(text("cdef"), most=BLOCK - 1) is None
    assert index.store(text("cdef"), most=2 * BLOCK) == CacheUpdate(0, (2, 3), (numbers["ab"], numbers["ab"] - 1))
    assert PrefixIndex(BLOCK - 1).store(text("a")) is None


def test_block_number_is_never_reused() -> None:
    index, numbers = index_of("ab")
    assert index.clear() == numbers["ab"] + 1
    assert index.match(text("ab")) == ()
    assert index.store(text("ab")) == CacheUpdate(0, (2, 3))


def test_missing_block_is_named() -> None:
    index, _ = index_of("abc")
    store: PrefixStore[str] = PrefixStore()
    store.put(0, "a")
    with pytest.raises(PrefixLost, match=r"block 1\); try again") as lost:
        store.take(index.match(text("abc")))
    assert lost.value.number == 1


def test_take_keeps_blocks_and_their_order() -> None:
    store: PrefixStore[str] = PrefixStore()
    store.put(3, "three")
    store.put(1, "one")
    assert store.take((1, 3)) == store.take((1, 3)) == ["one", "three"]
    with pytest.raises(KeyError):
        store.put(1, "another")
    store.drop((1, 5))
    assert len(store) == 1
    store.drop((), below=4)
    assert len(store) == 0


def test_update_survives_encoding() -> None:
    update = CacheUpdate(2 * BLOCK, (7, 8), (1,), 5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(update), type=CacheUpdate) == update
    assert update.spans == [(7, 2 * BLOCK, 3 * BLOCK), (8, 3 * BLOCK, 4 * BLOCK)]
