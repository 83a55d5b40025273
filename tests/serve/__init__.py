"""Tests of rcdist/serve."""
