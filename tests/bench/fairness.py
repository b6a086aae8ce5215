"""Whether concurrent clients get equal shares, and how soon a closed session frees its slot."""

from __future__ import annotations

from statistics import median

from tests.bench.figures import Figure
from tests.support.ring.synthetic_engine import Model
from tests.support.ring.synthetic_ring import SyntheticRing, synthetic_ring

CLIENTS = 8
STAGES = 4
STEP_MS = 5.0
TOKENS = 800  # of all clients together
MOST = 4096


def measure() -> list[Figure]:
    """Measure `jain_8` and `cancel_ms`, with eight clients and prompts of different lengths on four stages."""
    with synthetic_ring(Model(call_ms=STEP_MS, row_ms=1.0, prompt_row_ms=0.05), STAGES) as ring:
        sessions = [ring.streams.open(_prompt(client), MOST) for client in range(CLIENTS)]
        return [_fairness(ring, sessions), _cancel(ring, sessions)]


def _prompt(client: int) -> list[int]:
    return [client + 1] * (1 << client)  # 1 to 128 tokens


def _fairness(ring: SyntheticRing, sessions: list[int]) -> Figure:
    """Compute Jain's index of the tokens that each client got while all ran: 1 is equal, 1/8 is one client alone."""
    received = [ring.streams.received(session) for session in sessions]
    ring.streams.receive(*received, tokens=1)
    before = [len(client.tokens) for client in received]
    ring.streams.receive_until(lambda: sum(len(client.tokens) for client in received) >= sum(before) + TOKENS)
    shares = [len(client.tokens) - start for client, start in zip(received, before, strict=True)]
    note = f"tokens of each of {CLIENTS} clients: {', '.join(map(str, shares))}"
    return Figure("jain_8", jain(shares), "index", "≥ 0.95", note=note)


def jain(shares: list[int]) -> float:
    """Return Jain's fairness index (Jain, Chiu and Hawe 1984): the squared sum by n times the sum of squares."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def _cancel(ring: SyntheticRing, sessions: list[int]) -> Figure:
    """Measure from each session's close frame until the last stage has freed its slot; sessions close one by one."""
    times = [_cancel_ms(ring, left) for left in reversed([sessions[: at + 1] for at in range(len(sessions))])]
    note = f"{STAGES} stages of {STEP_MS:g} ms and more; the slowest of {CLIENTS}, median {median(times):.1f} ms"
    return Figure("cancel_ms", max(times), "ms", "< 100", note=note)


def _cancel_ms(ring: SyntheticRing, sessions: list[int]) -> float:
    closed_ns = ring.streams.end(sessions[-1])
    assert ring.comes_to(lambda stage: stage.slots == len(sessions) - 1), "a slot was never freed"
    return (max(stage.released[-1].at_ns for stage in ring.look(journal=True)) - closed_ns) / 1e6
