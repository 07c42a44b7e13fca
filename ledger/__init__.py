"""The ledger: who holds, spent and set aside how many credits, exactly, in Redis or Valkey."""
