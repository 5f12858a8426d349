"""Questions and graders of their answers: benchmarks and the demo's puzzles."""
