"""Networks for images of 32 pixels: ResNet with option-A shortcuts, DenseNet without bottlenecks, and ResNeXt."""

from ltcore_cifar_resnet.densenet import DenseNet
from ltcore_cifar_resnet.functional import option_a_shortcut
from ltcore_cifar_resnet.method import (
    CifarDenseNet,
    CifarDenseNetOptions,
    CifarResNet,
    CifarResNetOptions,
    CifarResNeXt,
    CifarResNeXtOptions,
)
from ltcore_cifar_resnet.network import BasicBlock, ResNet
from ltcore_cifar_resnet.resnext import ResNeXt

__all__ = [
    "BasicBlock",
    "CifarDenseNet",
    "CifarDenseNetOptions",
    "CifarResNeXt",
    "CifarResNeXtOptions",
    "CifarResNet",
    "CifarResNetOptions",
    "DenseNet",
    "ResNeXt",
    "ResNet",
    "option_a_shortcut",
]
