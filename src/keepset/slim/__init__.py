"""From a budget to a recipe, and to a smaller, faster model: docs/METHODS.md, section 10."""
