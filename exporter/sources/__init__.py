"""One module per kind of scheduler; each turns what the scheduler says into a `Snapshot`."""
