"""Files that are changed at random: bits, cuts, ranges, and header fields that are signed anew.

`tests/test_trust.py` tries 2,000 of each kind, `tools/mutate_files.py` as many as one likes.
"""
import copy
import hashlib
import json
import random
import struct
from collections import Counter
import numpy as np
import torch
from torch import nn
from safetensors.torch import load as from_bytes, save as to_bytes, save_file
from bnn_bn.checkpoint import load_model, read_weights, save_model, tensors_digest
from bnn_bn.core.errors import BnnError, CheckpointError
from bnn_bn.deploy import load_packed, pack
from bnn_bn.layers.blocks import Rules
from bnn_bn.models import binary_net
from bnn_bn.train.resume import load_state, save_state

def small(norm='nobn', **changes):
    torch.manual_seed(0)
    least = dict(backbone='reactnet_mini', norm=norm, n_out=10, in_chans=1, width=.125)
    return binary_net(**least | changes)

def own_parts():
    "a network whose header has more to say: rules, a stem, another head and first convolution"
    torch.manual_seed(0)
    net = binary_net('reactnet_mini', n_out=3, stem=(5, 2, True), in_chans=1, width=.125,
                     rules=Rules('mine', eps=1e-3), shortcut='real')
    net.head.fc = nn.Sequential(nn.Dropout(.2), nn.Linear(16, 3), nn.LogSoftmax(1))
    net.body.stem.conv = nn.Conv2d(1, 8, 5, 2, padding=2, bias=False)
    return net

def write_files(folder):
    "a whole file of each kind"
    net = small()
    save_model(own_parts(), folder/'parts.safetensors')
    state = dict(model=dict(net.state_dict()), epoch=1, more=[1, (2, None, 'x')])
    save_state(folder/'state.safetensors', state)
    torch.save(net.state_dict(), folder/'weights.pth')
    torch.save(net.state_dict(), folder/'old.pth', _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), folder/'foreign.safetensors')
    save_model(net, folder/'net.safetensors', accuracy=.5)
    packed = pack(net, classes=[*'abcdefghij'], mean=[.5], std=[.2], size=[32, 32])
    packed.save(folder/'net.bnn')
    return folder

# Readers: what each file holds, as a dict of arrays --------------------

IMAGE = torch.zeros(1, 1, 32, 32)

def network_of_file(file):
    "the weights of a network, once it has answered"
    net = load_model(file)
    try:
        with torch.no_grad(): answer = net(IMAGE.expand(1, net.in_chans, -1, -1))
    except (ValueError, RuntimeError, IndexError):
        answer = torch.zeros(0) # rightly signed, and its parts do not fit together: torch says so
    return dict(net.state_dict(), answer=answer)

def packed_of_file(file):
    "the arrays of a packed network, once it has answered or refused the image"
    packed = load_packed(file)
    try: answer = packed(IMAGE.expand(1, packed.graph.channels, -1, -1).numpy())
    except ValueError: answer = np.zeros(0)
    arrays = {f'{i} {k}': a for i, n in enumerate(packed.graph.nodes) for k, a in n.tensors.items()}
    return dict(arrays, answer=answer)

def state_of_file(file):
    state = load_state(file)
    weights = state.get('model') if isinstance(state, dict) else None
    if not isinstance(weights, dict): raise CheckpointError(f'{file}: no state with weights')
    return weights

READERS = {
    'net.safetensors': network_of_file,
    'parts.safetensors': network_of_file,
    'net.bnn': packed_of_file,
    'state.safetensors': state_of_file,
    'weights.pth': read_weights,
    'old.pth': read_weights,
    'foreign.safetensors': read_weights}
SIGNED = 'net.safetensors', 'parts.safetensors', 'net.bnn', 'state.safetensors'

# Bytes --------------------

def changed_bytes(data, rng):
    "bytes changed, cut, doubled, removed or zeroed at random"
    data, n = bytearray(data), len(data)
    at, size = rng.randrange(n), rng.choice([1, 1, 1, 2, 8, 64])
    kind = rng.randrange(6)
    if kind == 0: data[at] ^= 1 << rng.randrange(8)
    elif kind == 1: data[at:at + size] = rng.randbytes(size)
    elif kind == 2: del data[at:]
    elif kind == 3: data[at:at] = data[at:at + size]
    elif kind == 4: del data[at:at + size]
    else: data[at:at + size] = bytes(size)
    return bytes(data)

