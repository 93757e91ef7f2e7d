"""Speed, memory and the ranks that hold the others up."""
