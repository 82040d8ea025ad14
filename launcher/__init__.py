"""Launcher: back ends that turn a plan into running processes, and the records they keep of them."""
