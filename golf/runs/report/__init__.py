"""`gather` compares runs; `tables`, `markdown` and `page` say it on a terminal, in a text, and on a page."""

from golf.runs.report.gather import Report, ReportRun, gather
from golf.runs.report.page import page
from golf.runs.report.text import markdown, tables

__all__ = ["Report", "ReportRun", "gather", "markdown", "page", "tables"]
