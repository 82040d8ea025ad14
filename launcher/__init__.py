"""Launcher: back ends that turn a plan into running processes, and their records of them."""
