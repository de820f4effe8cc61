"""The allocator keeps freed memory unless the user configured it otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from score_sde.engine.malloc import keep_freed
torch.set_num_threads(1)
keep_freed()
for _ in range(12):  # the first few find the places
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(2**18) for _ in range(16)]
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_reused_without_page_faults():
    """Allocating 16 MB again would fault 4,096 pages; the user's own setting has precedence."""
    faults = []
    for chosen in ({}, {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **chosen}, capture_output=True, text=True, check=True
        )
        faults.append(int(done.stdout))
    assert faults[0] < 100
    assert faults[1] > 4000
