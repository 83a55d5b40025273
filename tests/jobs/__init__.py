"""Tests of jobs/, run as a user runs them."""
