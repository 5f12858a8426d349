"""The transformer: architecture, parameters, operators, sharding."""
