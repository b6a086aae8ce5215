"""The prefix cache as a model of a ring: one index, a store on each stage, and commands that arrive late but in order.

The payload of a block is the whole text up to its end, as keys and values depend on all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ring.admission import Admission, TooLarge
from ring.prefix_cache import BLOCK, CacheUpdate, PrefixIndex, PrefixLost, PrefixStore

Tokens = tuple[int, ...]

PARAGRAPHS = st.lists(st.booleans(), max_size=3).map(lambda words: tuple(int(w) for w in words for _ in range(BLOCK)))
TAILS = st.sampled_from([(2,) * length for length in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1)])
TEXTS = st.builds(lambda head, tail: head + tail, PARAGRAPHS, TAILS).filter(bool)


class Stage:
    """Obeys: a store, and the slots of its sessions as the tokens they hold."""

    def __init__(self) -> None:
        self.store: PrefixStore[Tokens] = PrefixStore()
        self.slots: dict[int, Tokens] = {}
        self.reserved: dict[int, int] = {}
        self.commands: deque[Callable[[Stage], None]] = deque()

    @property
    def positions(self) -> int:
        return sum(self.reserved.values()) + len(self.store) * BLOCK

    def open(self, session: int, prompt: Tokens, reserve: int, reuse: Tokens, drop: Tokens) -> None:
        self.store.drop(drop)
        self.reserved[session] = reserve
        reused = self.store.take(reuse)
        assert reused == [prompt[:end] for end in range(BLOCK, (len(reuse) + 1) * BLOCK, BLOCK)]
        assert len(reused) * BLOCK < len(prompt)
        self.slots[session] = prompt

    def answer(self, session: int, tokens: Tokens) -> None:
        if session in self.slots:
            self.slots[session] += tokens
            assert len(self.slots[session]) <= self.reserved[session]

    def keep(self, session: int, keeping: CacheUpdate) -> None:
        self.store.drop(keeping.drop)
        for number, _, end in keeping.spans if session in self.slots else []:
            assert end <= len(self.slots[session])
            self.store.put(number, self.slots[session][:end])

    def close(self, session: int) -> None:
        self.slots.pop(session, None)
        self.reserved.pop(session, None)


@dataclass
class Live:
    """What the first stage knows of a session."""

    text: Tokens
    answer: int
    numbers: list[int] = field(default_factory=list)  # of blocks that it reused or kept


class Ring(RuleBasedStateMachine):
    """Sessions open, keep and close at the first stage; the other stages hear of it in any interleaving."""

    @initialize(stages=st.integers(1, 3), positions=st.integers(4 * BLOCK, 12 * BLOCK), sessions=st.integers(1, 3))
    def begin(self, stages: int, positions: int, sessions: int) -> None:
        self.stages = [Stage() for _ in range(stages)]
        self.admission = Admission(positions, sessions, queue=2)
        self.index = PrefixIndex(positions)
        self.live: dict[int, Live] = {}
        self.asked: dict[int, Live] = {}
        self.held: set[int] = set()  # numbers of the blocks that all stages hold once they have heard
        self.last = 0

    @precondition(lambda self: len(self.admission.waiting) < 2)
    @rule(prompt=TEXTS, answer=st.integers(0, BLOCK))
    def ask(self, prompt: Tokens, answer: int) -> None:
        self.last += 1
        try:
            self.admission.ask(self.last, len(prompt) + answer)
        except TooLarge:
            return
        self.asked[self.last] = Live(prompt, answer)
        self.admit()

    def admit(self) -> None:
        while (session := self.admission.admit()) is not None:
            self.open(session)

    def open(self, session: int) -> None:
        live = self.live[session] = self.asked.pop(session)
        drop = self.index.shrink(self.admission.free, live.text)
        reuse = self.index.match(live.text)
        live.numbers += reuse
        self.held -= set(drop)
        prompt, reserve = live.text, len(live.text) + live.answer
        self.tell(lambda stage: stage.open(session, prompt, reserve, reuse, drop))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        self.keep_text(data.draw(st.sampled_from(sorted(self.live))))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), word=st.integers(0, 1), left_early=st.booleans())
    def close(self, data: st.DataObject, word: int, left_early: bool) -> None:
        session = data.draw(st.sampled_from(sorted(self.live)))
        live = self.live[session]
        if not left_early:
            answer = (word,) * live.answer
            live.text += answer
            self.tell(lambda stage: stage.answer(session, answer))
            self.keep_text(session)
        self.end(session)

    @rule(data=st.data(), commands=st.integers(1, 4))
    def deliver(self, data: st.DataObject, commands: int) -> None:
        stage = data.draw(st.sampled_from(self.stages))
        for _ in range(min(commands, len(stage.commands))):
            stage.commands.popleft()(stage)
            assert stage.positions <= self.admission.positions

    @invariant()
    def what_is_stored_leaves_room_for_the_sessions(self) -> None:
        assert self.index.stored == len(self.held) * BLOCK <= self.admission.free

    def teardown(self) -> None:
        if not hasattr(self, "stages"):
            return
        self.drain()
        self.check_stores()
        gone = self.index.clear()
        self.tell(lambda stage: stage.store.drop(gone))
        self.drain()
        assert [len(stage.store) for stage in self.stages] == [0] * len(self.stages)
        assert self.index.stored == 0

    def check_stores(self) -> None:
        for stage in self.stages:
            assert stage.store.numbers == self.held

    def keep_text(self, session: int) -> None:
        live = self.live[session]
        keeping = self.index.keep(live.text, self.admission.free)
        if keeping is not None:
            assert keeping.numbers
            assert self.held >= set(keeping.drop)
            assert self.held.isdisjoint(keeping.numbers)
            self.held = self.held - set(keeping.drop) | set(keeping.numbers)
            live.numbers += keeping.numbers
            self.tell(lambda stage: stage.keep(session, keeping))

    def end(self, session: int) -> None:
        del self.live[session]
        self.admission.leave(session)
        self.tell(lambda stage: stage.close(session))
        self.admit()

    def drain(self) -> None:
        for stage in self.stages:
            while stage.commands:
                stage.commands.popleft()(stage)

    def tell(self, command: Callable[[Stage], None]) -> None:
        for stage in self.stages:
            stage.commands.append(command)


class FailingStage(Stage):
    """Ends a session by itself where it misses a block; the first stage hears of that late."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[int] = []

    def open(self, session: int, prompt: Tokens, reserve: int, reuse: Tokens, drop: Tokens) -> None:
        missing = set(reuse) - self.store.numbers
        if not missing:
            super().open(session, prompt, reserve, reuse, drop)
            return
        with pytest.raises(PrefixLost) as lost:
            super().open(session, prompt, reserve, reuse, drop)
        assert lost.value.number in missing
        self.fail(session)

    def fail(self, session: int) -> None:
        self.close(session)
        self.failed.append(session)


