"The C file: the engine's bits under a C compiler, memory, what is refused, and strangers' names."
import ctypes, itertools, json, re, shutil, subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_packed import any_graph, mini, numbers, signs, thin_graph

from benches import load_bench
from bnn_bn.deploy import PackedNet, load_packed, pack
from bnn_bn.onebit.engine import Engine
from bnn_bn.targets.c_memory import Program, make_program
from bnn_bn.targets.export_c import to_c
from bnn_bn.onebit.graph import Graph, Node, to_bytes
from bnn_bn.models import create_model

ROOT = Path(__file__).parent.parent
GCC = shutil.which('gcc') or shutil.which('cc')
needs_gcc = pytest.mark.skipif(GCC is None, reason='no C compiler (gcc or cc) in PATH')
STRICT = '-std=c99', '-pedantic', '-Wall', '-Wextra', '-Werror'
SEEDS = st.integers(0, 2**31)


def compiled(file, *flags):
    "a C file as a library"
    out = Path(file).with_suffix(f'.{len(list(Path(file).parent.iterdir()))}.so')
    command = [GCC, '-O1', *(flags or STRICT), '-shared', '-fPIC', str(file), '-o', str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return ctypes.CDLL(str(out))


def pointer(a): return a.ctypes.data_as(ctypes.c_void_p)

def call(library, name, images, size, n_out):
    "logits and classes of all images"
    out = np.zeros((len(images), n_out), np.float32)
    f = library[name]
    images = np.ascontiguousarray(images)
    return out, [f(pointer(x), *size, pointer(y)) for x, y in zip(images, out)]


def same_bits(a, b): return (a.view(np.uint32) == b.view(np.uint32)).all()

def check(graph, x, folder, *flags):
    "all bits of all logits are those of the engine"
    file = to_c(graph, folder/'net.c', size=x.shape[2:])
    want = Engine(graph)(x)
    got, classes = call(compiled(file, *flags), 'net_floats', x, x.shape[2:], want.shape[1])
    assert same_bits(got, want)
    assert classes == want.argmax(1).tolist()


# Bits --------------------------------------------------------------------------------------------

@needs_gcc
@settings(max_examples=15, deadline=None)
@given(st.data(), SEEDS)
def test_any_network(tmp_path_factory, data, seed):
    "random networks: several signs of one value, steps that lead nowhere, all kinds of residuals"
    g = np.random.default_rng(seed)
    graph, shape = any_graph(data, g)
    check(graph, numbers(g, 2, *shape), tmp_path_factory.mktemp('c'))


SIDES = st.integers(13, 20)
CONVS = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))

@needs_gcc
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from((1, 7, 16, 33)), st.sampled_from((1, 2, 4)),
       st.sampled_from((1, 2, 3, 5)), CONVS, st.tuples(SIDES, SIDES))
def test_any_window(tmp_path_factory, seed, c, times, k, conv, size):
    "stride, padding beyond the kernel, dilation, and channels repeated by a residual"
    g = np.random.default_rng(seed)
    graph = thin_graph(g, c, times, k, *conv)
    check(graph, numbers(g, 2, 1, *size), tmp_path_factory.mktemp('c'))


BACKBONES = ('reactnet18_nobn', 'reactnet18_bn', 'reactnet_a_nobn', 'reactnet_a_bn',
             'birealnet18_nobn', 'birealnet18_bn', 'xnornet18_nobn', 'xnornet18_bn',
             'vgg11_nobn', 'vgg11_bn', 'reactnet_mini_bn')

@needs_gcc
@pytest.mark.parametrize('name', BACKBONES)
def test_every_backbone(name, tmp_path):
    torch.manual_seed(0)
    model = create_model(name, n_out=10, width=.25).eval()
    for n, p in model.named_parameters():
        if any(k in n for k in ('shift', 'gain', 'norm')): p.data.add_(.2*torch.randn_like(p))
    check(pack(model).graph, numbers(np.random.default_rng(0), 2, 3, 64, 64), tmp_path)


