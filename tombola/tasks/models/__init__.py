"""Networks of the built-in tasks."""

from tombola.tasks.models.initialisation import gaussian_glorot_, he_normal_
from tombola.tasks.models.lenet import conv_net, lenet5, lenet300, mlp
from tombola.tasks.models.resnet import digits_resnet, imagenet_resnet, resnet, resnet18
from tombola.tasks.models.scaling import scaled
from tombola.tasks.models.vgg import vgg

__all__ = [
    "conv_net",
    "digits_resnet",
    "gaussian_glorot_",
    "he_normal_",
    "imagenet_resnet",
    "lenet5",
    "lenet300",
    "mlp",
    "resnet",
    "resnet18",
    "scaled",
    "vgg",
]
