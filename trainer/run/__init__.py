"""A run's folder: opened, saved, resumed."""
