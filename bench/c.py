"""The C file of the embedded network on other machines: are its bits the engine's, at what cost?

    python bench/c.py [--images 20] [--out runs/c.json]

Machines: this one (gcc), aarch64 (aarch64-linux-gnu-gcc and qemu-aarch64), Cortex-M4F and Cortex-M3
(arm-none-eabi-gcc and qemu-system-arm). A machine whose programs are missing is left out, and the
file says so. Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user, and gcc-arm-none-eabi
libnewlib-arm-none-eabi qemu-system-arm.

The network is compiled twice: with its real stem, and with the stem in eight bits, which sums whole
numbers (`stem='int8'`). All logits of random uint8 pictures are compared bit by bit. On the Cortex-M instructions are
counted: qemu runs one instruction in a nanosecond of its own time (-icount shift=0), and the SysTick
counter ticks every 40 of them; a loop of known length checks that. qemu's plugin that counts in user
mode is in no Debian package, so there is no count for aarch64.
"""
import argparse, json, platform, re, shutil, subprocess, tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
import numpy as np
from bnn_bn.core.files import write_file
from bnn_bn.deploy import PackedNet, load_packed
from bnn_bn.onebit.stem import int8_stem
from bnn_bn.targets.export_c import to_c

NETWORK = 'fashion-reactnet_mini'
MAIN = r'''
#include <stdio.h>
#define NET_DECLARE
#include "net.c"
#include "pictures.h"
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define REGISTER(address) (*(volatile uint32_t *)address)
static void start(void)
{
    REGISTER(0xe000e014) = 0xffffff;
    REGISTER(0xe000e018) = 0;
    REGISTER(0xe000e010) = 5;
}
static uint32_t ticks(void) { return 0xffffff - REGISTER(0xe000e018); }
static void loop(uint32_t n) { __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(n) : : "cc"); }
#else
static void start(void) {}
static unsigned ticks(void) { return 0; }
static void loop(unsigned n) { (void)n; }
#endif
static union { float at[NET_OUTPUTS]; uint32_t bits[NET_OUTPUTS]; } logits;
int main(void)
{
    start();
    loop(1000000);
    printf("loop %lu\n", (unsigned long)ticks());
    for (int i = 0; i < PICTURES; i++) {
        start();
        int label = net_pixels(pictures[i], NET_HEIGHT, NET_WIDTH, logits.at);
        printf("picture %d %lu", label, (unsigned long)ticks());
        for (int j = 0; j < NET_OUTPUTS; j++) printf(" %08lx", (unsigned long)logits.bits[j]);
        printf("\n");
    }
    return 0;
}
'''
# the first instructions of a Cortex-M: switch the float unit on where there is one, then newlib's start
START = r'''
#include <stdint.h>
extern void _start(void);
extern uint32_t stack_end;
static void reset(void)
{
#ifdef __ARM_FP
    *(volatile uint32_t *)0xe000ed88 |= 0xf << 20;
    __asm__ volatile("dsb\n isb");
#endif
    _start();
}
__attribute__((section(".vectors"), used))
static void *const vectors[2] = {&stack_end, (void *)reset};
'''
SCRIPT = r'''
MEMORY { flash (rx): ORIGIN = 0, LENGTH = 4M
         ram (rwx): ORIGIN = 0x20000000, LENGTH = 4M }
ENTRY(_start)
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) *(.init) *(.fini) } > flash
    .unwind : { *(.eh_frame*) *(.ARM.ex*) } > flash
    .init_array : { KEEP(*(.init_array*)) } > flash
    .data : { *(.data*) } > ram
    .bss : { __bss_start__ = .; *(.bss*) *(COMMON) __bss_end__ = .; end = .; __end__ = .; } > ram
    stack_end = ORIGIN(ram) + LENGTH(ram);
    __stack = stack_end;
}
'''
CORTEX = '-mthumb', '--specs=rdimon.specs', '-T', 'script.ld', 'start.c'
M4F = '-mcpu=cortex-m4', '-mfloat-abi=hard', '-mfpu=fpv4-sp-d16', *CORTEX
M3 = '-mcpu=cortex-m3', '-mfloat-abi=soft', *CORTEX
QEMU = ('qemu-system-arm -nographic -icount shift=0 -semihosting-config enable=on,target=native '
        '-kernel net -M ')

@dataclass
class Machine:
    "A compiler and what runs its programs."
    name:str
    compiler:str
    flags:tuple = ()
    emulator:str = ''

MACHINES = [
    Machine(platform.machine(), 'gcc'),
    Machine('aarch64', 'aarch64-linux-gnu-gcc', ('-static',), 'qemu-aarch64 net'),
    Machine('Cortex-M4F', 'arm-none-eabi-gcc', M4F, QEMU + 'mps2-an386'),
    Machine('Cortex-M3', 'arm-none-eabi-gcc', M3, QEMU + 'mps2-an385')]
STEMS = 'real', 'int8'
LEVELS = '-Os', '-O2', '-O3'

