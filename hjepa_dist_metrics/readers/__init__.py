"""Tools on the files of finished and running runs."""
