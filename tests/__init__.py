"""Tests; the folders mirror rcdist/."""
