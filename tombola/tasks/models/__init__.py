"""Networks of the built-in tasks."""

from tombola.tasks.models.lenet import conv_net, gaussian_glorot_, lenet5, lenet300, mlp

__all__ = ["conv_net", "gaussian_glorot_", "lenet5", "lenet300", "mlp"]
