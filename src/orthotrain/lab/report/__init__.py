"""Reports of run folders: one self-contained page, its figures as PNG, its tables as CSV.

Reads files only and never imports torch, so a report can be made where no model can be.
"""

from orthotrain.lab.report.page import write_report

__all__ = ["write_report"]
