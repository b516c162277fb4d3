"""Studies: tasks, methods, densities, seeds and controls in one file, whose every combination is a draw."""
