"""Many questions to few: filters, features, seeded selection, report."""
