"""The process of a real engine actor with the synthetic engine: `python -m tests.support.ring.engine_process`."""

from __future__ import annotations

from unittest.mock import patch

from actors.engine_actor import EngineActor
from bus.process import actor_name, run_actor
from tests.support.ring.synthetic_engine import SyntheticEngine

if __name__ == "__main__":
    with patch("ring.loaded_shard.create", lambda *_: SyntheticEngine()):
        run_actor(EngineActor, actor_name("engine"))
