"""Models that answer prompts, many concurrently: at an endpoint, or in our own engine."""
