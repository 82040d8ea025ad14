"""Why a gang waits, in a sentence that says where, how much and who."""

from collections.abc import Mapping

from parctl.launcher.ray.cluster import Holder, NodeState
from parctl.launcher.ray.placement import need_of
from parctl.launcher.ray.reasons import Reason, why_not_now
from parctl.topology.layout import Layout, Slot


def layout(nodes: int, per_node: int) -> Layout:
    return Layout(
        axes={"dp": nodes, "tp": per_node},
        expert_axes=None,
        ranks=tuple(range(nodes * per_node)),
        slots=tuple(
            Slot(
                rank=node * per_node + index,
                node=f"n{node}",
                node_rank=node,
                local_rank=index,
                gpu=index,
            )
            for node in range(nodes)
            for index in range(per_node)
        ),
        proofs=(),
        explain=(),
    )


def node(name: str, *, gpus: float = 8, free: float | None = None) -> NodeState:
    return NodeState(
        name=name,
        node_id=f"id-{name}",
        total={"GPU": gpus, "CPU": 4.0},
        free={"GPU": gpus if free is None else free, "CPU": 4.0},
    )


def why(
    nodes: list[NodeState], *, gang: Layout, holders: list[Holder] | None = None, waiting: int = 1
) -> Reason:
    return why_not_now(
        gang,
        lambda count: need_of(count, "gpu"),
        {state.name: state for state in nodes},
        holders or [],
        waiting=waiting,
    )


def holds(who: str, amounts: Mapping[str, float]) -> Holder:
    return Holder(node_id="id-n1", who=who, amounts=amounts)


def test_a_busy_node_is_named_with_what_is_free_and_who_has_the_rest() -> None:
    reason = why(
        [node("n0"), node("n1", free=2)],
        gang=layout(2, 8),
        holders=[holds("job other-1, actor Trainer", {"GPU": 6, "CPU": 1})],
    )

    assert reason.sentence == (
        "n1 is taken: 8 GPUs are needed and 2 are free (held: 6 GPU and 1 CPU by job other-1, "
        "actor Trainer); now 1 of 2 nodes could take 8 ranks each, 8 in all, of the 16 asked for"
    )
    assert reason.fix == "wait, end what holds it, or ask for fewer devices"


def test_many_holders_and_many_nodes_are_cut_short() -> None:
    nodes = [node("n0", free=0), node("n1", free=0), node("n2", free=0)]
    holders = [holds(f"job j{number}", {"GPU": 2}) for number in range(4)]
    sentence = why(nodes, gang=layout(3, 8), holders=holders, waiting=3).sentence

    assert "likewise n1, n2" in sentence
    assert sentence.endswith("; 3 other placement groups wait too, in no order")


def test_a_node_that_is_too_small_for_ever_is_not_waited_for_in_silence() -> None:
    reason = why([node("n0"), node("n1", gpus=4)], gang=layout(2, 8))

    assert reason.sentence == ("n1 can never hold its ranks: 8 GPUs are needed and it has 4")
    assert reason.fix == "plan again for the cluster as it is now: launch once more"


def test_nodes_that_are_gone_are_counted_and_named() -> None:
    reason = why([node("n0"), node("x")], gang=layout(3, 8))

    assert reason.sentence == (
        "2 of 3 nodes of the plan are not in the cluster (n1, n2), which has 2 (n0, x); "
        "now 2 of 2 nodes could take 8 ranks each, 16 in all, of the 24 asked for"
    )


def test_free_nodes_that_ray_does_not_give_are_said_to_be_free() -> None:
    assert why([node("n0")], gang=layout(1, 8)).sentence.startswith(
        "Ray has not given the nodes yet, though they are free"
    )


def test_a_gang_of_cpu_ranks_counts_cpus() -> None:
    reason = why_not_now(
        layout(1, 4),
        lambda count: need_of(count, "cpu"),
        {"n0": NodeState(name="n0", node_id="0", total={"CPU": 4.0}, free={"CPU": 1.0})},
        [],
        waiting=0,
    )

    assert reason.sentence.startswith("n0 is taken: 4 CPUs are needed and 1 are free; now 0 of 1")
