"""AdamW parameter groups, and learning rate and weight decay as pure functions of the step."""

import math

from torch import nn

from rcdist.config import OptimizerConfig, ScheduleConfig

DECAY_GROUP = "decay"
NO_DECAY_GROUP = "no_decay"


def build_parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trained parameters: decay on matrices only, none on norms, gains and lower bounds.

    The lower bounds are stored as one L x d tensor, but each of its rows is a vector that belongs to one layer.

    Returns:
        Two torch.optim parameter groups named "decay" and "no_decay"; frozen matrices are buffers and in neither.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and "lower_bound" not in name
        (decay if is_matrix else no_decay).append(parameter)
    return [
        {"name": DECAY_GROUP, "params": decay, "weight_decay": weight_decay},
        {"name": NO_DECAY_GROUP, "params": no_decay, "weight_decay": 0.0},
    ]


def learning_rate_at(step: int, num_steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Return the learning rate of `step` (0-based) out of `num_steps`.

    Warm-up is linear and reaches the peak on its last step. cosine falls to `final_ratio` of the peak; wsd stays at the
    peak
    and falls linearly over the last `decay_fraction`; two_stage is cosine, halved from `stage_two_start` on (BitNet's
    recipe).
    """
    peak = optimizer.learning_rate
    warmup_steps = math.ceil(schedule.warmup_fraction * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(num_steps - 1 - warmup_steps, 1)
    final = schedule.final_ratio
    if schedule.kind == "wsd":
        decay_start = 1.0 - schedule.decay_fraction
        share = step / max(num_steps - 1, 1)
        if share <= decay_start:
            return peak
        return peak * (1.0 - (1.0 - final) * (share - decay_start) / (1.0 - decay_start))
    rate = peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))
    return 0.5 * rate if _is_stage_two(step, num_steps, schedule) else rate


def weight_decay_at(step: int, num_steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Return the weight decay of matrices at `step`: constant, but 0 in the second stage of two_stage."""
    return 0.0 if _is_stage_two(step, num_steps, schedule) else optimizer.weight_decay


def _is_stage_two(step: int, num_steps: int, schedule: ScheduleConfig) -> bool:
    return schedule.kind == "two_stage" and step >= schedule.stage_two_start * num_steps
