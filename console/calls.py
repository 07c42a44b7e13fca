"""A call of the console: what the enforcer's process serves for it, and for whom."""

from __future__ import annotations

from api.routes import Handler
from api.routes import Route as Call

__all__ = ["Call", "Handler"]
