"""Do the tiles give the same bits on ARM? A tile is compiled for aarch64, linked to C, and emulated.

    python bench/neon.py

It needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross,
qemu-user).

It prints the instructions of the innermost loop by kind and compares sums of signs with numpy's, for
one tile of each size and 1 to 70 words.
"""
import re, subprocess, tempfile
from collections import Counter
from pathlib import Path
import numpy as np
from llvmlite import binding as llvm
from numba import cfunc, from_dtype, types
from numba.extending import intrinsic
from bnn_bn.onebit.counting import ways
from bnn_bn.onebit.kernels import block_weights
from bnn_bn.onebit.tiles import COLUMNS, ROW, WIDE1, WIDE2, WIDE4, bit_tile

NEON, SHAPES = ways['neon'], {4: WIDE4, 2: WIDE2, 1: WIDE1}
MAIN = r'''
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
void tile_4(int64_t*); void tile_2(int64_t*); void tile_1(int64_t*);
int main(int argc, char **argv) {
    int64_t n = atoi(argv[1]), pixels = atoi(argv[2]);
    uint32_t *x = malloc(4*n*pixels), *w = malloc(256*n);
    static float scale[256], res[64], out[256];
    static int32_t base[64], pix[12];
    static uint32_t bits[8];
    if (fread(x, 4, n*pixels, stdin) != n*pixels || fread(w, 4, 64*n, stdin) != 64*n) return 1;
    for (int i = 0; i < 64; i++) scale[i] = scale[128 + i] = 1, base[i] = 32*n;
    for (int p = 0; p < pixels; p++) pix[3*p] = p*n, pix[3*p + 2] = 2*p;
    struct {int64_t COLUMNS;} a = {.channels = 64, .pixels = pixels, .pix = (int64_t)pix, .x = (int64_t)x,
        .rows = 1, .cols = 1, .run = n, .w = (int64_t)w, .w_step = 64*n, .base = (int64_t)base,
        .scale = (int64_t)scale, .step = 256, .out = (int64_t)out, .out_step = 256, .res = (int64_t)res,
        .bits = (int64_t)bits};
    (pixels == 4 ? tile_4 : pixels == 2 ? tile_2 : tile_1)((int64_t*)&a);
    fwrite(out, 4, 64*pixels, stdout); fwrite(bits, 4, 2*pixels, stdout);
    return 0;
}
'''

@intrinsic
def row_at(typing, address): # the row of a plan that lies there
    record = from_dtype(ROW)
    def code(context, b, signature, args): return b.bitcast(args[0], context.get_value_type(record))
    return record(address), code

def make(pixels):
    "a tile as a C function that takes the address of a row"
    shape = SHAPES[pixels]
    @cfunc(types.void(types.CPointer(types.int64)))
    def tile(a):
        o = row_at(a)
        bit_tile(NEON, shape, o, 0, o.x, o.run, o.w, 0, 0)
    return tile

def for_arm(fn, name, machine):
    "the function's code for another CPU; its C entry is called `name`"
    code = re.sub(r'target triple = .*', f'target triple = "{machine.triple}"', fn.inspect_llvm())
    code = re.sub(r'target datalayout = .*', f'target datalayout = "{machine.target_data}"', code)
    code = re.sub(r'"target-(cpu|features)"="[^"]*"', '', code).replace(fn._wrapper_name, name)
    return llvm.parse_assembly(code)

def inner_loop(assembly):
    "the instructions of the loop that counts most, by kind"
    blocks = re.split(r'^\.LBB\S+:', assembly, flags=re.M)
    inner = max(blocks, key=lambda b: len(re.findall(r'\tcnt\s', b)))
    return dict(Counter(re.findall(r'^\t([a-z]\w*)', inner, re.M)).most_common(8))

def build(folder):
    "the program that runs a tile on ARM"
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple('aarch64-linux-gnu')
    machine, objects = target.create_target_machine(cpu='cortex-a72', opt=3, reloc='pic'), []
    for p in SHAPES:
        module = for_arm(make(p), f'tile_{p}', machine)
        objects.append(folder/f'{p}.o')
        objects[-1].write_bytes(machine.emit_object(module))
        if p == 4: print('innermost loop:', inner_loop(machine.emit_assembly(module)))
    (folder/'main.c').write_text(MAIN.replace('COLUMNS', ', '.join(COLUMNS)) + STUBS)
    flags = ['-static', '-O1', '-w', '-Wl,--unresolved-symbols=ignore-all']
    files = [str(f) for f in (folder/'main.c', *objects)]
    command = ['aarch64-linux-gnu-gcc', *flags, *files, '-o', str(folder/'tile')]
    subprocess.run(command, check=True)
    return folder/'tile'

STUBS = """void numba_gil_ensure(void*a){} void numba_gil_release(void*a){}
void numba_unpickle(void){abort();} void PyErr_Clear(void){abort();}
"""

def compare(program, g, pixels, n):
    "sums and signs of one tile of n words, beside numpy's"
    x, w = (g.integers(0, 2**32, s, dtype=np.uint32) for s in ((pixels, n), (64, n)))
    data = x.tobytes() + block_weights(w[:, None, None], 'neon').tobytes()
    command = ['qemu-aarch64', str(program), str(n), str(pixels)]
    got = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    want = 32*n - 2*np.bitwise_count(x[:, None] ^ w).sum(2, dtype=np.int64)
    sums = np.frombuffer(got[:256*pixels], np.float32).reshape(pixels, 64)
    ones = np.unpackbits(np.frombuffer(got[256*pixels:], np.uint8), bitorder='little')
    assert (sums == want).all(), (pixels, n)
    assert (ones.reshape(pixels, 64) == (want >= 0)).all(), (pixels, n)

def main():
    g, words = np.random.default_rng(0), (1, 2, 7, 30, 31, 32, 62, 63, 70)
    with tempfile.TemporaryDirectory() as d:
        program = build(Path(d))
        for p in SHAPES:
            for n in words: compare(program, g, p, n)
    print(f'{len(SHAPES)*len(words)} tiles on emulated ARM equal numpy in every sum and every sign')

if __name__ == '__main__': main()
