"""What a model costs, counted from its configuration alone: parameters, FLOPs and bytes."""

from dataclasses import dataclass

from rcdist.config import Architecture, ReservoirConfig, per_letter
from rcdist.config.plan import LETTERS, RESERVOIR_LETTER, BlockPlan
from rcdist.model.specs import FrozenSpec, frozen_specs


@dataclass(frozen=True)
class MatrixCost:
    """Say what one application of one matrix costs.

    Attributes:
        layer: index of the block; None: the head.
        letter: one of f c g o G U D, r for an inserted reservoir, or "head".
        key: name of the matrix; a shared one has the same key in several rows.
        shape: (outputs, inputs).
        spec: what a frozen matrix is made from; None: it is trained.
    """

    layer: int | None
    letter: str
    key: str
    shape: tuple[int, int]
    spec: FrozenSpec | None = None

    @property
    def is_frozen(self) -> bool:
        """Say whether no gradient is computed for it."""
        return self.spec is not None

    @property
    def num_weights(self) -> int:
        """Return the weights that are kept: outputs x inputs; fewer for block; none for hadamard and ring."""
        return self.shape[0] * self.shape[1] if self.spec is None else self.spec.num_weights

    @property
    def forward_flops(self) -> int:
        """Return FLOPs per token: two per trained weight; of a frozen matrix what its topology says."""
        return 2 * self.num_weights if self.spec is None else self.spec.flops

    @property
    def train_flops(self) -> int:
        """Return FLOPs per token of forward and backward: a frozen matrix has no weight-gradient product."""
        return (2 if self.is_frozen else 3) * self.forward_flops

    def resident_bytes(self, bytes_per_trained: int) -> int:
        """Return the bytes that one application reads of the matrix: int8 entries and signs, int32 indices.

        Args:
            bytes_per_trained: of one trained weight.
        """
        if self.spec is None:
            return self.num_weights * bytes_per_trained
        return sum(part.resident_bytes for part in self.spec.parts().values())


@dataclass(frozen=True)
class ParameterCounts:
    """Count weights four ways.

    Attributes:
        stored: trained + frozen_unique: what must be kept, even if a seed could remake it.
        trained: what has a gradient and optimizer state; a shared one counts once.
        frozen: frozen weights summed over the blocks that apply them; those of a structured matrix do not exist.
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


def list_matrices(architecture: Architecture) -> list[MatrixCost]:
    """List every application of a matrix, block by block in the order f c g o, r, G U D, and the head last."""
    specs = {spec.key: spec for spec in frozen_specs(architecture)}
    rows: list[MatrixCost] = []
    for layer, block in enumerate(architecture.blocks):
        for letter in _letters_of(architecture.reservoir, block):
            is_frozen = letter == RESERVOIR_LETTER or letter in block.frozen_letters()
            is_planned = is_frozen or letter in block.letters
            key = architecture.plan.matrix_key(layer, letter, block) if is_planned else f"{letter}.{layer}"
            spec = specs[key] if is_frozen else None
            rows.append(MatrixCost(layer, letter, key, architecture.shape(letter), spec))
    rows.append(MatrixCost(None, "head", "head", (architecture.model.vocab_size, architecture.model.width)))
    return rows


def _letters_of(config: ReservoirConfig, block: BlockPlan) -> str:
    mixer = LETTERS[:4]
    if config.leak_rate != "trained":
        mixer = mixer.replace("f", "")
    if config.output_gate != "full":
        mixer = mixer.replace("g", "")
    return mixer + (RESERVOIR_LETTER if block.insert else "") + LETTERS[4:]


def count_parameters(architecture: Architecture) -> ParameterCounts:
    """Count the parameters of a model without building it."""
    rows = list_matrices(architecture)
    trained = {row.key: row.num_weights for row in rows if not row.is_frozen}
    frozen = {row.key: row.num_weights for row in rows if row.is_frozen}
    num_trained = sum(trained.values()) + architecture.model.vocab_size * architecture.model.width
    num_trained += _count_vectors(architecture, rows)
    num_unique = sum(frozen.values())
    applied = sum(row.num_weights for row in rows if row.is_frozen)
    return ParameterCounts(num_trained + num_unique, num_trained, applied, num_unique)


def count_vectors(architecture: Architecture) -> int:
    """Count the trained numbers that are no matrix: they have a group of the optimizer of their own."""
    return _count_vectors(architecture, list_matrices(architecture))


def _count_vectors(architecture: Architecture, rows: list[MatrixCost]) -> int:
    """Count norm gains, lower bounds, biases and the gains of frozen matrices."""
    model_config, config = architecture.model, architecture.reservoir
    width, num_layers = model_config.width, model_config.num_layers
    has_forget, has_gate = config.leak_rate == "trained", config.output_gate == "full"
    inserted = sum(row.letter == RESERVOIR_LETTER for row in rows)
    # Norms of a block: mixer input, o input, GLU input; down input; of the gate or state unless there is no gate.
    count = num_layers * (3 * width + model_config.glu_width) + width
    count += num_layers * width * (config.output_gate != "none")
    if model_config.norm == "per_projection":
        # Own norms besides: c, gate with up, and f and g where they exist; the head.
        count += num_layers * (2 + has_forget + has_gate) * width + width
        count += inserted * width * (config.placement in ("reset_gate", "token_shift"))
    count += num_layers * width * has_forget  # lower bounds
    count += num_layers * width * (config.output_gate == "tied")  # biases of the output gate
    count += inserted * width * (config.placement == "post_scan")  # norms of the states
    count += sum(row.shape[0] for row in rows if row.is_frozen and per_letter(config.gain, row.letter, True))
    return count


def estimate_flops(architecture: Architecture, *, activation_checkpointing: bool = False) -> FlopsPerToken:
    """Estimate FLOPs per token.

    Activation checkpointing runs the forward products of every block twice, those of the head once.
    """
    rows = list_matrices(architecture)
    train, forward = sum(row.train_flops for row in rows), sum(row.forward_flops for row in rows)
    again = sum(row.forward_flops for row in rows if row.layer is not None) if activation_checkpointing else 0
    return FlopsPerToken(train, train + again, forward, forward)
