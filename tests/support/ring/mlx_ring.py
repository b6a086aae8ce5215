"""Chats on MLX rings with caches that cannot be copied: `python -m tests.support.ring.mlx_ring FOLDER FAMILY`.

In a child process, since it imports mlx_lm. Prints JSON: for rings of one and of two stages the tokens of two chats
with the same prompt of 40 tokens, their failures, and how many positions each stage stores.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bus.process import end_without_finalizing
from engines.mlx.family_model import open_file_limit_kept
from tests.support.mlx_families import write_family
from tests.support.ring.stage_ring import GREEDY, stage_ring

PROMPT = [(7 * at) % 61 + 3 for at in range(40)]


def chats(weights: Path, stages: int) -> dict[str, Any]:
    """Have the same chat twice."""
    with stage_ring(weights, stages, engine="mlx") as ring:
        tokens = [ring.generate(session, PROMPT, 6, GREEDY) for session in (1, 2)]
        failures = [ring.gateway.sessions[session].failure for session in (1, 2)]
        assert ring.all_closed()
        stored = [stage.counts.stored_positions for stage in ring.stages]
    return {"tokens": tokens, "failures": [failure and failure.message for failure in failures], "stored": stored}


if __name__ == "__main__":
    with open_file_limit_kept():
        import_module("mlx_lm.utils")
    written = write_family(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps({stages: chats(written, stages) for stages in (1, 2)}))
    end_without_finalizing()
