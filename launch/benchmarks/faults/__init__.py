"""What happens where ranks die, stop, come late or disagree: cases x modes x ranks, counted."""

from benchmarks.faults.command import run

__all__ = ["run"]
