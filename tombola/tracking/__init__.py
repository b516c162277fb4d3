"""Trackers: what takes note of trainings while they go on: lines of JSON, TensorBoard, W&B, MLflow, or one's own."""

from __future__ import annotations

from tombola.tracking.base import Tracker
from tombola.tracking.jsonlines import EVENTS, JsonLines, read_events
from tombola.tracking.named import TRACKERS, get_tracker, trackers_for
from tombola.tracking.watching import Tracking

__all__ = ["EVENTS", "TRACKERS", "JsonLines", "Tracker", "Tracking", "get_tracker", "read_events", "trackers_for"]
