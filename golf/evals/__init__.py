"""Floor 2: evaluators. One planner says which window scores which target; one function runs it."""
