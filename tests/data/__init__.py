"""Tests of rcdist/data."""
