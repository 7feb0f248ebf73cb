"The page: bits in node and in Chromium, refusals, damaged files, browsers that lack SIMD."
import ctypes, json, os, re, shutil, subprocess, threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Image_
from hypothesis import HealthCheck, given, settings, strategies as st
from test_packed import any_graph, numbers, signs

from benches import load_bench
from bnn_bn.core.errors import ExportError
from bnn_bn.images.pictures import Preparation
from bnn_bn.deploy import load_packed
from bnn_bn.onebit.counting import get_way, ways
from bnn_bn.onebit.engine import Engine
from bnn_bn.onebit.graph import Graph, Node
from bnn_bn.onebit.kernels import Job, run_plan
from bnn_bn.onebit.stem import int8_stem
from bnn_bn.onebit.unpack import unpack
from bnn_bn.targets.export_c import picture_of
from bnn_bn.targets.wasm import KINDS, web_kernels
from bnn_bn.targets import web
from bnn_bn.targets.web import Image, float_plan, lay_out, moved, normalised, place, to_web

ROOT = Path(__file__).parent.parent
NODE = shutil.which('node')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
needs_node = pytest.mark.skipif(NODE is None, reason='no node in PATH')
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='no chromium in PATH')
NETS = 'fashion-reactnet_mini', 'cifar10-reactnet18-w50'
FILES = {'index.html', 'page.js', 'bnn.js', 'kernels.js', 'net.js'}


def relaxed_flag():
    "node 20 has relaxed SIMD behind a word, later ones have it without"
    asked = subprocess.run([NODE, '--version'], capture_output=True, text=True).stdout
    return ['--experimental-wasm-relaxed-simd'] if int(asked[1:].split('.')[0]) < 21 else []

def in_node(folder, pictures, *kinds):
    "what the page's files answer in node"
    file = Path(folder)/'pictures.bin'
    file.write_bytes(pictures.tobytes())
    flags = relaxed_flag() if 'relaxed' in kinds else []
    command = [NODE, *flags, str(ROOT/'tests/web.js'), str(folder), str(file), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

def photos(graph, n, seed=0):
    "pictures of bytes, smooth and noisy ones"
    rows, columns = graph.info['size']
    shape = n, rows, columns, graph.channels
    x = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    x[::2] = np.sort(x[::2], 1)
    return x

def wanted(graph, pictures):
    "the bits of the engine"
    picture = picture_of(graph, None)
    return Engine(graph)(normalised(pictures, picture)).view(np.uint32)


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    "two pages"
    return {n: to_web(n, tmp_path_factory.mktemp('web')/n) for n in NETS}


# Bits --------------------------------------------------------------------------------------------

@needs_node
@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('kind', KINDS)
def test_hundred_pictures(name, kind, folders):
    "all bits of all logits are the engine's, by either kind of kernels"
    graph = load_packed(name).graph
    pictures = photos(graph, 100)
    found = in_node(folders[name], pictures, kind)
    assert found.get('kind') == kind, found
    assert (np.uint32(found['logits']) == wanted(graph, pictures)).all()


INFO = dict(mean=[.4, .5, .6], std=[.2, .3, .4])

def shown(graph, shape):
    "a graph as a file of pictures of that size"
    channels = 1 if graph.channels != 3 else 3
    info = {k: v[:channels] for k, v in INFO.items()} | dict(size=list(shape[1:]))
    return Graph(graph.channels, graph.nodes, info)

@needs_node
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(0, 2**31))
def test_any_network(tmp_path_factory, data, seed):
    "random networks: several signs of one value, steps that lead nowhere, all kinds of residuals"
    graph, shape = any_graph(data, np.random.default_rng(seed))
    if graph.channels not in (1, 3): return
    graph, folder = shown(graph, shape), tmp_path_factory.mktemp('web')
    pictures = photos(graph, 2, seed)
    found = in_node(to_web(graph, folder/'page', float_too=True), pictures, 'exact')
    for kind in ('logits', 'floats'):
        assert (np.uint32(found[kind]) == wanted(graph, pictures)).all(), kind


