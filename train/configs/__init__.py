"""Configurations, one file a model and data set. `amex configs` lists them; they are run, not imported."""
