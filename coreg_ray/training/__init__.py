"""What every method runs on: the mesh of processes, the rows, the students, the loop, and the state on disk."""
