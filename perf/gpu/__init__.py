"""A few minutes on a GPU, used in order of worth: what is packed for it, the steps, their budget and their report.

Knows the rooms below it and, for steps that run them, the tests; knows nothing of the paper.
"""
