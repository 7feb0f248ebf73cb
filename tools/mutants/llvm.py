"""One function of LLVM, compiled by itself.

Nothing of ours is imported here, so what was compiled stays when our modules are imported anew.
"""
import ctypes

from llvmlite import binding, ir

engines, functions = [], {} # text and CPU -> function; their code stays as long as the process
made = {} # a function that writes one -> types of its arguments -> what was made of it

def compiled(
    module:ir.Module, # with a function `f` of whole numbers of 64 bits
    inputs:int, # how many it takes
    machine, # LLVM's compiler for the CPU at hand
    cpu:str, # its name and features
):
    "`f` as a function of ctypes; the same text is compiled once."
    key = str(module), cpu
    if key not in functions:
        parsed = binding.parse_assembly(key[0])
        engine = binding.create_mcjit_compiler(parsed, machine)
        engine.finalize_object()
        engines.append(engine)
        kinds = [ctypes.c_int64]*(1 + inputs)
        functions[key] = ctypes.CFUNCTYPE(*kinds)(engine.get_function_address('f'))
    return functions[key]
