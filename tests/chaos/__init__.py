"""Tests of rcdist.chaos."""
