"""The ResNets for CIFAR (He et al. 2016): three stages of basic blocks with shortcuts that have no parameters."""

from ltcore_cifar_resnet.functional import option_a_shortcut
from ltcore_cifar_resnet.method import CifarResNet, CifarResNetOptions
from ltcore_cifar_resnet.network import BasicBlock, ResNet

__all__ = ["BasicBlock", "CifarResNet", "CifarResNetOptions", "ResNet", "option_a_shortcut"]
