"""Tests of rcdist/sweep."""