@dataclass
class Result:
    "What was found on one machine with one option."
    stem:str                # real or int8
    machine:str
    option:str
    images:int
    logits:int
    different:int           # logits with another bit
    instructions:int = None # median of a picture
    code:int = None         # bytes of code of the C file, and of its tables
    tables:int = None
    static:int = None       # bytes of static memory of the C file
    stack:int = None        # bytes of all its functions together, more than can be in use

def pictures_text(pictures):
    rows = ['{' + ','.join(map(str, p.ravel().tolist())) + '}' for p in pictures]
    n = pictures[0].size
    table = ',\n'.join(rows)
    return (f'#define PICTURES {len(pictures)}\n'
            f'static const uint8_t pictures[{len(pictures)}][{n}] = {{\n{table}}};\n')

def engine_logits(packed, pictures):
    if packed.takes_bytes: return packed(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    x = (pictures/255. - packed.info['mean'])/packed.info['std']
    return packed(np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32))

def run(command, folder): # what it prints
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode: raise RuntimeError(f'{" ".join(command)}: {done.stderr[-2000:]}')
    return done.stdout

def sizes(machine, option, folder):
    "bytes of code, tables and static memory of net.c alone, and of its stack"
    flags = [f for f in machine.flags if f.startswith('-m')]
    run([machine.compiler, '-std=c99', option, *flags, '-fstack-usage', '-c', 'net.c'], folder)
    lines = run(['objdump', '-h', 'net.o'], folder).splitlines()
    found = re.findall(r'^\s*\d+ (\.\w+)\S*\s+([0-9a-f]{8})', '\n'.join(lines), re.M)
    total = {k: sum(int(n, 16) for name, n in found if name == k) for k, _ in found}
    stack = sum(int(n) for n in re.findall(r'\t(\d+)\t', (folder/'net.su').read_text()))
    return dict(code=total.get('.text', 0), tables=total.get('.rodata', 0),
                static=total.get('.bss', 0) + total.get('.data', 0), stack=stack)

def measure(stem, machine, option, folder, want):
    "compile, run and compare"
    flags = ['-std=c99', option, *machine.flags]
    run([machine.compiler, *flags, 'net.c', 'main.c', '-o', 'net'], folder)
    lines = run(machine.emulator.split() or ['./net'], folder).splitlines()
    rows = [x.split() for x in lines if x.startswith('picture')]
    got = np.array([[int(v, 16) for v in r[3:]] for r in rows], np.uint32)
    assert [int(r[1]) for r in rows] == want.argmax(1).tolist(), 'another class'
    different = int((got != want.view(np.uint32)).sum())
    result = Result(stem, machine.name, option, len(got), got.size, different)
    ticks = int(lines[0].split()[1])
    if ticks:
        assert abs(40*ticks/2e6 - 1) < .01, f'{ticks} ticks for two million instructions'
        result.instructions = int(40*np.median([int(r[2]) for r in rows]))
    if ticks: vars(result).update(sizes(machine, option, folder))
    return result

def missing(machine):
    "programs that are not there"
    needed = [machine.compiler, *machine.emulator.split()[:1]]
    return [p for p in needed if shutil.which(p) is None]

def prepare(folder, images, stem):
    "the C files of a network with that stem; what the engine answers"
    packed = load_packed(NETWORK)
    if stem == 'int8': packed = PackedNet(int8_stem(packed.graph))
    shape = *packed.info['size'], packed.graph.channels
    pictures = np.random.default_rng(0).integers(0, 256, (images, *shape), np.uint8)
    to_c(packed, folder/'net.c')
    texts = {'pictures.h': pictures_text(pictures), 'main.c': MAIN, 'start.c': START,
             'script.ld': SCRIPT}
    for name, text in texts.items(): (folder/name).write_text(text)
    return engine_logits(packed, pictures)

def version(program):
    done = subprocess.run([program, '--version'], capture_output=True, text=True)
    return done.stdout.splitlines()[0]

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--images', type=int, default=20)
    p.add_argument('--out', default='runs/c.json')
    args, results = p.parse_args(), []
    left_out = {m.name: f'{", ".join(missing(m))} missing' for m in MACHINES if missing(m)}
    there = [m for m in MACHINES if m.name not in left_out]
    programs = {p for m in there for p in (m.compiler, *m.emulator.split()[:1])}
    for stem in STEMS:
        with tempfile.TemporaryDirectory() as d:
            want = prepare(Path(d), args.images, stem)
            for machine, option in product(there, LEVELS):
                results.append(measure(stem, machine, option, Path(d), want))
                print(results[-1], flush=True)
    report = dict(network=NETWORK, picture='uint8 32x32x1', left_out=left_out,
                  programs={k: version(k) for k in sorted(programs)},
                  rows=[asdict(r) for r in results])
    write_file(args.out, (json.dumps(report, indent=1) + '\n').encode())
    different, logits = (sum(getattr(r, k) for r in results) for k in ('different', 'logits'))
    print(f'{different} of {logits} logits differ', left_out)

if __name__ == '__main__': main()
