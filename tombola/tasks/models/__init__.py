"""Networks of the built-in tasks."""

from tombola.tasks.models.initialisation import draw_as_, gaussian_glorot_, he_normal_
from tombola.tasks.models.lenet import conv_net, lenet5, lenet300, mlp
from tombola.tasks.models.policy import conv_policy, mlp_policy
from tombola.tasks.models.resnet import digits_resnet, imagenet_resnet, resnet, resnet18
from tombola.tasks.models.scaling import scaled
from tombola.tasks.models.vgg import vgg

__all__ = [
    "conv_net",
    "conv_policy",
    "digits_resnet",
    "draw_as_",
    "gaussian_glorot_",
    "he_normal_",
    "imagenet_resnet",
    "lenet5",
    "lenet300",
    "mlp",
    "mlp_policy",
    "resnet",
    "resnet18",
    "scaled",
    "vgg",
]
