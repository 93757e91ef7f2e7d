"""transformers 5 takes Python 3.11 or newer: on older ones there is nothing to test here."""

import sys

collect_ignore_glob = ["*.py"] if sys.version_info < (3, 11) else []