def tiny(power=1., **info):
    "one real layer, one binary, a mean and a head, with small or huge weights"
    g = np.random.default_rng(1)
    rest = {k: numbers(g, 8) for k in ('scale', 'bias', 'slope')}
    stem = dict(weight=numbers(g, 8, 1, 3, 3)*np.float32(power), **rest)
    t = dict(weight=signs(g, 8, 8, 3, 3), threshold=numbers(g, 8), **rest)
    head = dict(weight=numbers(g, 3, 8, 1, 1), bias=numbers(g, 3))
    nodes = [Node('conv', (0,), stem, padding=1), Node('bconv', (1, 1), t, padding=1),
             Node('mean', (2,)), Node('conv', (3,), head)]
    return Graph(1, nodes, dict(dict(mean=[.5], std=[.25], size=[9, 12]), **info))

@needs_node
@pytest.mark.parametrize('power', (1e-45, 1e-41, 1e-38, 1e-30, 1e30))
def test_small_and_huge_numbers(power, tmp_path):
    "sums below the smallest normal number, where doubles round at another place"
    graph = tiny(power)
    pictures = photos(graph, 4)
    found = in_node(to_web(graph, tmp_path/'page'), pictures, 'exact')
    assert (np.uint32(found['logits']) == wanted(graph, pictures)).all()


@needs_node
def test_without_relaxed_simd(folders):
    "the exact kernels are taken by themselves where the others do not compile"
    done = in_node(folders[NETS[0]], photos(load_packed(NETS[0]).graph, 1))
    assert done['kind'] in KINDS if not relaxed_flag() else done['kind'] == 'exact'
    assert done['bad'] == [['NaN']*10]*2


# Refusals in JavaScript --------------------------------------------------------------------------

@needs_node
def test_another_size_is_named(folders):
    said = in_node(folders[NETS[0]], photos(load_packed(NETS[0]).graph, 0))['refusal']
    assert '28x28' in said and '32x32x1' in said


def copied(folder, to, name, change):
    "the folder with one file changed"
    shutil.copytree(folder, to)
    text = (to/name).read_text()
    changed = change(text)
    assert text != changed
    (to/name).write_text(changed)
    return to

def one_letter(part):
    "another letter in the middle of the base64 text of that part"
    def change(text):
        at = text.index('"gzip":"', text.index(part)) + 2000
        return text[:at] + ('A' if text[at] != 'A' else 'B') + text[at + 1:]
    return change

def cut_short(text):
    return re.sub(r'("gzip":"[^"]{400})[^"]*', r'\1', text)

BAD = dict(image=('net.js', one_letter('"image"')), kernels=('kernels.js', one_letter('"exact"')),
           short=('net.js', cut_short),
           no_base64=('net.js', lambda t: t.replace('"gzip":"', '"gzip":"%')))

@needs_node
@pytest.mark.parametrize('case', BAD)
def test_damaged_files(case, folders, tmp_path):
    name, change = BAD[case]
    folder = copied(folders[NETS[0]], tmp_path/'page', name, change)
    said = in_node(folder, np.zeros(0, np.uint8), 'exact')
    assert said['error'] == f'{name} is damaged: its checksum is wrong. Copy the folder again.'


@needs_node
def test_other_bits_are_not_believed(folders, tmp_path):
    "the test at the start fails if one bit of one logit is another"
    change = lambda t: re.sub(r'"test":\[(\d+)', lambda m: f'"test":[{int(m[1]) ^ 1}', t)
    folder = copied(folders[NETS[0]], tmp_path/'page', 'net.js', change)
    assert 'other bits' in in_node(folder, np.zeros(0, np.uint8), 'exact')['error']


# The same network in float32 ---------------------------------------------------------------------

@pytest.fixture(scope='session')
def with_floats(tmp_path_factory):
    "two pages that have the network in float32 too"
    return {n: to_web(n, tmp_path_factory.mktemp('web')/n, float_too=True) for n in NETS}

def unpacked_logits(graph, x):
    "of the training network that the file is unpacked to, in float32"
    model = unpack(graph).eval()
    with torch.no_grad(): return model(torch.tensor(x)).numpy()

@needs_node
@pytest.mark.parametrize('name', NETS)
def test_floats_have_the_same_bits(name, with_floats):
    "sums of signs are whole numbers, also as float32; torch, which adds in another order, is close"
    graph = load_packed(name).graph
    pictures = photos(graph, 6)
    found = in_node(with_floats[name], pictures, 'exact')
    floats = np.uint32(found['floats'])
    assert (floats == wanted(graph, pictures)).all() and found['floats'] == found['logits']
    logits = floats.view(np.float32)
    torchs = unpacked_logits(graph, normalised(pictures, picture_of(graph, None)))
    assert np.abs(logits - torchs).max() < 1e-2*np.abs(torchs).max()
    assert (logits.argmax(1) == torchs.argmax(1)).all()

