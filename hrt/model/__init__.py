"""CompressedModel, its file, its report and its pictures.

Knows nothing of how a network is compressed: loading and predicting need no planner.
"""
