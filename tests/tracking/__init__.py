"""Tests of rcdist.tracking."""
