"""Ways in: what a scheduler asks before it takes a job."""
