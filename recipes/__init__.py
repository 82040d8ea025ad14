"""Recipes: what people write, how it is checked, and the recipes and model presets that parctl
ships."""
