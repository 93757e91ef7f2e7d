"""`hjepa-metrics report`: one HTML file that says how a run went and shows why."""

from hjepa_dist_metrics.commands.report.live import keep_fresh as keep_fresh, write_page as write_page
from hjepa_dist_metrics.commands.report.page import render_report as render_report
