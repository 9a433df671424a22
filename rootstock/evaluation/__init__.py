"""Evaluation: metrics, comparison of models and backbones, drift, plots and reports."""
