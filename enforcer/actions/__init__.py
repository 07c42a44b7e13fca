"""Ways out: how running work is signalled, suspended and stopped, one module per kind of scheduler."""
