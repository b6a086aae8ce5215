"""Pool entries are allocated from the first on, and freed without touching others."""

from __future__ import annotations

from engines.onnx.kv_pool import KVPool


def test_first_free_entry_is_allocated() -> None:
    pool = KVPool(1, 1, 16, 4)
    assert [pool.allocate() for _ in range(3)] == [0, 1, 2]
    pool.free(1)
    assert [pool.allocate() for _ in range(2)] == [1, 3]


def test_freeing_an_entry_keeps_the_others() -> None:
    pool = KVPool(2, 3, 100, 4)  # entries of 4800 bytes: none but the first begins at a page
    for entry in range(3):
        pool.array[:, :, pool.allocate()] = entry + 1
    pool.free(1)
    assert (pool.array[:, :, 0] == 1).all()
    assert (pool.array[:, :, 2] == 3).all()
