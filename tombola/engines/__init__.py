"""Engines: how a masked net is executed. Every engine means the same thing; they differ in how fast they do it."""

from __future__ import annotations

from tombola.engines.base import ENGINES, Plan, Session, check_device, open_session
from tombola.engines.choice import begin, compiles_first
from tombola.engines.evaluation import evaluate

__all__ = ["ENGINES", "Plan", "Session", "begin", "check_device", "compiles_first", "evaluate", "open_session"]
