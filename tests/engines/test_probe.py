"""The probe measures in children with a deadline, and choosing is a pure function of what it found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capabilities import EngineCapability
from engines.errors import EngineError
from engines.probe import choose, fingerprint, measure
from engines.settings import CHOSEN, ENGINES, PRECISIONS

CAPABILITIES = st.builds(
    EngineCapability,
    name=st.sampled_from(ENGINES),
    device=st.sampled_from(["CPU", "CUDA"]),
    ms_per_layer=st.none() | st.floats(0.01, 1000),
    detail=st.just("took longer than 20 s"),
)


def test_every_engine_is_measured() -> None:
    found = measure(ENGINES, 60)
    assert [capability.name for capability in found] == list(ENGINES)
    for capability in found:
        assert capability.usable, capability.detail
        assert capability.version
        assert capability.device
        assert 0 < (capability.ms_per_layer or 0) < 1000


def test_engine_is_measured_in_the_given_precision() -> None:
    found = [measure(["onnx"], 60, precision)[0] for precision in PRECISIONS]
    assert [capability.detail for capability in found] == list(PRECISIONS)
    assert all(capability.usable for capability in found)


def test_slow_probe_is_stopped_and_reported() -> None:
    (found,) = measure(["numpy"], 0.01)
    assert not found.usable
    assert found.detail == "took longer than 0.01 s"


def test_engine_that_cannot_start_reports_its_cause() -> None:
    (found,) = measure(["abacus"], 60)
    assert found == EngineCapability(
        name="abacus", detail="there is no engine 'abacus'; choose one of mlx, llamacpp, tinygrad, onnx, numpy"
    )


def test_failed_probe_reports_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    (found,) = measure(["numpy"], 60)
    assert not found.usable
    assert found.detail.startswith("the probe ended with status 1: ")
    assert len(found.detail) > len("the probe ended with status 1: ")


@given(st.lists(CAPABILITIES, min_size=1, max_size=6))
def test_fastest_engine_is_chosen_and_named(found: list[EngineCapability]) -> None:
    usable = [capability for capability in found if capability.ms_per_layer is not None and capability.name in CHOSEN]
    if not usable:
        with pytest.raises(EngineError, match=r"no engine works on this machine"):
            choose(found)
        return
    name, why = choose(found)
    fastest = min(capability.ms_per_layer or 0 for capability in usable)
    assert name in {capability.name for capability in usable if capability.ms_per_layer == fastest}
    assert why.startswith(f"{name} on ")
    assert f"{fastest:.2f} ms a layer" in why


def test_reason_lists_times_of_the_other_engines() -> None:
    found = [
        EngineCapability(name="mlx", device="METAL", ms_per_layer=0.4),
        EngineCapability(name="numpy", device="CPU", ms_per_layer=1.25),
        EngineCapability(name="tinygrad", detail="took longer than 20 s"),
    ]
    assert choose(found) == ("mlx", "mlx on METAL takes 0.40 ms a layer, the fastest measured (numpy 1.25 ms)")
    assert choose(found[1:]) == ("numpy", "numpy on CPU takes 1.25 ms a layer, the only one that works")


def test_engine_that_loads_few_models_is_not_chosen() -> None:
    found = [
        EngineCapability(name="llamacpp", device="CPU", ms_per_layer=0.1),
        EngineCapability(name="numpy", device="CPU", ms_per_layer=1.25),
    ]
    assert choose(found) == ("numpy", "numpy on CPU takes 1.25 ms a layer, the only one that works")


def test_choosing_from_no_engine_raises_an_error() -> None:
    with pytest.raises(EngineError, match="none was probed"):
        choose([])


def test_fingerprint_is_stable() -> None:
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 64


def test_fingerprint_depends_on_packages_and_precision() -> None:
    assert len({fingerprint(()), fingerprint(["numpy"]), fingerprint(["no-such-package"]), fingerprint()}) == 4
    assert fingerprint(precision="exact") != fingerprint(precision="fast")
