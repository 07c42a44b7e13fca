"""The exporter: asks the schedulers what runs, charges it to the ledger, serves `/metrics`."""
