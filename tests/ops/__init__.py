"""Tests of rcdist/ops."""
