"""Recording: a run gives the same trace again, failures begin at their step, and hooks do what they say."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.health.catalogue import RECIPES, RunSpec, all_runs, recipe_class
from benchmarks.health.recipe import Setting
from benchmarks.health.recorder import groups, missing, record
from benchmarks.health.traces import Trace

_OF_THE_MACHINE = ("performance/", "system/", "sync/")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every recipe train a few steps."""
    for name in RECIPES:
        monkeypatch.setattr(recipe_class(name), "steps", 12)
        monkeypatch.setattr(recipe_class(name), "log_every", 4)


def reproducible(trace: Trace) -> list[tuple[int, dict[str, float]]]:
    return [
        (step, {tag: v for tag, v in numbers.items() if not tag.startswith(_OF_THE_MACHINE)})
        for step, numbers in trace.logs
    ]


@pytest.mark.parametrize("recipe", ["vicreg", "byol"])
def test_a_run_is_the_same_again(recipe: str):
    spec = RunSpec(recipe, Setting(1))
    assert reproducible(record(spec)) == reproducible(record(spec))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_publishes_losses_gradients_and_updates(recipe: str):
    trace = record(RunSpec(recipe, Setting(0)))
    tags = {tag for _, numbers in trace.logs for tag in numbers}
    assert {"loss/total", "gradients/global_norm", "learning_rate/base_lr"} <= tags
    assert any(tag.startswith("update/") for tag in tags)
    assert [step for step, _ in trace.facts] == [0, 4, 8]
    assert not any(tag.startswith(("alerts/", "health/")) for tag in tags)


def test_a_failing_run_is_its_healthy_twin_until_the_failure_begins():
    spec = next(run for run in all_runs() if run.failure and run.failure.name == "lost_gradients")
    failing, healthy = record(spec), record(replace(spec, failure=None, strength=None))
    before = spec.planted_at
    assert before is not None

    def part(trace: Trace, after: bool) -> list[float]:
        logs = ((step, numbers.get("gradients/global_norm")) for step, numbers in trace.logs)
        return [norm for step, norm in logs if norm is not None and (step >= before) == after and step < 10]

    assert part(failing, False) == part(healthy, False)
    assert max(part(failing, True)) < 1e-3 * min(part(healthy, True))


def test_what_has_a_trace_is_not_recorded_again_and_ranks_are_grouped(tmp_path: Path):
    specs = [run for run in all_runs() if run.failure and run.failure.name == "slow_compute"]
    Trace(specs[0].name, {"held_out": False}, []).save(tmp_path)
    assert missing(specs, tmp_path) == specs[1:]
    together = groups([*specs, RunSpec("vicreg", Setting())])
    assert [len(group) for group in together] == [1, *(sum(s.ranks == r for s in specs) for r in (2, 4))]
