"""What holds for the whole test run and must be set before anything loads torch."""

from __future__ import annotations

import os
import sys

# The golden outputs were made with AVX2 kernels. Wider ones round otherwise, which the sensitive streams amplify beyond
# any tolerance; speed is measured with whatever the machine has.
if "--benchmark-only" not in sys.argv:
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
