"""What is kept: rules, masks and scores."""
