"""Tests of rcdist/report."""