class FailingRing(Ring):
    """Stages fail sessions, and so miss what these were to keep: contents stay right, and nothing stays behind.

    Where the first stage closed a session before it heard of the failure, blocks are missing until one asks for them.
    """

    @initialize(stages=st.integers(1, 3), positions=st.integers(4 * BLOCK, 12 * BLOCK), sessions=st.integers(1, 3))
    def begin(self, stages: int, positions: int, sessions: int) -> None:
        super().begin(stages, positions, sessions)
        self.failing = [FailingStage() for _ in range(stages)]
        self.stages = [*self.failing]
        self.all_heard = True

    @precondition(lambda self: any(stage.slots for stage in self.failing))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from([stage for stage in self.failing if stage.slots]))
        stage.fail(data.draw(st.sampled_from(sorted(stage.slots))))

    @rule()
    def hear_failures(self) -> None:
        for stage in self.failing:
            while stage.failed:
                self.hear(stage.failed.pop())

    def hear(self, session: int) -> None:
        self.all_heard &= session in self.live
        if session in self.live:
            drop = self.index.forget(self.live[session].numbers)
            self.held -= set(drop)
            self.tell(lambda stage: stage.keep(session, CacheUpdate(drop=drop)))
            self.end(session)

    def drain(self) -> None:
        while any(stage.commands or stage.failed for stage in self.failing):
            super().drain()
            self.hear_failures()

    def check_stores(self) -> None:
        for stage in self.stages:
            assert stage.store.numbers <= self.held
            assert stage.store.numbers == self.held or not self.all_heard


for machine in (Ring, FailingRing):
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestRing = Ring.TestCase
TestFailingRing = FailingRing.TestCase


def text(words: str, tail: int = 1) -> Tokens:
    """A block for each letter, and `tail` tokens more."""
    return tuple(ord(word) for word in words for _ in range(BLOCK)) + (0,) * tail


def index_of(*texts: str, blocks: int = 100) -> tuple[PrefixIndex, dict[str, int]]:
    """An index that stores these texts, and the number of each text's last block."""
    index = PrefixIndex(blocks * BLOCK)
    for words in texts:
        index.keep(text(words))
    return index, {words: index.match(text(words))[-1] for words in texts}


def stored(index: PrefixIndex, words: str) -> int:
    """How many blocks of a text are stored. Marks them used."""
    return len(index.match(text(words)))


@given(st.lists(TEXTS, max_size=8), TEXTS)
def test_with_room_for_all_the_longest_common_beginning_is_found(kept: list[Tokens], prompt: Tokens) -> None:
    index = PrefixIndex(10_000 * BLOCK)
    payloads: dict[int, Tokens] = {}
    for tokens in kept:
        for number, start, end in (index.keep(tokens) or CacheUpdate()).spans:
            assert end - start == BLOCK
            payloads[number] = tokens[:end]
    ends = range(BLOCK, len(prompt), BLOCK)
    expected = [prompt[:end] for end in ends if any(tokens[:end] == prompt[:end] for tokens in kept)]
    assert [payloads[number] for number in index.match(prompt)] == expected
    assert len(set(payloads.values())) == len(payloads)


