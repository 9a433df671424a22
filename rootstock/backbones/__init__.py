"""Pretrained networks by name: how each is built, loaded, cut, and measured."""