def test_other_networks_are_refused_by_name(tmp_path):
    "a network that is not packed: the message says what it is and what to do"
    for net in (mini(), torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), None, 3, {}):
        with pytest.raises(ValueError, match=rf'net is a {type(net).__name__}.*pack\(net\)'):
            to_c(net, tmp_path/'net.c', size=(32, 32))
    assert not list(tmp_path.iterdir())


def one_bit_on_pictures(g, c):
    "the first layer has one bit a weight; zeros of both signs, and a channel that is never +1"
    weight = signs(g, 8, c, 3, 3)
    rest = {k: numbers(g, 8) for k in ('scale', 'slope')}
    stem = dict(weight=weight, bias=np.zeros(8, np.float32), **rest)
    t = dict(weight=signs(g, 8, 8, 3, 3), bias=numbers(g, 8), threshold=numbers(g, 8), **rest)
    t['threshold'][:2] = np.inf, -np.inf
    fc = dict(weight=numbers(g, 3, 8, 1, 1), bias=np.zeros(3, np.float32))
    fc['weight'][0] = 0
    return [Node('conv', (0,), stem, padding=1),
            Node('maxpool', (1,), kernel=3, stride=2, padding=1),
            Node('bconv', (2, 2), t, padding=1), Node('mean', (3,)), Node('conv', (4,), fc)]


@needs_gcc
@pytest.mark.parametrize('c', (1, 3))
@pytest.mark.parametrize('stem', ('real', 'signs'))
def test_bytes_are_taken_as_they_are(c, stem, tmp_path):
    g = np.random.default_rng(c)
    info = dict(mean=[.4, .5, .6][:c], std=[.2, .3, .4][:c], size=[9, 12])
    nodes = one_bit_on_pictures(g, c)
    if stem == 'real': nodes[0].tensors['weight'] = numbers(g, 8, c, 3, 3)
    graph, pictures = Graph(c, nodes, info), g.integers(0, 256, (6, 9, 12, c), np.uint8)
    x = (pictures/255. - info['mean'])/info['std']
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)
    library, want = compiled(to_c(graph, tmp_path/'net.c')), Engine(graph)(x)
    assert same_bits(call(library, 'net_pixels', pictures, (9, 12), 3)[0], want)
    assert same_bits(call(library, 'net_floats', x, (9, 12), 3)[0], want)


@needs_gcc
def test_small_and_huge_numbers(tmp_path):
    "products below the smallest normal number and near the largest one"
    g = np.random.default_rng(0)
    for power in (1e-39, 1e-30, 1e-20, 1e20, 1e33):
        graph = Graph(1, one_bit_on_pictures(g, 1))
        graph.nodes[0].tensors['weight'] = numbers(g, 8, 1, 3, 3)
        graph.nodes[0].tensors.pop('scale')
        check(graph, (numbers(g, 3, 1, 8, 8)*np.float32(power)), tmp_path)


@needs_gcc
@pytest.mark.parametrize('flags', (
    ('-std=gnu11', '-O3', '-ffp-contract=fast', '-march=native'), ('-std=c99', '-Os'),
    ('-std=gnu99', '-O2', '-ffp-contract=fast'), ('-std=c99', '-O0'),
    ('-std=c99', '-O1', '-fsanitize=undefined', '-fno-sanitize-recover')))
def test_no_option_changes_a_bit(flags, tmp_path):
    "with and without an instruction for fma, and where a compiler may join products and sums"
    packed = load_packed('fashion-reactnet_mini')
    check(packed.graph, numbers(np.random.default_rng(0), 4, 1, 32, 32), tmp_path, *flags)


@needs_gcc
@pytest.mark.parametrize('flags,word', (
    (['-ffast-math'], 'fast-math'), (['-Ofast'], 'fast-math'), (['-std=c89'], 'C99'),
    (['-fno-signed-zeros'], 'fast-math'), (['-ffinite-math-only'], 'fast-math'),
    (['-funsafe-math-optimizations'], 'fast-math'), (['-mfpmath=387'], 'digits')))
