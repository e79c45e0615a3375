"""Compiles two kernels for a GPU that is not there and keeps them, or finds them again. Run as a program, in a process
without the interpreter: `python -m helpers.kept_kernels keep|find FOLDER` prints the counts as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from pelton.kernels import compiled

TARGET = GPUTarget("cuda", 90, 32)


@triton.jit
def double_kernel(x, size: tl.constexpr):
    offsets = tl.arange(0, size)
    tl.store(x + offsets, 2 * tl.load(x + offsets))


@gluon.jit
def gluon_double_kernel(x, size: gl.constexpr):
    offsets = gl.arange(0, size, gl.BlockedLayout([1], [32], [4], [0]))
    gl.store(x + offsets, 2 * gl.load(x + offsets))


def compile_both() -> None:
    for source, kernel in ((ASTSource, double_kernel), (GluonASTSource, gluon_double_kernel)):
        signature = {"x": "*fp32", "size": "constexpr"}
        found = triton.compile(source(kernel, signature, constexprs={(1,): 128}), target=TARGET)
        assert found.asm["cubin"][:4] == b"\x7fELF"


def main() -> None:
    action, folder = sys.argv[1], Path(sys.argv[2])
    if action == "keep":
        with compiled.kept_in(folder):
            compile_both()
    else:
        compiled.use_folder(folder)
        compile_both()
    print(json.dumps(dataclasses.asdict(compiled.counts)))


if __name__ == "__main__":
    main()
