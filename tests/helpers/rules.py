"""The built-in alert rules, fresh, as a run has them whose stream `collapse/` is 8 wide."""

from hjepa_dist_metrics.monitor.health.alerts import Rule
from hjepa_dist_metrics.monitor.health.matching_rules import matching_rules
from hjepa_dist_metrics.monitor.health.rules import CollapseRule
from hjepa_dist_metrics.monitor.observers import BuiltIn
from hjepa_dist_metrics.settings import LoggingConfig


def built_in_rules() -> dict[str, Rule]:
    observers = BuiltIn.of(LoggingConfig(), None, None).all
    named = {name: rule for observer in observers for name, rule in observer.rules().items()}
    return {**named, **matching_rules(), "collapse": CollapseRule(lambda: {"collapse/": 8})}
