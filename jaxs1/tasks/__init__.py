"""What is asked and what is right: benchmarks, graders, and the demo's puzzles."""
