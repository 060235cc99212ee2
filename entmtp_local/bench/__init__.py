"""Workloads to measure speed and acceptance on."""
