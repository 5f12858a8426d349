"""An OpenAI-compatible server whose thinking budgets hold."""
