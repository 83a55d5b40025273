"""Tests of rcdist/config."""
