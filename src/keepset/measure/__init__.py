"""What a model does under rules: losses, answers, single-unit ablations."""
