"""Tests of rcdist/train."""
