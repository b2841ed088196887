"""Recommenders: solvers, the fitted model, its evaluation."""
