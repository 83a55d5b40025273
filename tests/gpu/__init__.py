"""Proofs that need a GPU; they are run by hand, never in CI."""