@needs_node
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31), st.sampled_from((1, 3)), st.floats(0, 1), st.integers(0, 3))
def test_floats_beside_an_integer_stem(tmp_path_factory, seed, channels, mean, padding):
    "bytes are summed by one network, their distances from the zero points by the other: same bits"
    graph = tiny(mean=[mean]*channels)
    g, stem = np.random.default_rng(seed), graph.nodes[0]
    graph.channels, stem.padding, graph.info['std'] = channels, padding, [.25]*channels
    stem.tensors['weight'] = numbers(g, 8, channels, 3, 3)
    graph = int8_stem(graph)
    pictures = photos(graph, 3, seed)
    page = to_web(graph, tmp_path_factory.mktemp('web')/'page', float_too=True)
    found = in_node(page, pictures, 'exact')
    bits = Engine(graph)(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).view(np.uint32)
    for kind in ('logits', 'floats', 'numbers', 'float_numbers'): # of bytes, and of normalised numbers
        assert (np.uint32(found[kind]) == bits).all(), kind

def test_float_too_is_a_switch(tmp_path):
    for v in (2, 'yes', None):
        with pytest.raises(ValueError, match='float_too='): to_web(tiny(), tmp_path/'a', float_too=v)
    assert not list(tmp_path.iterdir())

def at_address(address, n, kind):
    "an array of memory that a plan keeps"
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint32))
    return np.ctypeslib.as_array(pointer, (n,)).view(kind)

def run_floats(plan, spreads, x, n_out):
    "a plan in float32 by the kernels of this CPU, with its signs spread by numpy"
    out, done, scratch = np.zeros(n_out, np.float32), 0, np.zeros(4096, np.uint8)
    plan.rows['x'][plan.images], plan.rows['out'][-1] = x.ctypes.data, out.ctypes.data
    way = ways[get_way()]
    def run(rows): run_plan(way, rows, Job(1, 0), 0, scratch.ctypes.data)
    for s in spreads:
        run(plan.rows[done:s.rows])
        signs = np.unpackbits(at_address(s.bits, s.words, np.uint8), bitorder='little')
        at_address(s.numbers, 32*s.words, np.float32)[:] = np.where(signs, 1, -1)
        done = s.rows
    run(plan.rows[done:])
    return out

@pytest.mark.parametrize('name', NETS)
def test_the_plan_in_float32_by_this_cpu(name):
    graph = load_packed(name).graph
    picture = picture_of(graph, None)
    pictures = photos(graph, 2)
    plan, spreads = float_plan(graph, (picture.height, picture.width))
    bits = wanted(graph, pictures)
    for x, right in zip(normalised(pictures, picture), bits):
        found = run_floats(plan, spreads, x, bits.shape[1])
        assert (found.view(np.uint32) == right).all()

def test_a_page_without_floats_is_smaller(folders, with_floats):
    for name in NETS:
        less, more = ((f[name]/'net.js').stat().st_size for f in (folders, with_floats))
        assert less < more < 25*less, name
        assert '"float"' not in (folders[name]/'net.js').read_text()[:100_000_000]

def test_floats_that_need_too_much_memory_are_refused(tmp_path):
    "before anything is written; the page without them may be possible"
    with pytest.raises((ExportError, ValueError), match='pixels|memory'):
        to_web(tiny(), tmp_path/'page', size=(6000, 6000), float_too=True)
    assert not list(tmp_path.iterdir())


OLD = dict(simd=('WebAssembly.validate = () => false;', 'no WebAssembly SIMD'),
           gzip=('delete globalThis.DecompressionStream;', 'cannot unpack gzip'),
           wasm=('delete globalThis.WebAssembly;', 'no WebAssembly;'))

@needs_node
@pytest.mark.parametrize('case', OLD)
def test_old_browsers(case, folders, tmp_path):
    line, word = OLD[case]
    folder = copied(folders[NETS[0]], tmp_path/'page', 'bnn.js', lambda t: line + '\n' + t)
    assert word in in_node(folder, np.zeros(0, np.uint8))['error']


