"""How right is a model, and what does thinking longer buy: tasks, grading, metrics, report."""
