"""Several element-wise operations at once, with sums of what they compute."""