# Refusals in Python ------------------------------------------------------------------------------

def wide_filter():
    "65,536 products in a filter"
    g = tiny()
    g.nodes[1].tensors['weight'] = np.ones((8, 8, 91, 91), np.int8)
    return g

REFUSED = dict(
    mean=(Graph(1, tiny().nodes, dict(size=[9, 12])), 'mean and std'),
    size=(Graph(1, tiny().nodes, dict(mean=[0], std=[1])), 'size=None'),
    channels=(Graph(2, [Node('conv', (0,), dict(weight=np.ones((4, 2, 1, 1), np.float32),
                                                 bias=np.zeros(4, np.float32))),
                        Node('mean', (1,))], dict(mean=[0, 0], std=[1, 1], size=[4, 4])),
              '2 channels'),
    filter=(wide_filter(), '66248 products'), classes=(tiny(classes=['a']), 'classes='),
    kind=(3, 'net is a int'))

@pytest.mark.parametrize('case', REFUSED)
def test_what_a_page_cannot_do(case, tmp_path):
    net, word = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(word)): to_web(net, tmp_path/'page')
    assert not list(tmp_path.iterdir())


def test_too_large(tmp_path):
    with pytest.raises((ExportError, ValueError), match='pixels'):
        to_web(tiny(), tmp_path/'page', size=(6000, 6000))
    for size in ((0, 9), (2.5, 9), 9, (9, 9, 9)):
        with pytest.raises(ValueError, match='size='): to_web(tiny(), tmp_path/'page', size=size)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full/mine.txt').write_text('mine')
    (tmp_path/'file').write_text('mine')
    for name in ('full', 'file'):
        with pytest.raises(FileExistsError, match='folder='): to_web(tiny(), tmp_path/name)
    with pytest.raises(FileExistsError, match='force=True replaces'): to_web(tiny(), tmp_path/'full')
    with pytest.raises(FileExistsError, match='is no folder'):
        to_web(tiny(), tmp_path/'file', force=True)
    assert {f.name for f in (tmp_path/'full').iterdir()} == {'mine.txt'}
    to_web(tiny(), tmp_path/'full', force=True)
    assert {f.name for f in (tmp_path/'full').iterdir()} == FILES | {'mine.txt'}


@pytest.mark.parametrize('there', ['', 'empty', 'page'])
def test_a_disk_that_is_full_leaves_what_was_there(there, tmp_path, monkeypatch):
    "a new folder is not there, an old page is whole; and a page comes into the folder where one stands"
    page, real, left = tmp_path/'page', web.write_file, [3]
    if there: page.mkdir()
    if there == 'page': to_web(tiny(), page)
    before = {f.name: f.read_bytes() for f in page.glob('*')}
    def until_full(path, data):
        left[0] -= 1
        if not left[0]: raise OSError(28, 'No space left on device', str(path))
        real(path, data)
    with monkeypatch.context() as m:
        m.setattr(web, 'write_file', until_full)
        with pytest.raises(OSError, match=f"'{page}'$"): to_web(tiny(size=[16, 16]), page, force=True)
    assert {f.name: f.read_bytes() for f in page.glob('*')} == before
    assert [p.name for p in tmp_path.iterdir()] == (['page'] if there else [])
    page.mkdir(exist_ok=True)
    monkeypatch.chdir(page)
    to_web(tiny(), '.', force=True)
    assert {f.name for f in page.iterdir()} == FILES


def zeros(*shape, dtype=np.uint8): return np.zeros(shape, dtype)

@pytest.mark.parametrize('samples', (zeros(2, 9, 12, dtype=np.float32), zeros(9, 12), 'abc',
                                     zeros(2, 12, 9), zeros(1, 9, 12, 3)))
def test_bad_samples(samples, tmp_path):
    with pytest.raises(ValueError, match='samples'): to_web(tiny(), tmp_path/'a', samples=samples)
    assert not list(tmp_path.iterdir())


# The memory image --------------------------------------------------------------------------------

def test_an_image_knows_no_address():
    "made twice, in other memory, it has the same bytes"
    graph, keep = load_packed(NETS[0]).graph, []
    found = []
    for _ in range(3):
        found.append(lay_out(graph, (32, 32)))
        keep.append(np.zeros(12345))
    assert found[0] == found[1] == found[2]

