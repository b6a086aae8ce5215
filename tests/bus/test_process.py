"""`bus.process`: what a process of a node does before it runs its actor."""

from __future__ import annotations

import resource

from bus.process import allow_many_files


def test_soft_limit_of_open_files_rises_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        allowed = allow_many_files()
        assert allowed == resource.getrlimit(resource.RLIMIT_NOFILE)[0] or hard == resource.RLIM_INFINITY
        assert allowed > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
