"""Before anything imports Triton: in the tests' own process kernels run on its interpreter. What is compiled ahead of
time is compiled in processes of its own (see test_aot.py).
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
