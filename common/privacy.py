"""Telemetry of the libraries: which of them send any, and the variables that turn it off.

Every process of exobus has these in its environment before it imports a library: the command line sets them first of
all, and `common.python_child` gives them to each child.
"""

from __future__ import annotations

import os

TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime from 1.32 on: a device id in the home folder, and look-ups of its host
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and transformers through it
    "DISABLE_TELEMETRY": "1",  # an older name of the same switch
    "DO_NOT_TRACK": "1",  # what many tools agree on, huggingface_hub among them
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",  # a look-up of the newest pip
}


def turn_telemetry_off() -> None:
    """Turn telemetry off for this process and its children. Call it before any library is imported."""
    os.environ.update(TELEMETRY_OFF)
