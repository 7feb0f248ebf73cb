"""Do the tiles give the same bits on ARM? Compiles a tile for aarch64, links it to a few lines of C, and runs it in an emulator.

    python bench/neon.py          # needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)

It prints the instructions of the innermost loop by kind and compares sums of signs with numpy's, for one tile of each size and 1 to 70 words.
"""
import re, subprocess, tempfile
from collections import Counter
from pathlib import Path
import numpy as np
from llvmlite import binding as llvm
from numba import cfunc, types
from bnn_bn.kernels import bit_tile, block_weights, ways

NEON = (0,)*ways['neon']
MAIN = r'''
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
void tile_4(int64_t*); void tile_2(int64_t*); void tile_1(int64_t*);
int main(int argc, char **argv) {
    int64_t n = atoi(argv[1]), pixels = atoi(argv[2]);
    uint32_t *x = malloc(4*n*pixels), *w = malloc(256*n);
    static float scale[256], res[64], out[256]; static int32_t base[64], pix[12]; static uint32_t bits[8];
    if (fread(x, 4, n*pixels, stdin) != n*pixels || fread(w, 4, 64*n, stdin) != 64*n) return 1;
    for (int i = 0; i < 64; i++) scale[i] = scale[128 + i] = 1, base[i] = 32*n;
    for (int p = 0; p < pixels; p++) pix[3*p] = p*n, pix[3*p + 2] = 2*p;
    int64_t a[] = {(int64_t)pix, (int64_t)x, 1, 0, 1, 0, n, (int64_t)w, 64*n, (int64_t)base, (int64_t)scale, 256, (int64_t)out, 256, (int64_t)res, 0, (int64_t)bits, pixels};
    (pixels == 4 ? tile_4 : pixels == 2 ? tile_2 : tile_1)(a);
    fwrite(out, 4, 64*pixels, stdout); fwrite(bits, 4, 2*pixels, stdout);
    return 0;
}
'''

def make(pixels):
    few = (0,)*pixels
    @cfunc(types.void(types.CPointer(types.int64)))
    def tile(a):
        bit_tile(NEON, (0, 0), few, 0, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17])
    return tile

def for_arm(fn, name, machine):
    "the function's code for another CPU; its C entry is called `name`"
    code = re.sub(r'target triple = .*', f'target triple = "{machine.triple}"', fn.inspect_llvm())
    code = re.sub(r'target datalayout = .*', f'target datalayout = "{machine.target_data}"', code)
    code = re.sub(r'"target-(cpu|features)"="[^"]*"', '', code).replace(fn._wrapper_name, name)
    return llvm.parse_assembly(code)

def main():
    llvm.initialize_all_targets(); llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple('aarch64-linux-gnu').create_target_machine(cpu='cortex-a72', opt=3, reloc='pic')
    with tempfile.TemporaryDirectory() as d:
        d, objects = Path(d), []
        for p in (4, 2, 1):
            module = for_arm(make(p), f'tile_{p}', machine)
            (d/f'{p}.o').write_bytes(machine.emit_object(module)); objects.append(d/f'{p}.o')
            if p == 4:
                blocks = re.split(r'^\.LBB\S+:', machine.emit_assembly(module), flags=re.M)
                inner = max(blocks, key=lambda b: len(re.findall(r'\tcnt\s', b)))
                print('innermost loop:', dict(Counter(re.findall(r'^\t([a-z]\w*)', inner, re.M)).most_common(8)))
        (d/'main.c').write_text(MAIN + 'void numba_gil_ensure(void*a){} void numba_gil_release(void*a){} void numba_unpickle(void){abort();} void PyErr_Clear(void){abort();}\n')
        subprocess.run(['aarch64-linux-gnu-gcc', '-static', '-O1', '-w', '-Wl,--unresolved-symbols=ignore-all', str(d/'main.c'), *map(str, objects), '-o', str(d/'tile')], check=True)
        g, done = np.random.default_rng(0), 0
        for p in (4, 2, 1):
            for n in (1, 2, 7, 30, 31, 32, 62, 63, 70):
                x, w = (g.integers(0, 2**32, s, dtype=np.uint32) for s in ((p, n), (64, n)))
                got = subprocess.run(['qemu-aarch64', str(d/'tile'), str(n), str(p)], input=x.tobytes() + block_weights(w[:, None, None], NEON)[0].tobytes(), capture_output=True, check=True).stdout
                want = 32*n - 2*np.bitwise_count(x[:, None] ^ w).sum(2, dtype=np.int64)
                sums, bits = np.frombuffer(got[:256*p], np.float32).reshape(p, 64), np.unpackbits(np.frombuffer(got[256*p:], np.uint8), bitorder='little').reshape(p, 64)
                assert (sums == want).all() and (bits == (want >= 0)).all(), (p, n)
                done += 1
    print(f'{done} tiles on emulated ARM equal numpy in every sum and every sign')

if __name__ == '__main__': main()
