"""The folders of the source tree, rigs in `support/`, whole nodes in `nodes/`, benchmarks in `bench/`.

Every process that runs a module of this package turns telemetry of the libraries off before it imports one.
"""

from common.privacy import turn_telemetry_off

turn_telemetry_off()
