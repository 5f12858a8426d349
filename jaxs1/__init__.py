"""jaxs1: s1's simple test-time scaling in JAX: fine-tune, think within a budget, evaluate."""
