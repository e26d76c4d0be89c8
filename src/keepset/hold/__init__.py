"""A running model obeys a rule. Everything put in its way is taken back."""
