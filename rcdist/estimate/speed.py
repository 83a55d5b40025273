"""How fast and how dear a run is on a node type, as a range whose assumptions are stated, from 1 to 1024 devices."""

from dataclasses import dataclass

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.estimate.wire import estimate_wire
from rcdist.model.cost import estimate_flops
from rcdist.tracking.prices import PriceRow
from rcdist.train.deepspeed_config import has_flat_steps

GPU_MFU = (0.25, 0.6)
"""Of captured steps: an H100 reached 0.43 at 370m, 0.56 at 1.3b; other cards and smaller shapes are not measured."""
CPU_MFU = (0.10, 0.35)
"""`tiny` reached 0.15 to 0.31 on two cores of four kinds of machine."""
HOOKED_SHARE = 0.2
"""Of that, on a GPU, where DeepSpeed's hooks handle each gradient (ZeRO 3, or cuda_graphs=false), measured at 370m."""
_WIRE_SHARE = (0.4, 0.8)
"""Of the stated bandwidth, what collectives reach: the exchange comes after the backward pass, nothing hides it."""


@dataclass(frozen=True)
class Speed:
    """Hold what a number of devices does.

    Attributes:
        workers: devices.
        low, high: tokens per second over all.
        efficiency: of the low end, per device over one device.
    """

    workers: int
    low: float
    high: float
    efficiency: float


def estimate_speed(config: JobConfig, workers: Workers, price: PriceRow) -> Speed:
    """Estimate tokens per second.

    A step takes as long as the worker with the most windows computes, and then the exchange: its bytes times
    2 (n - 1) / n for a ring of n, over the link within a node, or the network between nodes.
    """
    low, high = (_step_s(config, workers, price, place) for place in (0, 1))
    alone = _step_s(config, Workers(1, workers.use_gpu, workers.cpus_per_worker), price, 0)
    tokens = config.train.global_batch_tokens
    return Speed(workers.num_workers, tokens / low, tokens / high, alone / low / workers.num_workers)


def _step_s(config: JobConfig, workers: Workers, price: PriceRow, place: int) -> float:
    flops = estimate_flops(config.architecture, activation_checkpointing=config.train.activation_checkpointing)
    share = (GPU_MFU if workers.use_gpu else CPU_MFU)[place]
    if workers.use_gpu and not has_flat_steps(config):
        share *= HOOKED_SHARE
    count = workers.num_workers
    tokens = -(-config.windows_per_step // count) * config.data.seq_len
    computing = tokens * flops.hardware / (share * price.peak_flops)
    if count == 1:
        return computing
    bandwidth = price.link_bytes_per_s if count <= price.devices_per_node else price.network_bytes_per_s
    sent = estimate_wire(config, workers) * 2 * (count - 1) / count
    return computing + sent / (bandwidth * _WIRE_SHARE[place])
