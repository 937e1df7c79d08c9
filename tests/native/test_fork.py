"""The kernels work in processes that were forked from one that has used them."""

import outside
import pytest

pytestmark = [outside.needs_library, outside.needs_linux]

SCAN = """
import os, signal, torch
from nonet import native
from nonet.mamba import selective_scan
torch.set_num_threads(2)
inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in
          ((2, 256, 300), (2, 256, 300), (256, 16), (2, 16, 300), (2, 16, 300))]
inputs[1], inputs[2] = inputs[1].abs(), -inputs[2].abs()
def scan(row=slice(None)):
    u, delta, A, B, C = inputs
    return selective_scan(u[row], delta[row], A, B[row], C[row], impl="cpu").numpy().tobytes()
"""


def test_a_forked_child_works_alone():
    code = f"""{SCAN}
before = scan()
child = os.fork()
if child == 0:
    signal.alarm(100)  # one that waits for threads that it does not have would wait for ever
    os._exit(0 if scan() == before else 3)
assert os.waitpid(child, 0)[1] == 0
assert scan() == before
"""
    run = outside.python(code, OMP_NUM_THREADS="2")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("parent", ["has used the kernels", "has not"])
def test_workers_of_a_data_loader_call_kernels(parent):
    first = "scan()" if parent == "has used the kernels" else ""
    code = f"""{SCAN}
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, row):
        return row, scan(slice(row, row + 1))
{first}
loader = torch.utils.data.DataLoader(Rows(), batch_size=None, num_workers=2, multiprocessing_context="fork")
found = dict(loader)
assert b"".join(found[row] for row in range(2)) == scan()
"""
    run = outside.python(code, OMP_NUM_THREADS="2")
    assert run.returncode == 0, run.stderr
