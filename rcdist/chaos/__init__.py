"""Break runs on purpose and judge how they end."""
