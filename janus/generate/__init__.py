"""Answers and pictures from a model."""
