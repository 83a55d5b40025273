"""How fast and how dear a run is on a node type, as a range whose assumptions are stated, from 1 to 1024 devices."""

from dataclasses import dataclass

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.estimate.wire import estimate_exchange
from rcdist.model.cost import estimate_flops
from rcdist.tracking.prices import PriceRow
from rcdist.train.deepspeed_config import has_flat_steps

GPU_MFU = (0.25, 0.65)
"""Of captured steps: an H100 reached 0.43 at 370m, 0.56 at 1.3b, an H200 0.48 and 0.61; others are not measured."""
CPU_MFU = (0.10, 0.35)
"""`tiny` reached 0.15 to 0.31 on two cores of four kinds of machine."""
HOOKED_SHARE = 0.2
"""Of that, on a GPU, where DeepSpeed's hooks handle each gradient (ZeRO 3, or cuda_graphs=false), measured at 370m."""
_WIRE_SHARE = (0.25, 0.75)
"""Of the stated bandwidth, what the exchange reaches, which comes after the backward pass and which nothing hides; two
H200s: 0.27 with 0.7 GB, 0.5 to 0.9 with 2.7 GB, waiting for the slower one included."""


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

    A step takes as long as the worker with the most windows computes, and then the exchange, over the link within a
    node, or the network between nodes.
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
    sent = estimate_exchange(config, workers).link_bytes(count)
    return computing + sent / (bandwidth * _WIRE_SHARE[place])
