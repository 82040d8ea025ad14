"""Plans made by hand: a script on so many ranks of this machine, by no other part of parctl."""

from collections.abc import Mapping, Sequence
from math import prod

from parctl.planner.plan import Plan
from parctl.recipes.spec import (
    AXES,
    LaunchSpec,
    ParallelismSpec,
    Recipe,
    ScriptSpec,
    SecretSpec,
)
from parctl.topology.layout import Layout, Slot


def script_plan(
    command: Sequence[str],
    *,
    axes: Mapping[str, int],
    name: str = "probe",
    retries: int = 0,
    timeout_s: float | None = None,
    stop_grace_s: float = 10.0,
    env: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    workdir: str | None = None,
    nodes: Sequence[str] = ("laptop",),
    kind: str = "cpu",
) -> Plan:
    """Return the plan of `task: script` with identity layout; `secrets` is name -> variable."""
    world_size = prod(axes.values())
    per_node = world_size // len(nodes)
    recipe = Recipe(
        name=name,
        task="script",
        model=None,
        parallelism=parallelism(),
        train=None,
        data=None,
        checkpoint=None,
        script=ScriptSpec(command=tuple(command), env={}, workdir=workdir),
        launch=LaunchSpec(
            backend="local",
            retries=retries,
            queue=None,
            image=None,
            env=env or {},
            secrets={
                key: SecretSpec(from_env=variable, secret=None, key=None)
                for key, variable in (secrets or {}).items()
            },
            timeout_s=timeout_s,
            stop_grace_s=stop_grace_s,
        ),
        source="test",
        notes=(),
    )
    layout = Layout(
        axes=dict(axes),
        expert_axes=None,
        ranks=tuple(range(world_size)),
        slots=tuple(
            Slot(
                rank=rank,
                node=nodes[rank // per_node],
                node_rank=rank // per_node,
                local_rank=rank % per_node,
                gpu=rank % per_node,
            )
            for rank in range(world_size)
        ),
        proofs=(),
        explain=(),
    )
    return Plan(
        recipe=recipe,
        topology={"digest": "sha256:0", "source": "test", "kind": kind, "nodes": list(nodes)},
        layout=layout,
        stages=(),
        memory={},
        time={},
        backend={"kind": "local"},
        parctl_version="0.1.0",
    )


def parallelism() -> ParallelismSpec:
    return ParallelismSpec(
        text="DP",
        auto=False,
        tp=1,
        sp=False,
        pp=1,
        dp=None,
        fsdp=1,
        cp=1,
        ep=1,
        etp=1,
        expert_placement="block",
        expert_load=None,
        layer=False,
        operator=1,
        zero_stage=0,
        grad_sync="auto",
        prefetch=1,
        reshard="auto",
        cp_kind="ring",
        schedule="1f1b",
        virtual_stages=1,
        schedule_table=None,
        order=AXES,
        allow_cross_node_tp=False,
        allow_pcie_tp=False,
        strict_node=False,
    )
