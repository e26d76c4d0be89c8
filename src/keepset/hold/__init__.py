"""Hold a rule on a running model. All hooks and swapped functions are removed afterwards."""
