"""What a stranger's file may cost: memory in proportion to its size, whatever its header says.

Each file is read in a process of its own, forked from one that has imported all. What it asks of the
system is counted (VmPeak), so that memory counts that is never touched.
"""
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
from safetensors.torch import save as to_bytes
from bnn_bn.checkpoint import load_info, load_network, read_weights, tensors_digest
from bnn_bn.core.errors import BnnError
from bnn_bn.deploy import load_packed, pack
from bnn_bn.onebit.graph import MAGIC
from bnn_bn.onebit.graph import to_bytes as packed_bytes
from bnn_bn.train.resume import load_state
from mutations import small

TIMES, MORE = 32, 64_000_000 # of memory: times the file, and bytes for the layers of a description

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')

# Files ----------------------------------------------

NET = small()
PACKED = packed_bytes(pack(NET).graph)
N_HEAD, = struct.unpack('<I', PACKED[12:16])
HEAD, BODY = json.loads(PACKED[64:64 + N_HEAD]), PACKED[64 + N_HEAD + -N_HEAD % 64:]

def bnn(head, body=BODY, n_head=None, length=None):
    "a packed file, rightly signed, whose lengths may lie"
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    rest = text + bytes(-len(text) % 64) + body
    sizes = n_head or len(text), length or 64 + len(rest)
    start = MAGIC + struct.pack('<HBBIQQ', 1, 0, 0, *sizes, 0)
    return start + hashlib.sha256(start + rest).digest() + rest

def bnn_of_shape(shape, n):
    "whose first array has another shape and number of bytes"
    head = json.loads(json.dumps(HEAD))
    head['nodes'][0]['tensors']['weight'][1:] = [shape, 0, n]
    return bnn(head)

