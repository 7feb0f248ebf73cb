"""The kernels without numba's compiler: Python's loops, and a function of LLVM for each intrinsic.

The whole code of a way takes seconds to compile, this a fraction of one: for small maps, and for
`tools/mutate_code.py`. What stands under `jit` runs as it is written. What stands under `intrinsic`
writes its instructions as it does for numba.
"""
import ctypes
import operator
from types import SimpleNamespace

import llvm
import numba
import numpy as np
from llvmlite import ir

from bnn_bn.onebit import counting, kernels, tiles
from bnn_bn.onebit.counting import Deferred, compiler, this_cpu

POINTER, I64 = ir.IntType(8).as_pointer(), ir.IntType(64)
RECORD = numba.from_dtype(tiles.ROW)
CONTEXT = SimpleNamespace(get_dummy_value=lambda: None, get_value_type=lambda kind: POINTER)
WRITES = counting.write_now # what makes a function of instructions


class Row:
    "A row of a plan where it lies; its columns are whole numbers of Python."
    def __init__(self, address):
        self.address = address
        columns = (ctypes.c_int64*len(tiles.COLUMNS)).from_address(address)
        vars(self).update(zip(tiles.COLUMNS, columns))


def kind_of(v):
    "numba's type of an argument"
    if isinstance(v, Row): return RECORD
    if isinstance(v, np.uint32): return numba.types.uint32
    return numba.typeof(v) if isinstance(v, tuple) else numba.types.int64

def argument(b, kind, given):
    "an argument as numba hands it to an intrinsic"
    if kind == RECORD: return b.inttoptr(given, POINTER)
    if kind == numba.types.uint32: return b.trunc(given, ir.IntType(32))
    return given

def written(write, kinds):
    "a module of LLVM whose function `f` is that intrinsic; numba's type of its result"
    signature, code = write(None, *kinds)
    module = ir.Module()
    module.triple = this_cpu().triple
    f = ir.Function(module, ir.FunctionType(I64, [I64]*len(kinds)), 'f')
    b = ir.IRBuilder(f.append_basic_block())
    args = [argument(b, kind, given) for kind, given in zip(kinds, f.args)]
    b.ret(whole(b, code(CONTEXT, b, signature, args)))
    return module, signature.return_type

def whole(b, v):
    "a result as 64 bits"
    if v is None: return I64(0)
    if isinstance(v.type, ir.PointerType): return b.ptrtoint(v, I64)
    return v if v.type == I64 else b.zext(v, I64)

def of_python(v, kind):
    "a result as numba would give it"
    if kind == RECORD: return Row(v)
    return {numba.types.uint32: np.uint32, numba.types.boolean: bool}.get(kind, int)(v)


def as_number(v):
    "what is passed: an address, a number, or nothing for a way"
    if isinstance(v, Row): return v.address
    return 0 if isinstance(v, tuple) else operator.index(v)

def alone(write):
    "an intrinsic as a function that Python calls; compiled once for each types of arguments"
    made = llvm.made.setdefault(write, {})
    def call(*args):
        kinds = tuple(map(kind_of, args))
        if kinds not in made:
            module, result = written(write, kinds)
            f = llvm.compiled(module, len(args), compiler(this_cpu()), repr(this_cpu()))
            made[kinds] = f, result
        f, result = made[kinds]
        return of_python(f(*map(as_number, args)), result)
    return call

def run_plainly(monkeypatch):
    "from now on the kernels run so"
    for module in (tiles, kernels):
        for f in vars(module).values():
            if not isinstance(f, Deferred): continue
            plain = alone(f.__wrapped__) if f.make is WRITES else f.__wrapped__
            monkeypatch.setitem(counting.forms, f, plain)
    def code_of(kind): return kernels.functions_of(kind()), None
    monkeypatch.setattr(kernels, 'code_of_kind', code_of)
