"""Paired measurements: what freezing, fusing and the system around a step are worth on this machine."""
