"""Measure every network of a line in one table, draw a report, and say which networks may be promoted."""
