"""The page of a curated dataset: what became of every file of its pool, before and after, in one HTML file."""

from components.curation.report.page import write_report

__all__ = ["write_report"]
