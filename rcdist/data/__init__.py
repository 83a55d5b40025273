"""From text to batches: tokenizer, shards, and one global order of windows."""
