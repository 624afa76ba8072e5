"""The `micro` command: one file a group. Bodies import what they need when they run."""
