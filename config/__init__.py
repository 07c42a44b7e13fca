"""Readers of `settings.yaml` and `rates.yaml`: text in, frozen and validated values out."""
