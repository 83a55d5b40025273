"""Metrics, their ledger of cost, and where they are written."""