def test_an_address_outside_is_an_error():
    memory, a = Image(), np.arange(8)
    place(memory, [a])
    with pytest.raises(RuntimeError, match='leaves its array'):
        moved(memory, np.array([a.ctypes.data + a.nbytes + 1]))

def test_minus_zero_is_stored():
    memory, a = Image(), np.full(4, -0., np.float32)
    place(memory, [np.zeros(4, np.float32), a])
    assert memory.data() == a.tobytes()

def test_no_foreign_address(folders):
    "the page asks nobody for anything"
    for name in FILES - {'net.js', 'kernels.js'}:
        text = (folders[NETS[0]]/name).read_text()
        assert not re.search(r'https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp', text), name

def test_the_code_is_small_and_kept():
    modules = web_kernels()
    assert all(len(m) < 200_000 for m in modules.values())
    assert web_kernels() == modules

def test_make():
    text = (ROOT/'Makefile').read_text()
    assert '\nweb: install\n\t$(BIN)/python tools/web.py\n' in text
    assert '/_web/' in (ROOT/'.gitignore').read_text()


# The page's own code, on a document of stubs -----------------------------------------------------

PAGE_JS = ROOT/'bnn_bn/embedded/page.js'

STUBS = """
const vm = require("vm"), fs = require("fs"), elements = {}, drawn = [], found = {};
const [file, how] = process.argv.slice(2), bnn_net = JSON.parse(how);
function context() {
  return {drawImage: (...box) => drawn.push(box.slice(1)), fillRect() {}, fillText() {}, beginPath() {},
          moveTo() {}, lineTo() {}, stroke() {}, putImageData() {},
          getImageData: (x, y, w, h) => ({data: new Uint8ClampedArray(4 * w * h)}),
          createImageData: (w, h) => ({data: new Uint8ClampedArray(4 * w * h)})};
}
function element() {
  const on = {}, pen = context();
  return {on, style: {setProperty() {}}, classList: {toggle() {}, add() {}}, width: 320, height: 320,
          videoWidth: 0, textContent: "", hidden: false, addEventListener: (n, f) => { on[n] = f; },
          append() {}, replaceChildren() {}, setAttribute() {}, setPointerCapture() {},
          getContext: () => pen, getBoundingClientRect: () => ({width: 320, left: 0, top: 0}),
          play: async () => { if (world.playFails) throw new Error("no play"); }};
}
const world = {console, setTimeout, clearTimeout, Math, Promise, Uint8Array, atob, bnn_net, bnn_kernels: {},
  requestAnimationFrame: f => { if (f.name === "look") f(); }, createImageBitmap: async f => f,
  document: {...element(), getElementById: id => elements[id] = elements[id] || element(),
             createElement: element},
  bnn: {load: async () => ({kind: "exact", time: () => 1, run: () => [1, 0],
                            probabilities: () => [.7, .3]}), loadFloats: async () => null},
  navigator: {mediaDevices: {getUserMedia: () => new Promise(f => asked.push(f))}}};
const asked = [], tracks = [], wait = () => new Promise(f => setTimeout(f, 5));
const click = id => elements[id].on.click(), text = id => elements[id].textContent;
async function allow() { // what the browser was asked for
  for (const f of asked.splice(0)) {
    const track = {on: true, stop() { this.on = false; }};
    tracks.push(track);
    f({getTracks: () => [track]});
  }
  await wait();
}
async function dropped(width, height) { // what is said, and the box that is drawn of it
  drawn.length = 0;
  elements.file.on.change({target: {files: [{width, height, name: "a"}]}});
  await wait();
  const boxes = drawn.filter(b => b.length === 8), n = boxes.length; // several: halved on the way
  return [elements.told.textContent, n ? [...boxes[0].slice(0, 4), ...boxes[n - 1].slice(4)] : null];
}
world.window = world;
vm.createContext(world);
vm.runInContext(fs.readFileSync(file, "utf8"), world);
(async () => { await wait(); STEPS; console.log(JSON.stringify(found)); })();
"""

