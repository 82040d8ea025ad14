"""Weights and configurations in Hugging Face's format, in and out."""
