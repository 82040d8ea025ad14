"""A small job whose numbers can be worked out by hand."""

from dataclasses import replace
from typing import Any

from parctl.planner.degrees import Degrees
from parctl.planner.time.job import NOTHING, Fabric, Job
from parctl.recipes.presets import model_preset
from parctl.topology.products import find_product


def job(**changes: Any) -> Job:
    """Llama-3-8B on one H100, one sequence of 4096 tokens at a time."""
    product = find_product("h100")
    assert product is not None
    plain = Job(
        model=model_preset("llama-3-8b"),
        degrees=Degrees(),
        sp=False,
        zero_stage=0,
        schedule="1f1b",
        virtual_stages=1,
        stages=(tuple(range(32)),),
        seq_len=4096,
        micro_batch=1,
        num_micro_batches=1,
        arithmetic="bf16",
        repeated=NOTHING,
        gathers_each=False,
        scatters_each=False,
        gathered_bytes=2.0,
        cp_kind="ring",
        windows=(None,),
        attention="fused",
        tensor_overlap=False,
        data_overlap=True,
        graphs=False,
        trained_share=1.0,
        product=product,
        fabric=Fabric(fast=450e9, slow=50e9, island=8, num_devices=1),
    )
    return replace(plain, **changes)