def test_wrong_options_do_not_compile(flags, word, tmp_path):
    file = to_c('fashion-reactnet_mini', tmp_path/'net.c')
    command = [GCC, '-std=c99', *flags, '-fsyntax-only', str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if re.search('unrecognized|unsupported|unknown', done.stderr): pytest.skip('not an option here')
    assert done.returncode and f'{word}' in done.stderr, done.stderr[:500]


SKETCH = r'''
#include <stdint.h>
#define NET_DECLARE
#include "net.c"
static uint8_t picture[NET_HEIGHT*NET_WIDTH*NET_CHANNELS];
static float logits[NET_OUTPUTS];
int main(void)
{
    int label = net_pixels(picture, NET_HEIGHT, NET_WIDTH, logits);
    return !(label >= 0 && net_classes[label][0]);
}
'''
GXX = shutil.which('g++') or shutil.which('c++')

@needs_gcc
@pytest.mark.skipif(GXX is None, reason='no C++ compiler (g++ or c++) in PATH')
@pytest.mark.parametrize('stem', (None, 'int8'))
def test_a_sketch_in_cpp(stem, tmp_path):
    "boards take sketches in C++: the declarations link to the file compiled as C"
    to_c('fashion-reactnet_mini', tmp_path/'net.c', stem=stem)
    (tmp_path/'sketch.cpp').write_text(SKETCH)
    def run(*command): subprocess.run(command, cwd=tmp_path, check=True)
    run(GCC, *STRICT, '-O1', '-c', 'net.c')
    run(GXX, '-Wall', '-Wextra', '-Werror', 'sketch.cpp', 'net.o', '-o', 'sketch')
    run('./sketch')


# Other machines ----------------------------------------------------------------------------------

BENCH = load_bench('c')

@pytest.mark.parametrize('stem', BENCH.STEMS)
@pytest.mark.parametrize('machine', BENCH.MACHINES, ids=lambda m: m.name)
def test_bits_on_other_machines(machine, stem, tmp_path):
    "in emulators, with a stem of floats and of whole numbers; on a Cortex-M instructions are counted"
    missing = BENCH.missing(machine)
    if missing: pytest.skip(f'no {" and no ".join(missing)} in PATH')
    want = BENCH.prepare(tmp_path, 2, stem)
    found = BENCH.measure(stem, machine, '-Os', tmp_path, want)
    assert (found.logits, found.different) == (20, 0)
    if 'Cortex' in machine.name: assert found.instructions > 1e6 and found.static < 40_000


# Memory ------------------------------------------------------------------------------------------

def buffers(program):
    "pairs of memory and buffer"
    for s in program.steps:
        for b in {s.made.numbers, s.scratch} - {None}: yield 'numbers', b
        if s.made.signs: yield 'signs', s.made.signs

@settings(max_examples=60, deadline=None)
@given(st.data(), SEEDS)
def test_no_two_maps_meet(data, seed):
    graph, shape = any_graph(data, np.random.default_rng(seed))
    program = make_program(graph, shape[1:])
    for (m, a), (n, b) in itertools.combinations(buffers(program), 2):
        meet = m == n and a is not b and a.first <= b.last and b.first <= a.last
        assert not meet or a.at + a.words <= b.at or b.at + b.words <= a.at
        assert a.at + a.words <= getattr(program, m) and b.at + b.words <= getattr(program, n)


def test_memory_of_the_embedded_network(tmp_path):
    "at most 40 kB with picture and logits; as the first lines say"
    text = to_c('fashion-reactnet_mini', tmp_path/'net.c', ram=40_000).read_text()
    ram = int(re.search(r'#define NET_RAM (\d+)', text)[1])
    arrays = [int(n) for n in re.findall(r'^static (?:float|uint32_t) \w+\[(\d+)\];', text, re.M)]
    assert 4*sum(arrays) + 32*32 + 4*10 == ram <= 40_000
    assert f'RAM       {ram} bytes' in text[:1000]
    table = r'static const u\w+ \w*\W*(?:uint32_t bits)?\[(\d+)\]'
    tables = sum(map(int, re.findall(table, text)))
    assert int(re.search(r'#define NET_FLASH (\d+)', text)[1]) == 4*tables


def test_too_little_memory(tmp_path):
    graph = load_packed('fashion-reactnet_mini').graph
    needed = int(re.search(r'NET_RAM (\d+)', to_c(graph, tmp_path/'net.c').read_text())[1])
    assert to_c(graph, tmp_path/'net.c', ram=needed).is_file()
    says = rf'32x32 pixels: {needed} bytes of RAM.*ram={needed - 1}.*stem'
    with pytest.raises(ValueError, match=says):
        to_c(graph, tmp_path/'no.c', ram=needed - 1)
    for ram in (0, -1, True, 1.5, '40kB'):
        with pytest.raises(ValueError, match='ram='): to_c(graph, tmp_path/'no.c', ram=ram)
    assert not (tmp_path/'no.c').exists()


# Pictures ----------------------------------------------------------------------------------------

@needs_gcc
def test_another_picture_size(tmp_path):
    "refused by the call, which leaves the logits alone; and by the export, before it writes"
    library = compiled(to_c('fashion-reactnet_mini', tmp_path/'net.c'))
    for name, kind in (('net_pixels', np.uint8), ('net_floats', np.float32)):
        x = np.zeros((1, 28, 28), kind)
        for size in ((28, 28), (32, 31), (-32, -32), (0, 0)):
            out, classes = call(library, name, x, size, 10)
            assert classes == [-1] and not out.any()
    g = np.random.default_rng(0)
    for size in ((0, 32), (32,), 'ab', 32, (32., 32.), (True, True), (1, 1), (31, 33)):
        with pytest.raises(ValueError, match='size=|pixels'):
            to_c('fashion-reactnet_mini', tmp_path/'no.c', size=size)
    silent = thin_graph(g, 8, 2, 3, 1, 1, 1)
    with pytest.raises(ValueError, match='size=None'): to_c(silent, tmp_path/'no.c')
    assert not (tmp_path/'no.c').exists()


@needs_gcc
@pytest.mark.parametrize('bad', (np.nan, np.inf, -np.inf))
def test_not_a_number(bad, tmp_path):
    "as in the engine: all logits of an image that holds a NaN or an infinity"
    graph = load_packed('fashion-reactnet_mini').graph
    x = np.zeros((1, 1, 32, 32), np.float32)
    x[0, 0, 5, 7] = bad
    library = compiled(to_c(graph, tmp_path/'net.c'))
    out, classes = call(library, 'net_floats', x, (32, 32), 10)
    assert classes == [-2] and np.isnan(out).all() and np.isnan(Engine(graph)(x)).all()


@pytest.mark.parametrize('change', (
    dict(std=[0.]), dict(std=[-1.]), dict(mean=[float('nan')]), dict(mean=[.1, .2]),
    dict(std=['a']), dict(mean={}), dict(std=[1e-320]), dict(classes=['a', 'b']),
    dict(classes=7), dict(size=[32]), dict(size=None), dict(size=[32, '32'])))
def test_facts_that_are_no_facts(change, tmp_path):
    "what a file says of its pictures is checked; the message names it"
    graph = load_packed('fashion-reactnet_mini').graph
    bad = Graph(graph.channels, graph.nodes, {**graph.info, **change})
    with pytest.raises(ValueError, match=f'{list(change)[0]}='): to_c(bad, tmp_path/'no.c')
    assert not (tmp_path/'no.c').exists()


# Files and names ---------------------------------------------------------------------------------

def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    assert to_c('fashion-reactnet_mini', '~/net.c') == tmp_path/'net.c'
    assert (tmp_path/'net.c').is_file()

def test_the_head_says_the_code_that_was_measured(tmp_path):
    "in whole kB, of all compilers and options"
    rows = json.loads((Path(__file__).parent.parent/'results/c.json').read_text())['rows']
    low, *_, high = sorted(row['code'] for row in rows if row['code'])
    text = to_c('fashion-reactnet_mini', tmp_path/'net.c').read_text()
    assert f'{low//1000} to {-(-high//1000)} kB of code' in text

def test_what_is_given(tmp_path):
    "a packed network, its graph, its file, its bytes, an open file and a name make the same file"
    packed = load_packed('fashion-reactnet_mini')
    path = packed.save(tmp_path/'a.bnn')
    opened, name = open(path, 'rb'), packed.info['name']
    given = packed, packed.graph, path, str(path), path.read_bytes(), opened, name
    texts = {to_c(v, tmp_path/'net.c').read_text() for v in given}
    assert len(texts) == 1


def test_a_damaged_file(tmp_path):
    data = to_bytes(load_packed('fashion-reactnet_mini').graph)
    (tmp_path/'a.bnn').write_bytes(data[:-1])
    for bad in (tmp_path/'a.bnn', data[:-1], data[:500] + b'?' + data[501:], b''):
        refused = pytest.raises(ValueError, match='truncated|altered|not a .bnn')
        with refused: to_c(bad, tmp_path/'no.c')
    with pytest.raises(FileNotFoundError, match='b.bnn'): to_c(tmp_path/'b.bnn', tmp_path/'no.c')
    with pytest.raises(ValueError, match='did you mean'): to_c('fashion_reactnet', tmp_path/'no.c')
    assert not (tmp_path/'no.c').exists()


@needs_gcc
@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=10, max_size=10), st.text(max_size=12))
def test_any_names(tmp_path_factory, names, name):
    "names of classes and steps come from a file of somebody: no text breaks the C file"
    folder, packed = tmp_path_factory.mktemp('c'), load_packed('fashion-reactnet_mini')
    packed.graph.nodes[0].name = name + '*/ #error'
    packed.graph.info['classes'] = names
    names = [n.encode(errors='replace').decode().partition('\0')[0] for n in names]
    library = compiled(to_c(packed, folder/"net.c"), *STRICT, "-O0")
    found = (ctypes.c_char_p*10).in_dll(library, 'net_classes')
    assert [v.decode() for v in found] == names


