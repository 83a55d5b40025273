"""Tests of what a configuration takes before it runs."""
