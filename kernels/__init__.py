"""Triton kernels and their launchers; tensors and integers in, tensors out."""