# Fields of a header, and the checksum made anew --------------------

ODD = (None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**63, 10**40, .5, -0., 1e30, 1e308, '', 'x',
       'nobn', 'bn', 'both', 'real', 'bit', 'f32', 'F64', 'I8', 'conv', 'mean', [], {}, [0, 4],
       [1, 1], float('nan'), float('inf'))

def places(value, path=()):
    "every place in a header"
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list): items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))

def changed_fields(head, rng):
    "a header with an odd value in one to three places"
    head = copy.deepcopy(head)
    for _ in range(rng.choice([1, 1, 2, 3])):
        *path, key = rng.choice(list(places(head)) or [('x',)])
        at = head
        for k in path: at = at[k]
        if rng.random() < .15 and isinstance(at, dict): at.pop(key, None)
        else: at[key] = copy.deepcopy(rng.choice(ODD))
    return head

def bnn_header(data, rng):
    "a packed file with changed fields, rightly signed"
    n = struct.unpack('<I', data[12:16])[0]
    text = json.dumps(changed_fields(json.loads(data[64:64 + n]), rng)).encode()
    rest = text + bytes(-len(text) % 64) + data[64 + n + -n % 64:]
    start = data[:12] + struct.pack('<IQQ', len(text), 64 + len(rest), 0)
    return start + hashlib.sha256(start + rest).digest() + rest

def outer_header(data, rng):
    "a safetensors file whose types, shapes or places are changed"
    n = struct.unpack('<Q', data[:8])[0]
    text = json.dumps(changed_fields(json.loads(data[8:8 + n]), rng)).encode()
    return struct.pack('<Q', len(text)) + text + data[8 + n:]

def signed(data, text):
    "these tensors under this header of ours, rightly signed; the file as it is if none can be read"
    try: tensors = from_bytes(data)
    except Exception: return data
    return to_bytes(tensors, dict(bnn_bn=text, sha256=tensors_digest(tensors, text)))

def safetensors_header(data, rng):
    "a file of ours with changed fields, in its own header or in that of safetensors"
    n = struct.unpack('<Q', data[:8])[0]
    text = json.loads(data[8:8 + n])['__metadata__']['bnn_bn']
    if rng.random() < .5: return signed(outer_header(data, rng), text)
    return signed(data, json.dumps(changed_fields(json.loads(text), rng), sort_keys=True))

HEADERS = {
    'net.safetensors': safetensors_header,
    'parts.safetensors': safetensors_header,
    'state.safetensors': safetensors_header,
    'net.bnn': bnn_header,
    'foreign.safetensors': outer_header}

def mutated(name, data, rng):
    "the file, changed once; was its checksum made anew?"
    if name not in HEADERS or rng.random() < .75: return changed_bytes(data, rng), False
    return HEADERS[name](data, rng), name in SIGNED

# What becomes of them --------------------

def same(a, b):
    if a.keys() != b.keys(): return False
    return all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)

def outcome(read, file, whole):
    "refused, the same numbers, or others; any other error is raised"
    try: found = read(file)
    except BnnError as e:
        assert file.name in str(e) and 'weights_only' not in str(e), e
        return 'refused'
    return 'same' if same(found, whole) else 'other'

def mutations(name, folder, tmp, numbers):
    "how many mutations of a file ended in each way; a number gives the same mutation each time"
    data, file, counts = (folder/name).read_bytes(), tmp/name, Counter()
    whole = READERS[name](folder/name)
    for i in numbers:
        changed, made_anew = mutated(name, data, random.Random(f'{name} {i}'))
        file.write_bytes(changed)
        try: end = outcome(READERS[name], file, whole)
        except Exception as e:
            raise AssertionError(f'{name}, mutation {i}: {type(e).__name__}: {e}') from e
        counts[f'{end}, signed anew' if made_anew else end] += 1
    return counts
