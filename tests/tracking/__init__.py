"""Tests of rcdist/tracking."""
