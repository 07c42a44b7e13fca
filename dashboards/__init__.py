"""Grafana dashboards and Prometheus rules, generated from the exporter's metric names."""
