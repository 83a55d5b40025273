"""What a model costs, counted from its configuration alone: parameters, and FLOPs per token."""

from dataclasses import dataclass

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.model.frozen import matrix_shape
from rcdist.plan import LETTERS, RESERVOIR_LETTER, parse_plan


@dataclass(frozen=True)
class MatrixCost:
    """Say what one application of one matrix costs.

    Attributes:
        layer: index of the block; None: the head.
        letter: one of f c g o G U D, r for an inserted reservoir, or "head".
        key: name of the matrix; a shared one has the same key in several rows.
        shape: (outputs, inputs).
        is_frozen: no gradient is computed for it.
    """

    layer: int | None
    letter: str
    key: str
    shape: tuple[int, int]
    is_frozen: bool

    @property
    def num_weights(self) -> int:
        """Return outputs x inputs."""
        return self.shape[0] * self.shape[1]

    @property
    def forward_flops(self) -> int:
        """Return FLOPs per token of the product, a multiplication and an addition per weight."""
        return 2 * self.num_weights

    @property
    def train_flops(self) -> int:
        """Return FLOPs per token of forward and backward: a frozen matrix has no weight-gradient product."""
        return (4 if self.is_frozen else 6) * self.num_weights


@dataclass(frozen=True)
class ParameterCounts:
    """Count weights four ways.

    Attributes:
        stored: trained + frozen_unique: what must be kept, even if a seed could remake it.
        trained: what has a gradient and optimizer state; a shared one counts once.
        frozen: frozen weights summed over the blocks that apply them.
        frozen_unique: every distinct frozen matrix once.
    """

    stored: int
    trained: int
    frozen: int
    frozen_unique: int


@dataclass(frozen=True)
class FlopsPerToken:
    """Give FLOPs per token of the matrix products, head included; look-ups and element-wise work are left out.

    Attributes:
        train: forward and backward, 6 per trained weight applied and 4 per frozen one; recomputation is left out.
        hardware: train plus what activation checkpointing computes again.
        prefill: forward over a prompt.
        decode: one step of generation; the state has a fixed size, so it equals prefill at any length.
    """

    train: int
    hardware: int
    prefill: int
    decode: int


def list_matrices(model_config: ModelConfig, reservoir_config: ReservoirConfig) -> list[MatrixCost]:
    """List every application of a matrix, block by block in the order f c g o, r, G U D, and the head last."""
    plan = parse_plan(reservoir_config.plan)
    rows: list[MatrixCost] = []
    for layer, block in enumerate(plan.tile(model_config.num_layers)):
        mixer, glu = LETTERS[:4], LETTERS[4:]
        for letter in mixer + (RESERVOIR_LETTER if block.insert else "") + glu:
            is_frozen = letter == RESERVOIR_LETTER or letter in block.frozen_letters()
            is_planned = is_frozen or letter in block.letters
            key = plan.matrix_key(layer, letter, block) if is_planned else f"{letter}.{layer}"
            rows.append(MatrixCost(layer, letter, key, matrix_shape(model_config, letter), is_frozen))
    rows.append(MatrixCost(None, "head", "head", (model_config.vocab_size, model_config.width), False))
    return rows


def count_parameters(model_config: ModelConfig, reservoir_config: ReservoirConfig) -> ParameterCounts:
    """Count the parameters of a model without building it."""
    rows = list_matrices(model_config, reservoir_config)
    trained = {row.key: row.num_weights for row in rows if not row.is_frozen}
    frozen = {row.key: row.num_weights for row in rows if row.is_frozen}
    num_trained = sum(trained.values()) + model_config.vocab_size * model_config.width
    num_trained += _count_vectors(model_config, reservoir_config, rows)
    num_unique = sum(frozen.values())
    applied = sum(row.num_weights for row in rows if row.is_frozen)
    return ParameterCounts(num_trained + num_unique, num_trained, applied, num_unique)


def _count_vectors(model_config: ModelConfig, reservoir_config: ReservoirConfig, rows: list[MatrixCost]) -> int:
    """Count norm gains, lower bounds and the gains of frozen matrices."""
    width, num_layers = model_config.width, model_config.num_layers
    # Norms of a block: mixer input, gate or state, o input, GLU input; down input.
    count = num_layers * (4 * width + model_config.glu_width) + width
    if model_config.norm == "per_projection":
        # Own norms besides: f, c, g, and gate with up; the head.
        count += num_layers * 4 * width + width
    count += num_layers * width  # lower bounds
    count += width * sum(row.letter == RESERVOIR_LETTER for row in rows)
    if reservoir_config.gain:
        count += sum(row.shape[0] for row in rows if row.is_frozen)
    return count


def estimate_flops(
    model_config: ModelConfig, reservoir_config: ReservoirConfig, *, activation_checkpointing: bool = False
) -> FlopsPerToken:
    """Estimate FLOPs per token.

    Activation checkpointing runs the forward products of every block twice, those of the head once.
    """
    rows = list_matrices(model_config, reservoir_config)
    train, forward = sum(row.train_flops for row in rows), sum(row.forward_flops for row in rows)
    again = sum(row.forward_flops for row in rows if row.layer is not None) if activation_checkpointing else 0
    return FlopsPerToken(train, train + again, forward, forward)
