"""What the first rank tells the front to do."""

from dataclasses import dataclass

from parctl.recipes.inference_spec import ServeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a front is started with. The keys themselves come in the environment."""

    serve: ServeSpec
    tokenizer: str
    chat_template: str | None
    token: str  # that leaders have to know
    listen: str  # address for leaders
    num_replicas: int
