"""The search: which plan and reservoir give the most quality for a cost; README.md beside this file says how."""
