"""The Lua scripts of the ledger, one file per operation, each with its contract on top."""
