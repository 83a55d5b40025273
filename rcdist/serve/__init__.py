"""A trained model behind HTTP: batches that texts join and leave at any step, OpenAI's completions, Ray Serve."""
