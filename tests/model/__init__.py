"""Tests of rcdist/model."""
