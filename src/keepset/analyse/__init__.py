"""From numbers to conclusions: intervals, tests, correlations, the papers' claims."""
