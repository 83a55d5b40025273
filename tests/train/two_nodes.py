"""Drive the broadcast test on a cluster given by its address: `python -m tests.train.two_nodes ADDRESS FOLDER`."""

import json
import sys
from pathlib import Path

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from rcdist.cluster import Workers, worker_environment
from rcdist.model.reservoir import build_bank
from tests.train.family_worker import broadcast_job, broadcast_loop

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 4


def main(address: str, folder: Path) -> None:
    """Put the bank once and train with it on every node; write its size and digest."""
    ray.init(address=address, logging_level="ERROR")
    config = broadcast_job(1)
    packed = build_bank(config.architecture).pack()
    (folder / "bank.json").write_text(json.dumps({"bytes": packed.data.nbytes, "digest": packed.digest}))
    environment = worker_environment(Workers(WORKERS, False, 1.0)) | {"PYTHONPATH": str(ROOT)}
    TorchTrainer(
        broadcast_loop,
        train_loop_config={"bank_ref": ray.put(packed), "bank_digest": packed.digest, "result": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="two", storage_path=str(folder / "runs"), worker_runtime_env={"env_vars": environment}
        ),
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
