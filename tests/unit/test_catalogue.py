"""The metric catalogue names what the model, the contract and the health policy have, in one set of words."""

from __future__ import annotations

import pytest

from hal.backend import Group, StateError
from hal.conformance.checks import _PLAUSIBLE
from hal.model import EventKind
from hal.telemetry.catalogue import CATALOGUE, MetricKind, Section
from hal.telemetry.health import HealthState, load_policy

# The union of what accelerators tell, apart from what one vendor alone has.
UNION = set(
    """memory_total_bytes memory_used_bytes memory_free_bytes memory_reserved_bytes
memory_bandwidth_busy_ratio compute_busy_ratio engine_active_ratio engine_occupancy_ratio tensor_active_ratio
encoder_busy_ratio decoder_busy_ratio jpeg_busy_ratio power_watts power_rail_watts power_limit_watts
power_limit_min_watts power_limit_max_watts power_limit_default_watts energy_joules_total
temperature_celsius temperature_limit_celsius clock_hertz clock_max_hertz throttle_active
throttle_seconds_total fan_rpm fan_ratio pcie_generation pcie_generation_max pcie_width pcie_width_max
pcie_rx_bytes_total pcie_tx_bytes_total pcie_replays_total pcie_naks_total link_rx_bytes_total
link_tx_bytes_total link_up link_speed_bytes_per_second link_errors_total ecc_errors_total pages_retired
rows_remapped error lost reset thermal partition_changed hotplug health_state process_memory_bytes
process_compute_busy_ratio process_engine_seconds_total performance_state ecc_enabled persistence_enabled
compute_mode partition_mode""".split()  # noqa: SIM905
)


def test_the_union_is_there() -> None:
    assert CATALOGUE.keys() >= UNION


def test_events_are_the_models() -> None:
    events = [metric.name for metric in CATALOGUE.values() if metric.kind is MetricKind.EVENT]
    assert events == [kind.value for kind in EventKind]
    assert {CATALOGUE[name].group for name in events} == {Section.EVENTS}


def test_health_states_are_the_policys() -> None:
    assert all(state.value in CATALOGUE["health_state"].meaning for state in HealthState)


def test_throttle_reasons() -> None:
    meaning = CATALOGUE["throttle_active"].meaning
    assert all(reason in meaning for reason in ("hbm", "vr", "reliability"))


def test_names_say_unit_and_kind() -> None:
    for name, metric in CATALOGUE.items():
        if metric.kind is MetricKind.COUNTER:
            assert name.endswith("_total")
            assert metric.unit == "count" or name.endswith(f"_{metric.unit}_total")
        elif metric.unit not in ("bool", "count", "none"):
            assert name.endswith(f"_{metric.unit}")
        if isinstance(metric.group, Group):
            assert metric.unit in _PLAUSIBLE


def test_a_health_policy_cannot_ask_for_what_no_sample_has(tmp_path) -> None:
    policy = tmp_path / "health.toml"
    policy.write_text(
        'schema = "hal.health/1"\n[[figures]]\nmetric = "lost"\nabove = 0\nstate = "failed"\n'
        'reason = "gone"\nsource = "me"\n'
    )
    with pytest.raises(StateError, match="no metric 'lost'"):
        load_policy(policy)
