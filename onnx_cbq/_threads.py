"""How OpenBLAS, which numpy multiplies matrices with, waits for work: it reads this once, when numpy is imported.

Its threads stay busy for a while after each product. In between the products onnxruntime wants the cores, and on two
cores every run beside busy threads takes twice as long. With 2^4 cycles they go to sleep at once.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
