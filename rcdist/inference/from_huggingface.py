"""Generate with a Hugging Face folder that jobs/export.py wrote, by its own modelling code as it is in this package."""

import json
from pathlib import Path

import torch
from torch import Tensor

from rcdist.data.tokenizer import Tokenizer, read_tokenizer
from rcdist.errors import CheckpointError, ConfigError
from rcdist.inference.export_hf import MODEL_TYPE


def is_huggingface(folder: Path) -> bool:
    """Say whether a folder has a model of ours in the form that transformers loads."""
    try:
        described = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("model_type") == MODEL_TYPE


class HuggingFaceStepper:
    """Advance one sequence, as `Decoder` does.

    Args:
        model: RcdistForCausalLM.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._state: Tensor | None = None
        self.token_B = torch.zeros(1, dtype=torch.int64, device=next(model.parameters()).device)
        self.logits_BV = torch.empty(0)

    def prefill(self, tokens_BT: Tensor) -> None:
        """Read a prompt from the zero state."""
        self._state = None
        self._run(tokens_BT)

    def step(self) -> None:
        """Advance by `token_B`."""
        self._run(self.token_B[:, None])

    @torch.no_grad()
    def _run(self, tokens_BT: Tensor) -> None:
        out = self._model(tokens_BT, state=self._state, logits_to_keep=1)
        self._state, self.logits_BV = out.state, out.logits[:, -1]


def load_huggingface(folder: Path, device: torch.device) -> tuple[HuggingFaceStepper, Tokenizer]:
    """Load a folder without running code from it.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: the folder is damaged.
    """
    try:
        from rcdist.inference.huggingface.modeling_rcdist import RcdistForCausalLM
    except ImportError as error:
        remedy = "Install it: pip install -e '.[hf]', or export with --format packed"
        raise ConfigError("checkpoint", str(folder), f"needs transformers ({error})", remedy) from error
    try:
        model = RcdistForCausalLM.from_pretrained(folder, local_files_only=True).eval().to(device)
    except Exception as error:  # of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError("checkpoint", str(folder), f"cannot be loaded ({reason})", "Export it again") from error
    return HuggingFaceStepper(model), read_tokenizer(folder / "tokenizer.json")
