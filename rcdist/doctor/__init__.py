"""Everything that a run needs, looked at here and on every node of its cluster, and what is wrong with its fix."""