def test_a_system_prompt_shared_by_many_sessions_is_stored_once() -> None:
    index = PrefixIndex(100 * BLOCK)
    keepings = [index.keep(text("system" + question)) for question in "abc"]
    assert keepings == [
        CacheUpdate(0, (0, 1, 2, 3, 4, 5, 6)),
        CacheUpdate(6 * BLOCK, (7,)),
        CacheUpdate(6 * BLOCK, (8,)),
    ]
    assert index.stored == 9 * BLOCK


def test_a_prompt_that_is_stored_whole_leaves_a_token_to_compute() -> None:
    index = PrefixIndex(100 * BLOCK)
    keeping = index.keep(text("ab", tail=0))
    assert keeping == CacheUpdate(0, (0, 1))
    assert index.match(text("ab", tail=0)) == (0,)
    assert index.match(text("ab", tail=1)) == (0, 1)
    assert index.match(()) == ()


def test_the_same_tokens_after_another_beginning_are_another_block() -> None:
    index, numbers = index_of("ab", "cb")
    assert numbers["ab"] != numbers["cb"]
    assert index.match(text("b")) == ()


def test_what_was_used_longest_ago_goes_first_and_from_its_end() -> None:
    index, numbers = index_of("ab", "cd")
    index.match(text("ab"))
    assert index.shrink(3 * BLOCK) == (numbers["cd"],)
    assert index.shrink(3 * BLOCK - 1) == (numbers["cd"] - 1,)
    assert (stored(index, "ab"), stored(index, "cd")) == (2, 0)


def test_what_was_kept_just_now_goes_from_its_end_too() -> None:
    index = PrefixIndex(100 * BLOCK)
    index.keep(text("abc"))
    assert index.shrink(1 * BLOCK) == (2, 1)
    assert stored(index, "abc") == 1


def test_what_a_new_session_wants_goes_last() -> None:
    index, _ = index_of("ab", "cd")
    index.shrink(1 * BLOCK, wanted=text("ab"))
    assert (stored(index, "ab"), stored(index, "cd")) == (1, 0)


def test_keeping_more_than_fits_drops_every_other_text_but_none_of_its_own() -> None:
    index, numbers = index_of("ab", "axy", blocks=4)
    keeping = index.keep(text("abcdef"))
    assert keeping is not None
    assert keeping.start == 2 * BLOCK
    assert len(keeping.numbers) == 2
    assert keeping.drop == (numbers["axy"], numbers["axy"] - 1)
    assert stored(index, "abcdef") == 4
    assert index.keep(text("abcdef")) is None


def test_what_live_sessions_leave_bounds_what_is_kept() -> None:
    index, numbers = index_of("ab", blocks=4)
    assert index.keep(text("cdef"), most=BLOCK - 1) is None
    assert index.keep(text("cdef"), most=2 * BLOCK) == CacheUpdate(0, (2, 3), (numbers["ab"], numbers["ab"] - 1))
    assert PrefixIndex(BLOCK - 1).keep(text("a")) is None


def test_forgetting_a_block_forgets_what_continues_it() -> None:
    index, numbers = index_of("abc", "abd", "xy")
    gone = index.forget([numbers["abc"] - 1, 12345])
    assert sorted(gone) == [numbers["abc"] - 1, numbers["abc"], numbers["abd"]]
    assert [stored(index, words) for words in ("abc", "abd", "xy")] == [1, 1, 2]
    assert index.forget(gone) == ()


def test_a_number_is_never_used_again() -> None:
    index, numbers = index_of("ab")
    assert sorted(index.clear()) == [0, numbers["ab"]]
    assert index.stored == 0
    assert index.keep(text("ab")) == CacheUpdate(0, (2, 3))


def test_a_block_that_a_stage_never_came_to_keep_is_named_and_can_be_forgotten() -> None:
    index, _ = index_of("abc")
    store: PrefixStore[str] = PrefixStore()
    store.put(0, "a")
    with pytest.raises(PrefixLost, match=r"block 1\); ask again") as lost:
        store.take(index.match(text("abc")))
    assert lost.value.number == 1
    store.drop(index.forget([1]))
    assert store.take(index.match(text("abc"))) == ["a"]


def test_a_store_answers_in_the_order_asked_and_keeps_what_it_gave() -> None:
    store: PrefixStore[str] = PrefixStore()
    store.put(3, "three")
    store.put(1, "one")
    assert store.take((1, 3)) == store.take((1, 3)) == ["one", "three"]
    with pytest.raises(KeyError):
        store.put(1, "another")
    store.clear()
    assert (len(store), store.numbers) == (0, frozenset())


def test_the_word_to_keep_survives_the_wire() -> None:
    keeping = CacheUpdate(2 * BLOCK, (7, 8), (1,))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(keeping), type=CacheUpdate) == keeping
    assert keeping.spans == [(7, 2 * BLOCK, 3 * BLOCK), (8, 3 * BLOCK, 4 * BLOCK)]
