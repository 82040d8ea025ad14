"""Faults become conditions, and conditions that change become events."""

from tests.topology.discovery.nodes import DEAD_LINK, ECC, reading

from parctl.topology.discovery.conditions import changes, conditions_of
from parctl.topology.discovery.reading import Fault, Reading, failed


def told(reading_: Reading, *faults: Fault, now: str = "T1", before: object = ()) -> dict[str, str]:
    found = conditions_of(reading_, faults, before, now)  # type: ignore[arg-type]
    return {each["type"]: f"{each['status']} {each['reason']}" for each in found}


def test_a_whole_node_is_healthy_in_every_part() -> None:
    assert told(reading()) == {
        "Discovered": "True Read",
        "DevicesHealthy": "True NoFault",
        "LinksHealthy": "True NoFault",
        "MemoryHealthy": "True NoFault",
        "NetworkHealthy": "True NoFault",
        "Healthy": "True NoFault",
    }


def test_each_fault_has_its_condition_and_the_whole_has_the_first() -> None:
    found = told(reading(), DEAD_LINK, ECC, Fault(kind="missing-nic", message="NIC mlx5_0"))

    assert found["LinksHealthy"] == "False DeadNvlink"
    assert found["MemoryHealthy"] == "False Ecc"
    assert found["NetworkHealthy"] == "False MissingNic"
    assert found["DevicesHealthy"] == "True NoFault"
    assert found["Healthy"] == "False DeadNvlink"


def test_a_reading_that_failed_says_neither_good_nor_bad() -> None:
    found = told(failed("the driver did not answer within 60 s"))

    assert found["Discovered"] == "False NotRead"
    assert set(found.values()) == {"False NotRead", "Unknown NotRead"}


def test_a_node_without_a_driver_is_told_so() -> None:
    nothing = Reading(node=None, warnings=("NVML does not answer",), faults=(), failure=None)

    first = conditions_of(nothing, (), (), "T1")[0]

    assert (first["reason"], first["message"]) == ("NoDevice", "NVML does not answer")


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    first = conditions_of(reading(), (), (), "T1")
    second = conditions_of(reading(), (ECC,), first, "T2")

    times = {each["type"]: each["lastTransitionTime"] for each in second}

    assert times["MemoryHealthy"] == times["Healthy"] == "T2"
    assert times["LinksHealthy"] == times["Discovered"] == "T1"


def test_a_fault_is_one_event_and_its_end_another() -> None:
    whole = conditions_of(reading(), (), (), "T1")
    broken = conditions_of(reading(), (DEAD_LINK,), whole, "T2")

    (event,) = changes(whole, broken)
    assert (event.warning, event.reason, event.message) == (True, "DeadNvlink", "gpu 1: no NVLink")
    assert changes(broken, conditions_of(reading(), (DEAD_LINK,), broken, "T3")) == []
    (event,) = changes(broken, whole)
    assert (event.warning, event.reason) == (False, "Recovered")
    assert event.message == "LinksHealthy: gpu 1: no NVLink: no more"


def test_a_second_fault_of_one_part_is_an_event_of_its_own() -> None:
    more = Fault(kind="dead-nvlink", message="gpu 0: no NVLink")
    one = conditions_of(reading(), (DEAD_LINK,), (), "T1")
    two = conditions_of(reading(), (DEAD_LINK, more), one, "T2")

    assert [event.message for event in changes(one, two)] == ["gpu 1: no NVLink; gpu 0: no NVLink"]


def test_a_node_that_is_broken_from_the_start_is_an_event() -> None:
    broken = conditions_of(reading(), (ECC,), (), "T1")

    assert [event.reason for event in changes((), broken)] == ["Ecc"]
