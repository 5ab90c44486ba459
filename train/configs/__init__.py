"""Configurations, one file for each model and data set. `amex configs` lists them; files are executed, not imported."""
