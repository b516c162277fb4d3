"""Engines: how a masked net is executed. Every engine means the same thing; they differ in how fast they do it."""

from __future__ import annotations

from tombola.engines.base import ENGINES, Plan, Session, open_session, resolve

__all__ = ["ENGINES", "Plan", "Session", "open_session", "resolve"]
