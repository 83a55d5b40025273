"""Tests of rcdist/checkpoint."""
