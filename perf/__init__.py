"""Workloads, baselines, measurement and reports: what hrt is tested and timed on."""