def on_stubs(steps, rows=4, columns=4, **resize):
    "what the page's code does for a network of that size, without a browser"
    how = dict(dict(method='middle', border=0, resized=[rows, columns]), **resize)
    net = dict(title='t', width=columns, height=rows, channels=1, classes=['a', 'b'], samples='', file=1,
               resize=how)
    command = [NODE, '-', str(PAGE_JS), json.dumps(net)]
    done = subprocess.run(command, input=STUBS.replace('STEPS', steps), capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

def box_of(side, rows, columns, **resize):
    "the part of a picture of rows and columns that a page draws for a network of so many pixels"
    steps = f'found.box = (await dropped({columns}, {rows}))[1]'
    return np.array(on_stubs(steps, side, side, **resize)['box'])

def seen_of(side, rows, columns, **resize):
    "the same, of what Python prepares of a picture whose greys say where they come from"
    found = []
    for axis in (1, 0):
        ramp = np.broadcast_to(np.arange(columns) if axis else np.arange(rows)[:, None], (rows, columns))
        x = Preparation((side, side), 1, **resize)((ramp/max(ramp.shape)).astype(np.float32))
        border = resize.get('border', 0)
        inner = x[border:side - border, border:side - border, 0].mean(1 - axis).astype(float)
        slope = (inner[-3] - inner[2])/(len(inner) - 5)*max(ramp.shape)/255 # without the ends
        middle = inner.mean()*max(ramp.shape)/255 + .5
        found += [middle - slope*len(inner)/2, slope*len(inner)]
    return np.array(found)[[0, 2, 1, 3]]

@needs_node
def test_a_crop_after_a_pair_of_sides():
    "rows and columns are resized apart, as torchvision does it"
    assert (box_of(224, 300, 400, method='crop', resized=[224, 224])[:4] == [0, 0, 400, 300]).all()
    assert (box_of(224, 300, 400, method='crop', resized=[256, 256])[:4] == [25, 18.75, 350, 262.5]).all()

WAYS = (dict(method='crop', resized=[64, 80]), dict(method='crop', resized=70), dict(method='middle'),
        dict(method='squish'), dict(method='squish', border=4), dict(method='crop', resized=[64, 64]))

@needs_node
@pytest.mark.parametrize('rows,columns', ((150, 200), (200, 150)))
@pytest.mark.parametrize('way', WAYS, ids=str)
def test_a_page_takes_the_part_that_classify_takes(way, rows, columns):
    found = box_of(64, rows, columns, **way)
    assert np.abs(found[:4] - seen_of(64, rows, columns, **way)).max() < 3
    border = way.get('border', 0)
    assert found[4:].tolist() == [border, border, 64 - 2*border, 64 - 2*border]

@needs_node
def test_pictures_of_another_size_are_refused_where_none_was_resized():
    "with a sentence, as in Python; those of the network's size are taken"
    steps = 'found.other = await dropped(6, 5); found.fits = await dropped(4, 4)'
    found = on_stubs(steps, method='none')
    assert '5×6 pixels: 4×4 are needed' in found['other'][0] and found['other'][1] is None
    assert found['fits'] == ['', [0, 0, 4, 4, 0, 0, 4, 4]]
    steps = 'for (const n of [3, 4, 6]) found[n] = await dropped(n, n)'
    found = on_stubs(steps, 6, 6, method='none', border=1)
    assert found['3'][0] and found['4'][1] == [0, 0, 4, 4, 1, 1, 4, 4] and found['6'][1][4:] == [0, 0, 6, 6]

@needs_node
@pytest.mark.parametrize('resize', (dict(), dict(border=1), dict(method='crop', resized=9), dict(method='pad')))
def test_all_of_a_drawing_is_seen(resize):
    "networks that are not square or have a border: the pad is what the network sees"
    steps = """drawn.length = 0;
      elements.pad.on.pointerdown({pointerId: 1, clientX: 9, clientY: 9});
      Object.assign(found, {box: drawn[drawn.length - 1], height: elements.pad.height})"""
    found = on_stubs(steps, 4, 8, **resize)
    assert found['height'] == 160
    assert found['box'][4:] == [0, 0, 8, 4] # halved or not, all of it
    assert found['box'][0] == found['box'][1] == 0 and found['box'][2] == 2*found['box'][3]

CAMERAS = dict(
    two_clicks='click("camera"); click("camera"); await allow(); click("camera")',
    no_play='world.playFails = true; click("camera"); await allow()',
    clear='click("camera"); click("clear"); await allow()',
    a_file='click("camera"); await dropped(4, 4); await allow()',
    stop='click("camera"); await allow(); click("camera")')

@needs_node
@pytest.mark.parametrize('case', CAMERAS)
def test_no_camera_stays_on(case):
    "whatever comes between the click, the permission and the first frame"
    end = '; await wait(); Object.assign(found, {on: tracks.map(t => t.on), label: text("camera")})'
    found = on_stubs(CAMERAS[case] + end)
    assert found['on'] and not any(found['on'])
    assert found['label'] in ('', 'Camera')


# Chromium ----------------------------------------------------------------------------------------

PROBE = '''
<script src="kernels.js"></script><script src="net.js"></script><script src="bnn.js"></script>
<script>
(async () => {
  const send = found => fetch("/answer", {method: "POST", body: JSON.stringify(found)});
  try {
    const raw = await (await fetch("pictures.bin")).arrayBuffer();
    const pictures = new Uint8Array(raw), n = bnn_net.height * bnn_net.width * bnn_net.channels;
    const found = {};
    for (const kind of ["exact", "relaxed"]) {
      const network = await bnn.load(bnn_net, bnn_kernels, [kind]);
      found[kind] = Array.from({length: pictures.length / n}, (_, i) =>
        [...new Uint32Array(network.run(pictures.subarray(n * i, n * i + n)).buffer)]);
    }
    const frame = document.createElement("iframe"), wait = ms => new Promise(f => setTimeout(f, ms));
    frame.src = "index.html";
    document.body.append(frame);
    const text = id => (frame.contentDocument.getElementById(id) || {}).textContent || "";
    for (let i = 0; i < 100 && !text("answers") && !text("nothing"); i++) await wait(100);
    found.page = [text("title"), text("told"), text("nothing"), text("facts")];
    await send(found);
  } catch (e) { await send({error: e.message}); }
})();
</script>
'''

BENCH = load_bench('web')
Server = BENCH.Server

def test_the_bench_names_the_version_that_it_measured(tmp_path):
    "of the package around the folder that was given"
    dist = tmp_path/'onnxruntime-web/dist'
    dist.mkdir(parents=True)
    assert BENCH.version_of(None) == BENCH.VERSION and 'unknown' in BENCH.version_of(dist)
    for name, says in (('another', 'of unknown version'), ('onnxruntime-web', '1.2.3')):
        (dist.parent/'package.json').write_text(json.dumps(dict(name=name, version='1.2.3')))
        assert BENCH.version_of(dist) == says

FAKE = ('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')

def in_chromium(folder, seconds=90, flags=()):
    "what the probe sends from a headless Chromium"
    server = ThreadingHTTPServer(('127.0.0.1', 0), lambda *a: Server(*a, directory=str(folder)))
    server.done, server.answer = threading.Event(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}/profile']
    url = f'http://127.0.0.1:{server.server_port}/probe.html'
    process = subprocess.Popen([CHROMIUM, *options, *flags, url], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={**os.environ})
    try: server.done.wait(seconds)
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
    return server.answer


@needs_chromium
def test_chromium(folders, tmp_path):
    "100 pictures by both kinds, and the page itself"
    name = NETS[0]
    folder, graph = shutil.copytree(folders[name], tmp_path/'page'), load_packed(name).graph
    pictures = photos(graph, 100)
    (folder/'pictures.bin').write_bytes(pictures.tobytes())
    (folder/'probe.html').write_text(f'<!DOCTYPE html><body>{PROBE}</body>')
    found = in_chromium(folder)
    assert set(found) == {'exact', 'relaxed', 'page'}, found
    for kind in KINDS: assert (np.uint32(found[kind]) == wanted(graph, pictures)).all(), kind
    title, told, nothing, facts = found['page']
    assert title == name and not told and 'Sneaker' in nothing
    assert 'ms a picture' in facts and 'relaxed SIMD' in facts


# Pictures from outside ---------------------------------------------------------------------------

DRIVE = """<script>
(async () => {
  const send = found => fetch("/answer", {method: "POST", body: JSON.stringify(found)});
  const wait = ms => new Promise(f => setTimeout(f, ms));
  const frame = document.createElement("iframe");
  frame.allow = "camera";
  frame.src = "index.html";
  document.body.append(frame);
  const at = id => frame.contentDocument.getElementById(id);
  const text = id => (at(id) || {}).textContent || "";
  const until = async good => { for (let i = 0; i < 200 && !good(); i++) await wait(100); return good(); };
  try {
    if (!await until(() => text("facts"))) throw new Error("the page does not start: " + text("told"));
    const w = frame.contentWindow, found = {};
    STEPS
    await send(found);
  } catch (e) { await send({error: e.message}); }
})();
</script>"""

DROP = """
    await until(() => !at("float").hidden);
    found.first = text("float");
    const drop = async (name, type, bytes) => {
      const data = new w.DataTransfer();
      data.items.add(new w.File([bytes], name, {type}));
      at("clear").click();
      at("work").dispatchEvent(new w.DragEvent("dragover", {dataTransfer: data, cancelable: true}));
      const over = at("pad").classList.contains("over");
      at("work").dispatchEvent(new w.DragEvent("drop", {dataTransfer: data, cancelable: true}));
      await until(() => text("answers") || !at("told").hidden);
      return {over, after: at("pad").classList.contains("over"), told: text("told"),
              answers: [...at("answers").children].map(li => li.firstChild.textContent)};
    };
    const picture = await (await fetch("dropped.png")).arrayBuffer();
    found.picture = await drop("dropped.png", "image/png", picture);
    await until(() => !at("float").hidden);
    found.float = text("float");
    found.outside = 0;
    for (const kind of ["dragover", "drop"]) { // beside the cards, and no file
      const data = new w.DataTransfer(), more = {bubbles: true, cancelable: true, dataTransfer: data};
      data.setData("text/plain", "no file");
      const event = new w.DragEvent(kind, more);
      at("title").dispatchEvent(event);
      found.outside += event.defaultPrevented;
    }
    found.empty = text("told");
    found.facts = text("facts");
    found.other = await drop("note.txt", "text/plain", new TextEncoder().encode("no picture"));
"""

CAMERA = """
    at("clear").click();
    at("camera").click();
    await until(() => text("camera") === "Stop" && text("answers"));
    const grey = () => {
      const pen = at("pad").getContext("2d");
      return new Set(pen.getImageData(0, 0, at("pad").width, at("pad").height).data).size;
    };
    Object.assign(found, {running: text("camera"), told: text("told"), greys: grey(),
                          answers: at("answers").children.length});
    at("camera").click();
    found.stopped = text("camera");
"""

def driven(folder, steps, to, **files):
    "what a page answers that is driven by these steps"
    folder = shutil.copytree(folder, to)
    for name, save in files.items(): save(folder/name.replace('_', '.'))
    (folder/'probe.html').write_text(f'<!DOCTYPE html><body>{DRIVE.replace("STEPS", steps)}</body>')
    return in_chromium(folder, 120, FAKE)

def shirt():
    "a sample for a page"
    return photos(load_packed(NETS[0]).graph, 1)

@needs_chromium
def test_a_dropped_picture(tmp_path):
    "as the engine names it, with the answer in float32 beside it; what is no picture is told"
    name = NETS[0]
    packed = load_packed(name)
    pixels = photos(packed.graph, 1)
    image = Image_.fromarray(pixels[0, :, :, 0])
    page = to_web(name, tmp_path/'first', samples=shirt(), float_too=True)
    found = driven(page, DROP, tmp_path/'page', dropped_png=image.save)
    assert 'error' not in found, found
    logits = wanted(packed.graph, pixels).view(np.float32)[0]
    best = [packed.info['classes'][i] for i in np.argsort(-logits)[:5]]
    assert found['picture'] == dict(over=True, after=False, told='', answers=best)
    assert best[0] in found['float'] and 'as with one bit' in found['float']
    assert 'as with one bit' in found['first'] # that of the sample which the page begins with
    assert found['outside'] == 2 and 'no file' in found['empty'] # the browser stays on the page
    assert 'ms for the same network' in found['facts']
    assert found['other']['answers'] == [] and 'note.txt is not a picture' in found['other']['told']

@needs_chromium
def test_the_camera(folders, tmp_path):
    "Chromium's own test pattern comes in, is classified, and stops"
    found = driven(folders[NETS[0]], CAMERA, tmp_path/'page')
    assert 'error' not in found, found
    assert (found['running'], found['stopped'], found['told']) == ('Stop', 'Camera', '')
    assert found['greys'] > 2 and found['answers'] == 5
