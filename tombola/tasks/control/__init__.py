"""Control: nets that learn by acting in games."""

from tombola.tasks.control.tasks import CONTROL

__all__ = ["CONTROL"]
