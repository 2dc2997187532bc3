"""Readers of foreign pairs of pictures and texts, one module for each format."""
