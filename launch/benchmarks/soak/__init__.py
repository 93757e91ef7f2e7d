"""Does anything grow, and is any point lost or doubled, over hours of training, kills and resumes?"""

from benchmarks.soak.command import run

__all__ = ["run"]
