"""Folders that inference servers load, and what runs inside those servers.

Knows ONNX graphs; knows nothing of benchmarks. What runs inside a server does without onnx: names are loaded when used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"repository": ["export_repository", "install_triton_backend"]}
)
