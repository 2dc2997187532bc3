"""Weights that PyTorch wrote, without PyTorch."""
