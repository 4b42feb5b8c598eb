"""What libraries read from the environment once, when they are imported.

How OpenBLAS, which numpy multiplies matrices with, waits for work:
Its threads stay busy for a while after each product. In between the products onnxruntime wants the cores, and on two
cores every run beside busy threads takes twice as long. With 2^4 cycles they go to sleep at once.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

# onnxruntime keeps a database of events under the user's home folder from 1.32 on, and warns where it cannot.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