def bnn_of_bits(c=4096, n=512, k=3):
    "an honest file, nearly all of it bits"
    fields = dict(kernel=1, stride=1, padding=0, dilation=1, factor=1., name='')
    body, steps = bytearray(), []
    def place(dtype, shape, size):
        at = len(body)
        body.extend(bytes(size + -size % 64))
        return [dtype, shape, at, size]
    steps.append(dict(fields, op='conv', inputs=[0], tensors=dict(
        weight=place('f32', [c, 1, 1, 1], 4*c), bias=place('f32', [c], 4*c))))
    steps.append(dict(fields, op='bconv', inputs=[1], tensors=dict(
        weight=place('bit', [n, c, k, k], n*k*k*c//8), bias=place('f32', [n], 4*n),
        threshold=place('f32', [c], 4*c))))
    return bnn(dict(channels=1, info={}, nodes=steps), bytes(body))

def outer(head, body=b'', n_head=None):
    "a safetensors file whose lengths may lie"
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack('<Q', len(text) if n_head is None else n_head) + text + body

def tensor(shape, first, last, dtype='F32'):
    return dict(a=dict(dtype=dtype, shape=shape, data_offsets=[first, last]))

def ours(tensors=None, **head):
    "a file of ours, rightly signed"
    tensors, text = tensors or {}, json.dumps(dict(version=1, **head))
    return to_bytes(tensors, dict(bnn_bn=text, sha256=tensors_digest(tensors, text)))

def described(layers, steps, shape=(1, 8, 8)):
    "a network that its steps describe"
    return ours(network=dict(layers=layers, steps=steps, image_shape=list(shape)), info={})

def layer(kind, **args): return [['0', dict(type=kind, args=args)]]
def function(target, *args): return dict(kind='function', target=target, args=list(args), kwargs={})
def method(target, *args): return function(target, *args) | dict(kind='method')
def value(i): return dict(v=i)
def both(i): return value(i), value(i)

USE = function('0', value(0)) | dict(kind='module')
ITEM, SIZE = layer('Identity'), method('size', value(0))
MANY = 30_000

def nested(n): return b'['*n + b']'*n

PACKED_FILES = dict(
    header_length=lambda: bnn(HEAD, n_head=2**32 - 1),
    file_length=lambda: bnn(HEAD, length=2**63),
    shape=lambda: bnn_of_shape([2**31, 2**31, 3, 3], 4*9*2**62),
    shape_without_bytes=lambda: bnn_of_shape([2**20, 2**20, 3, 3], 64),
    honest_bits=bnn_of_bits,
    nested=lambda: bnn(nested(300_000)),
    lists=lambda: bnn(HEAD | dict(info=dict(a=[[]]*100_000))),
    names=lambda: bnn(HEAD | dict(info={str(i): i for i in range(MANY)})))
OUTER_FILES = dict(
    header_length=lambda: outer({}, n_head=2**62),
    header_of_99_megabytes=lambda: outer({}, n_head=99_000_000),
    offsets=lambda: outer(tensor([2**40], 0, 2**42)),
    shape=lambda: outer(tensor([2**40], 0, 4), bytes(4)),
    shape_that_wraps=lambda: outer(tensor([2**62, 4], 0, 0)),
    nothing_of_terabytes=lambda: outer(tensor([0, 2**62], 0, 0)),
    nested=lambda: outer(nested(300_000)),
    empty_tensors=lambda: outer({str(i): tensor([0], 0, 0)['a'] for i in range(MANY//3)}),
    width=lambda: ours(NET.state_dict(), config=NET.cfg | dict(width=1e7), info={}),
    classes=lambda: ours(NET.state_dict(), config=NET.cfg | dict(n_out=2**40), info={}),
    state=lambda: ours(NET.state_dict(), state=dict(list=[dict(list=[])]*MANY)))
STEP_FILES = dict(
    weights=lambda: described(layer('Linear', in_features=2**20, out_features=2**20), [USE]),
    slopes=lambda: described(layer('PReLU', num_parameters=2**30), [USE]),
    zeros_around=lambda: described(layer('ZeroPad2d', padding=2**30), [USE]),
    image=lambda: described(ITEM, [USE], (1, 2**20, 2**20)),
    doubled=lambda: described(ITEM, [function('torch.cat', dict(list=both(i))) for i in range(40)]),
    cut=lambda: described(ITEM, [method('split', value(0), 1, 1), USE], (2**24, 1, 1)),
    cut_by_name=lambda: described(ITEM, [dict(method('split', value(0)), kwargs=dict(
        dim=1, split_size=1)), USE], (2**24, 1, 1)),
    chunks=lambda: described(ITEM, [function('torch.chunk', value(0), 2**24, 1), USE], (2**24, 1, 1)),
    list_repeated=lambda: described(ITEM, [function('operator.mul', dict(list=[0]), 2**28), USE]),
    number_first=lambda: described(ITEM, [function('operator.imul', 2**28, dict(tuple=[0])), USE]),
    text_repeated=lambda: described(ITEM, [function('operator.mul', 'a', 2**31), USE]),
    size_repeated=lambda: described(ITEM, [SIZE, function('operator.mul', value(1), 2**28), USE]),
    size_doubled=lambda: described(
        ITEM, [SIZE, *[function('operator.add', *both(i)) for i in range(1, 28)], USE]),
    squared=lambda: described(
        ITEM, [function('operator.add', 2, 1), *[function('operator.mul', *both(i)) for i in range(1, 60)], USE]),
    layers=lambda: described([[str(i), dict(type='ReLU', args={})] for i in range(MANY)], [USE]),
    layers_within=lambda: described([['0', dict(type='Sequential', children=[
        [str(i), dict(type='ReLU', args={})] for i in range(MANY)])]], [USE]),
    steps=lambda: described(ITEM, [USE | dict(args=[value(i)]) for i in range(MANY)]))

DOORS = {'bnn': [load_packed], 'safetensors': [load_network, load_info, read_weights, load_state]}
FILES = {'packed': (PACKED_FILES, 'bnn'), 'outer': (OUTER_FILES, 'safetensors'),
         'steps': (STEP_FILES, 'safetensors')}

# What reading them takes ----------------------------------------------

def address_space(name):
    "bytes, of this process"
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024*next(int(line.split()[1]) for line in lines if line.startswith(name))

def read(door, file):
    "what a reader says, and the bytes that it asked the system for"
    before = address_space('VmSize')
    try: door(file)
    except BnnError: said = 'refused'
    except BaseException as e: said = f'{type(e).__name__}: {str(e)[:200]}'
    else: said = 'read'
    return dict(said=said, taken=address_space('VmPeak') - before, size=file.stat().st_size)

def apart(f, *args, seconds=30):
    "the result of a function in a fork of this process, which may not last longer"
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(seconds)
        os.write(w, json.dumps(f(*args)).encode())
        os._exit(0)
    os.close(w)
    with open(r, 'rb') as pipe: text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text or '{"said": "no end within its time, or a crash"}')

def read_all(folder):
    "kind -> file and reader -> what `read` found"
    read_an_honest_one(folder)
    found = {}
    for kind, (files, ending) in FILES.items():
        found[kind] = {}
        for name, make in files.items():
            file = folder/f'{name}.{ending}'
            file.write_bytes(make())
            found[kind] |= {f'{name} {d.__name__}': apart(read, d, file) for d in DOORS[ending]}
    return found

def read_an_honest_one(folder):
    "torch imports its last modules at the first description"
    file = folder/'honest.safetensors'
    file.write_bytes(described(ITEM, [function('torch.cat', dict(list=both(0)))]))
    load_network(file)

CODE = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter('ignore')
import torch
torch.set_num_threads(1)
from test_memory_of_files import read_all
print(json.dumps(read_all(Path(sys.argv[1]))))
"""

@pytest.fixture(scope='module')
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    command = [sys.executable, '-W', 'ignore', '-c', CODE, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

@pytest.mark.parametrize('kind', FILES)
def test_memory_is_in_proportion_to_the_file(kind, everything):
    "an honest answer or an error of ours, in time"
    found = everything[kind]
    assert not {k: v for k, v in found.items() if v['said'] not in ('read', 'refused')}
    assert not {k: v for k, v in found.items() if v['taken'] > TIMES*v['size'] + MORE}

def test_what_is_counted():
    "memory that is asked for and never touched counts"
    def asks(n):
        before = address_space('VmSize')
        np.zeros(n, np.uint8)
        return address_space('VmPeak') - before
    assert apart(asks, 10**9) >= 10**9
