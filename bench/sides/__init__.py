"""Processes that each keep one implementation warm; `bench/measures/link.py` drives them."""
