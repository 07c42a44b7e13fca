"""The admin API, the web console and payments."""
