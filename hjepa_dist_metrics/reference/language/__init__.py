"""A small language model of sums, in one process, over pipeline stages, or with its experts over ranks."""
