"""Before anything imports Triton: in the tests' own process kernels run on its interpreter. What is compiled ahead of
time is compiled in processes of its own (see test_aot.py), and `make gpu` runs card.py on the card itself.
"""

import os

if os.environ.get("HRT_ON_CARD") != "1":
    os.environ["TRITON_INTERPRET"] = "1"
