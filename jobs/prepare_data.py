"""Tokenise the corpora of a configuration into cached shards, as jobs/pretrain.py would at its start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from rcdist.config.cli import read_config
from rcdist.exits import run_job

PRESETS = Path(__file__).with_name("configs")


def main(argv: list[str]) -> int:
    """Prepare the data and print what there is."""
    config = read_config(argv, "jobs/prepare_data.py", "Tokenise corpora into memory-mapped shards.", PRESETS)
    from rcdist.cluster import ray_session
    from rcdist.data.prepare import prepare_corpora
    from rcdist.preflight import check_config

    check_config(config)
    with ray_session(config):
        prepared = prepare_corpora(config)
    for split in ("train", "validation"):
        corpus = getattr(prepared, split)
        print(
            f"{split}: {corpus.num_documents} documents, {corpus.num_bytes} bytes, {corpus.num_tokens} tokens "
            f"({corpus.num_bytes / corpus.num_tokens:.2f} bytes/token) in {corpus.path}"
        )
    return 0


if __name__ == "__main__":
    run_job(main)
