"""All that one rank trains with, and how it is made from a plan."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from parctl.planner.plan import Plan
from parctl.recipes.spec import CheckpointSpec, DataSpec, ModelSpec, TrainSpec
from parctl.runtime.checkpoint.checkpoints import Checkpoints
from parctl.runtime.checkpoint.directory import local_path
from parctl.runtime.data.batches import Batches, Reading, TextBatches
from parctl.runtime.data.check import common_format, find_end_token
from parctl.runtime.data.documents import list_files
from parctl.runtime.data.images import open_images
from parctl.runtime.data.pairs import PairBatches
from parctl.runtime.data.tokens import TokenStream, open_stream
from parctl.runtime.execution.host_memory import keep_freed_memory
from parctl.runtime.metrics import Reporter
from parctl.runtime.model.sequence import SequencePart
from parctl.runtime.optimizer import AdamW, make_optimizer
from parctl.runtime.parallel.context_parallel import sequence_part
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.parallelize import ParallelModel, parallelize
from parctl.runtime.parallel.passes import Passes, make_passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that one rank trains with."""

    plan: Plan
    model: ParallelModel
    passes: Passes
    optimizer: AdamW
    train_batches: Batches
    validation_batches: Batches | None
    checkpoints: Checkpoints
    reporter: Reporter
    run: str
    run_dir: Path

    @property
    def spec(self) -> TrainSpec:
        assert self.plan.recipe.train
        return self.plan.recipe.train

    @property
    def saving(self) -> CheckpointSpec:
        assert self.plan.recipe.checkpoint
        return self.plan.recipe.checkpoint

    @property
    def targets_per_row(self) -> int:
        """What one row of a batch predicts: a token at every place, or the class of an image."""
        return 1 if self.model_spec.vision else self.spec.seq_len

    @property
    def model_spec(self) -> ModelSpec:
        assert self.plan.recipe.model
        return self.plan.recipe.model


def prepare(
    plan: Plan, mesh: RankMesh, run_dir: Path, *, run: str, attempt: int, leader: bool
) -> Training:
    """Open the data, build this rank's part of the model, and open what is written."""
    recipe = plan.recipe
    spec, model = recipe.train, recipe.model
    assert spec and model and recipe.data and recipe.checkpoint
    if mesh.device.type == "cpu":
        keep_freed_memory()
    train_batches, validation_batches = open_batches(
        recipe.data,
        spec,
        model,
        mesh,
        run_dir / "data",
        leader=leader,
        part=sequence_part(mesh.cp, recipe.parallelism),
    )
    reporter = Reporter(
        path=run_dir / "metrics.jsonl" if mesh.rank == 0 else None,
        run=run,
        attempt=attempt,
        steps=spec.steps,
        tokens_per_step=spec.global_batch * spec.seq_len,
        world_size=dist.get_world_size(),
        estimates=plan.time,
        memory=plan.memory,
        device=mesh.device,
    )
    parallel = parallelize(model, recipe.parallelism, spec, mesh, plan.stages)
    return Training(
        plan=plan,
        model=parallel,
        passes=make_passes(parallel, recipe.parallelism, spec),
        optimizer=make_optimizer(
            parallel.parameters(), spec.optimizer, on_host=spec.offload_optimizer
        ),
        train_batches=train_batches,
        validation_batches=validation_batches,
        checkpoints=Checkpoints(
            directory_of(recipe.checkpoint, run_dir),
            recipe.checkpoint,
            mesh.device,
            reporter.say,
            tokenizer=tokenizer_of(recipe.data, model),
        ),
        reporter=reporter,
        run=run,
        run_dir=run_dir,
    )


def tokenizer_of(data: DataSpec, model: ModelSpec) -> Path | None:
    """The file that made the tokens, or is said to have made those of a `.bin` file."""
    path = Path(data.tokenizer)
    return path if model.vision is None and data.tokenizer != "byte" and path.is_file() else None


def directory_of(spec: CheckpointSpec, run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints" if spec.dir is None else local_path(spec.dir)


def open_batches(
    data: DataSpec,
    spec: TrainSpec,
    model: ModelSpec,
    mesh: RankMesh,
    directory: Path,
    *,
    leader: bool,
    part: SequencePart,
) -> tuple[Batches, Batches | None]:
    """Open training and validation data.

    Without validation files the end of the training tokens is held out.
    """

    def stream(sources: tuple[str, ...]) -> TokenStream:
        return open_stream(
            sources,
            data,
            vocab_size=model.vocab_size,
            directory=directory,
            leader=leader,
            barrier=dist.barrier,
        )

    if model.vision is not None:
        return open_images(data, spec, model.vision, mesh)
    tokens = stream(data.train)
    if data.validation:
        held_out = stream(data.validation)
    else:
        tokens, held_out = tokens.split(len(tokens) - int(len(tokens) * data.validation_fraction))
    if model.num_encoder_layers:
        pairs = None
        if spec.validate_every:
            pairs = PairBatches(held_out, spec, mesh, what="validation")
        return PairBatches(tokens, spec, mesh, what="train"), pairs
    end_token = None
    if data.document_mask:
        end_token = find_end_token(data, common_format(list_files(data.train), data))
    reading = Reading(part=part, end_token=end_token, num_following=model.num_mtp_layers)
    validation = None
    if spec.validate_every:
        validation = TextBatches(held_out, spec, mesh, what="validation", reading=reading)
    return TextBatches(tokens, spec, mesh, what="train", reading=reading), validation
