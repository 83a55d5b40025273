"""Pictures and pages about finished runs, for searches and for comparisons; pure functions on plain data."""
