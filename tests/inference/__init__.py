"""Tests of what a trained model does."""
