s = open('31f_unpack.py').read()
def sub(old, new):
    global s
    assert s.count(old) == 1, (s.count(old), old[:90])
    s = s.replace(old, new)
sub('''    first = model.body.block1
    if isinstance(first, XnorBlock): return nodes[1].tensors['bias'] # its residual
    if isinstance(first, BiRealBlock) and first.sign.shift is None: return -nodes[0].tensors['threshold']
    return np.zeros(len(nodes[0].tensors['threshold']), np.float32)
''', '''    first, wanted = model.body.block1, nodes[0].tensors['threshold'].astype(float)
    if isinstance(first, BiRealBlock) and first.sign.shift is None: return -wanted
    if not isinstance(first, XnorBlock): return np.zeros(len(wanted))
    bias = nodes[1].tensors['bias'] # of its residual; what float32 leaves over of it must suit the thresholds too
    found = bias.astype(float)
    for step in (1, -1, 0):
        offset = _next(_f32(wanted + bias), step) - wanted
        found = np.where(_f32(offset) == bias, offset, found)
    return found
''')
sub('''        walk.offset = _stem_bias(model, [n for n in nodes if n.op == 'bconv']).astype(float)
        stem.norm.bias.copy_(torch.tensor(_f32(walk.offset)))
''', '''        walk.offset = _stem_bias(model, [n for n in nodes if n.op == 'bconv'])
        _set_bias([stem.norm], None, walk.offset, np.zeros(len(walk.offset)))
''')
open('31f_unpack.py', 'w').write(s)
