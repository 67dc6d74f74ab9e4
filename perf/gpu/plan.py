"""The steps on a GPU in order of worth, known without torch. Costs are estimates for an H100 with packed kernels, never
measured yet.
"""

from hrt.perf.gpu.budget import Step

# Environment. STUB: no card, but tests/stub_card.py.  TRIAL: small numbers; steps may take so many times longer.
STUB, TRIAL = "HRT_GPU_STUB", "HRT_GPU_TRIAL"
SILENT = "silent"  # of a STUB: it computes nothing

STEPS = (
    Step("smoke", "one bf16 session", 15),
    Step("correctness", "correctness", 80),
    Step("threads", "threads, strict, derivatives", 35),
    Step("int8-stress", "int8, again and again", 25),
    Step("main-figures", "Burgers and log 4096 beside dense", 150),
    Step("other-figures", "other layers and networks", 60, elastic=True),
    Step("memory", "memory that runs out", 15),
    Step("tuning", "tuning of five shapes", 60),
    Step("sanitizer", "compute-sanitizer on one kernel", 30),
    Step("onnxruntime", "the exported graph in onnxruntime-gpu", 30),
)
