"""Runs: configuration, hyper-parameters, environments, run folders."""