@pytest.mark.parametrize('file,prefix', (
    ('net.c', 'net'), ('my-net.v2.c', 'my_net_v2'), ('3x3.c', 'net_3x3'), ('_a.c', 'a'),
    ('é.c', 'net')))
def test_prefix(file, prefix, tmp_path):
    text = to_c('fashion-reactnet_mini', tmp_path/file).read_text()
    assert f'int {prefix}_pixels(' in text and f'#define {prefix.upper()}_RAM' in text


@needs_gcc
@pytest.mark.parametrize('name', ('sum', 'pixel', 'run', 'pool', 'int', 'flt', 'x'))
def test_names_do_not_meet(name, tmp_path):
    "a prefix that is also a word of the file or of C"
    assert compiled(to_c('fashion-reactnet_mini', tmp_path/f'{name}.c'))[f'{name}_pixels']


def test_bad_prefix(tmp_path):
    for name in ('a b', 'a-b', '', 'é', 'a'*40, 'a;b'):
        refused = pytest.raises(ValueError, match='name=')
        with refused: to_c('fashion-reactnet_mini', tmp_path/'no.c', name=name)


@needs_gcc
def test_two_networks_in_one_program(tmp_path):
    "the file is its own header; two of them link"
    for name in ('one', 'two'): to_c('fashion-reactnet_mini', tmp_path/f'{name}.c')
    (tmp_path/'main.c').write_text('''
#define ONE_DECLARE
#include "one.c"
#define TWO_DECLARE
#include "two.c"
static float logits[ONE_OUTPUTS];
static const uint8_t picture[ONE_HEIGHT*ONE_WIDTH*ONE_CHANNELS];
int main(void)
{
    return one_pixels(picture, 32, 32, logits) != two_pixels(picture, 32, 32, logits);
}
''')
    files = 'main.c', 'one.c', 'two.c'
    subprocess.run([GCC, *STRICT, *files, '-o', 'both'], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path/'both']).returncode == 0


@needs_gcc
def test_without_mean_and_std(tmp_path):
    "only floats are taken then"
    graph = load_packed('fashion-reactnet_mini').graph
    file = to_c(Graph(graph.channels, graph.nodes), tmp_path/'net.c', size=(32, 32))
    assert 'net_pixels' not in file.read_text()
    check(Graph(graph.channels, graph.nodes), np.ones((1, 1, 32, 32), np.float32), tmp_path)


def test_a_program_knows_its_memory():
    packed = load_packed('fashion-reactnet_mini')
    program = make_program(PackedNet(packed.graph).graph, (32, 32))
    assert isinstance(program, Program) and program.ram == 4*(program.numbers + program.signs)
