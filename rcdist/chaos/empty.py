"""How long Ray Train itself takes to start workers again that do nothing: `python -m rcdist.chaos.empty FOLDER`."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def train_loop(config: dict[str, Any]) -> None:
    """Write down the time, and let rank 1 die the first time."""
    import ray.train

    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    path = folder / f"rank-{rank}"
    with path.open("a") as file:
        file.write(f"{time.time()}\n")
    if rank == 1 and len(path.read_text().split()) == 1:
        time.sleep(3)  # a worker that dies at once counts as one that could not be started
        (folder / "killed").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    while len(path.read_text().split()) == 1:
        time.sleep(0.1)


def main(folder: Path) -> None:
    """Run two workers to the end and print the seconds from the kill to the start of the last of the new ones."""
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    ray.init(logging_level="ERROR")
    TorchTrainer(
        train_loop,
        train_loop_config={"folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name="empty",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(max_failures=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    ).fit()
    started = max(float((folder / f"rank-{rank}").read_text().split()[-1]) for rank in range(2))
    print(f"seconds {started - float((folder / 'killed').read_text()):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
