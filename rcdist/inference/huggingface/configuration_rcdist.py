"""Configuration of a (reservoir) MatMul-free language model for transformers."""

from typing import Any

from transformers import PretrainedConfig


class RcdistConfig(PretrainedConfig):
    """Hold the shape of a model, and which matrix each of its layers multiplies by.

    Args:
        vocab_size: rows of embedding and head.
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the GLU.
        num_hidden_layers: blocks.
        rms_norm_eps: added to every mean square.
        norm: shared: one rounded input for all products of a mixer; per_projection: a norm and a rounding for each.
        readout_norm: gate or state: which of the two is normalised in the readout.
        output_gate: full, tied or none.
        leak_rate: None: forget gates are computed; else they are 1 - leak_rate.
        placement: of an inserted reservoir: post_scan, recurrent, reset_gate or token_shift; None: there is none.
        combine: replace or add, for placement post_scan.
        layers: for each block, matrix letter -> name of the matrix; several blocks may name one.
        matrices: name -> {"kind": "ternary", "dense" or "hadamard", "shape": (outputs, inputs)}.
        gains: layers with a trained gain for each output, as "3.c".
    """

    model_type = "rcdist_matmulfree"

    def __init__(
        self,
        vocab_size: int = 257,
        hidden_size: int = 64,
        intermediate_size: int = 128,
        num_hidden_layers: int = 0,
        rms_norm_eps: float = 1e-6,
        norm: str = "shared",
        readout_norm: str = "gate",
        output_gate: str = "full",
        leak_rate: float | None = None,
        placement: str | None = None,
        combine: str = "replace",
        layers: list[dict[str, str]] | None = None,
        matrices: dict[str, dict[str, Any]] | None = None,
        gains: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.rms_norm_eps = num_hidden_layers, rms_norm_eps
        self.norm, self.readout_norm, self.output_gate = norm, readout_norm, output_gate
        self.leak_rate, self.placement, self.combine = leak_rate, placement, combine
        self.layers, self.matrices, self.gains = layers or [], matrices or {}, gains or []
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
