"""Modelling code that an export carries along: it needs torch and transformers, and nothing of rcdist."""
