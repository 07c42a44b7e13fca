"""The `credits` command: wiring of the other packages, and tables for people."""
