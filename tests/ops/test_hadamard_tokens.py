"""Hadamard products of a few tokens on a CPU, which have a path of their own, are those of many and the reference's."""

import pytest
import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops import project_cpu
from rcdist.ops.processor import Isa, limited
from tests.ops.backends import X86


@pytest.mark.parametrize("isa", ["native", pytest.param("avx2", marks=X86), pytest.param("x86-64", marks=X86)])
@pytest.mark.parametrize(("letter", "width"), [("c", 64), ("c", 768), ("G", 192), ("G", 256), ("D", 192), ("D", 320)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_few_tokens_are_as_among_many(isa: Isa, letter: str, width: int, dtype: torch.dtype) -> None:
    model = ModelConfig(num_layers=1, width=width, glu_width=2 * width + 40, vocab_size=32)
    bank = build_bank(Architecture(model, ReservoirConfig(plan=letter, topology="hadamard")))
    matrix = bank.linear_map(f"{letter}.0")
    outputs, inputs = matrix.shape
    codes, rows = torch.randint(-127, 128, (20, inputs), dtype=torch.int8), torch.rand(20)
    dy, columns = torch.randn(20, outputs).to(dtype), torch.rand(outputs)
    with limited(isa):
        many = project_cpu.forward(torch.empty(0, dtype=dtype), codes, rows, matrix, columns)
        back = project_cpu.backward(dy, matrix, columns, None)
        for count in (1, 2, 4):
            few = project_cpu.forward(torch.empty(0, dtype=dtype), codes[:count], rows[:count], matrix, columns)
            torch.testing.assert_close(few, many[:count], rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)
            few_back = project_cpu.backward(dy[:count], matrix, columns, torch.ones(count, inputs, dtype=dtype))
            close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(few_back, back[:count] + 1, **close)
    exact = matrix.times(codes.double() * rows.double().unsqueeze(1)) * columns.double()
    torch.testing.assert_close(many.double(), exact, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-2)
