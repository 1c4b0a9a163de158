"""Tiny ImageNet as a TFDS data set, made from its official files."""

from experiments.tiny_imagenet.builder import Config, TinyImagenet, main, prepare

__all__ = ["Config", "TinyImagenet", "main", "prepare"]
