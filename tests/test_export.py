"""Exports of random graphs of short binary fractions, in which no sum is rounded: all runtimes must
agree in every bit.

Needs no torch, so that it runs where QONNX's executor is installed: pip install bnn_bn[qonnx].
"""
import copy, importlib.util, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from bnn_bn.onebit.graph import Graph, Node, check_graph
from bnn_bn.onebit.engine import Engine
from bnn_bn.export import assert_norm_free, check_onnx, run_onnx, to_onnx, to_qonnx

ROOT, SEEDS = Path(__file__).parent.parent, range(8)
onnx = pytest.importorskip('onnx', reason='onnx is not installed: pip install bnn_bn[export]')
NO_RUNTIME = 'onnxruntime is not installed: pip install bnn_bn[export]'
NO_QONNX = "QONNX's executor is not installed: pip install bnn_bn[qonnx] in an environment of its own"
needs_runtime = pytest.mark.skipif(not importlib.util.find_spec('onnxruntime'), reason=NO_RUNTIME)

def fractions(rng, *shape, n=4): return (rng.integers(-2*n, 2*n + 1, shape)/n).astype(np.float32)

def convolution(rng, op, inputs, o, c, **kw):
    "a step with some of the arrays that may be missing, thresholds that values hit, infinite ones"
    k = int(rng.choice([1, 3]))
    t = dict(weight=rng.choice(np.int8([-1, 1]), (o, c, k, k)), bias=fractions(rng, o))
    if rng.random() < .7: t['scale'] = fractions(rng, o)
    if rng.random() < .7: t['slope'] = rng.choice(np.float32([.5, 1, 2, -1]), o)
    if op == 'bconv':
        limits = np.append(np.arange(-3, 4), [np.inf, -np.inf])
        t['threshold'] = rng.choice(limits, c).astype(np.float32)
    elif rng.random() < .5: t['weight'] = fractions(rng, o, c, k, k)
    dilation = int(rng.choice([1, 2]))
    name = str(rng.choice(['', 'block']))
    return Node(op, inputs, t, padding=dilation*(k//2), dilation=dilation, name=name, **kw)

def random_step(rng, kind, i, c):
    "a step behind value i, which has c channels"
    def width(): return int(rng.integers(3, 50))
    if kind == 'max': return Node('maxpool', (i,), kernel=3, padding=1)
    if kind == 'average':
        return Node('avgpool', (i,), kernel=2, stride=2, factor=float(rng.choice([1, 1.5])))
    if kind == 'half': return convolution(rng, 'bconv', (i,), width(), c, stride=2)
    if kind == 'free': return convolution(rng, 'bconv', (i,), width(), c)
    op, o = 'conv' if kind == 'conv' else 'bconv', 2*c if kind == 'twice' else c
    return convolution(rng, op, (i, i), o, c)

def random_graph(seed):
    "a stem, then some steps, then a classifier; for images of 16x16"
    rng = np.random.default_rng(seed)
    nodes = [convolution(rng, 'conv', (0,), int(rng.integers(3, 50)), 3)]
    for kind in rng.permutation(['half', 'max', 'average', 'same', 'twice', 'conv', 'free']):
        c = check_graph(Graph(3, nodes))[-1]
        nodes.append(random_step(rng, kind, len(nodes), c))
    c, i = check_graph(Graph(3, nodes))[-1], len(nodes)
    classifier = dict(weight=fractions(rng, 10, c, 1, 1), bias=fractions(rng, 10))
    nodes += [Node('mean', (i,)), Node('conv', (i + 1,), classifier, name='fc')]
    return Graph(3, nodes), fractions(rng, 4, 3, 16, 16)

def export(graph, form):
    if form == 'qonnx': return to_qonnx(graph)
    return to_onnx(graph, integers=form == 'plain')

@needs_runtime
@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('form', ['plain', 'fast', 'qonnx'])
def test_equal_in_every_bit(seed, form):
    graph, x = random_graph(seed)
    model, y = export(graph, form), Engine(graph)(x)
    assert np.ptp(y, axis=0).max() > 0 # the images matter
    for fuse in False, True: np.testing.assert_array_equal(run_onnx(model, x, fuse), y)
    assert check_onnx(model, graph, x)['difference'] == 0

@needs_runtime
@pytest.mark.parametrize('form', ['plain', 'fast', 'qonnx'])
def test_a_wrong_number_is_seen(form):
    "one bias of the classifier is off by a thousandth of the largest logit"
    graph, x = random_graph(0)
    other, scale = copy.deepcopy(graph), np.abs(Engine(graph)(x)).max()
    other.nodes[-1].tensors['bias'][3] += scale/1000
    found = check_onnx(export(other, form), graph, x)
    assert .0009*scale < found['difference'] < .0011*scale

@pytest.mark.parametrize('seed', SEEDS)
def test_qonnx_executor(seed):
    "QONNX's executor gives the engine's result, and sees bipolar inputs at binary convolutions"
    wrapper = pytest.importorskip('qonnx.core.modelwrapper', reason=NO_QONNX)
    executor = pytest.importorskip('qonnx.core.onnx_exec', reason=NO_QONNX)
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    graph, x = random_graph(seed)
    m = wrapper.ModelWrapper(to_qonnx(graph, shape=(len(x), 16, 16)))
    m = m.transform(InferShapes()).transform(InferDataTypes())
    logits = executor.execute_onnx(m, {'images': x})['logits']
    np.testing.assert_array_equal(logits, Engine(graph)(x))
    convs = [n for n in m.graph.node if n.op_type == 'Conv']
    steps = [n for n in graph.nodes if n.op.endswith('conv')]
    for n, step in zip(convs, steps, strict=True):
        found = [m.get_tensor_datatype(i).name for i in n.input[:2]]
        one_bit = step.op == 'bconv', step.tensors['weight'].dtype == np.int8
        assert found == ['BIPOLAR' if b else 'FLOAT32' for b in one_bit]

def test_bipolar_of_zero():
    "QONNX's executor has sign(0) = +1, and -0 counts as 0"
    quant = pytest.importorskip('qonnx.custom_op.general.bipolar_quant', reason=NO_QONNX)
    values = quant.binary_quant(np.float32([0, -0., -1e-45, 1e-45]), np.float32(1))
    assert values.tolist() == [1, 1, -1, 1]

def test_a_failed_check_writes_nothing(tmp_path, monkeypatch):
    graph, _ = random_graph(0)
    def refuse(model): raise AssertionError('a norm')
    monkeypatch.setattr('bnn_bn.export.assert_norm_free', refuse)
    for f in to_onnx, to_qonnx:
        with pytest.raises(AssertionError, match='a norm'): f(graph, tmp_path/'net.onnx')
    assert not list(tmp_path.iterdir())

def test_norm_free_from_outside(tmp_path):
    "a file that another program wrote is searched too"
    h = onnx.helper
    x, y = (h.make_tensor_value_info(k, 1, [1, 3, 4, 4]) for k in 'xy')
    norm = h.make_node('InstanceNormalization', ['x', 'w', 'w'], ['y'], name='it')
    w = onnx.numpy_helper.from_array(np.ones(3, np.float32), 'w')
    onnx.save(h.make_model(h.make_graph([norm], 'g', [x], [y], [w])), tmp_path/'net.onnx')
    with pytest.raises(AssertionError, match="InstanceNormalization 'it'"):
        assert_norm_free(tmp_path/'net.onnx')
    (tmp_path/'text.onnx').write_text('no model')
    with pytest.raises(ValueError, match='not an ONNX file'): assert_norm_free(tmp_path/'text.onnx')

def test_imports_nothing_heavy():
    heavy = 'torch', 'onnx', 'onnxruntime', 'qonnx'
    code = f'import bnn_bn.export, sys; print([m for m in {heavy} if m in sys.modules])'
    said = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT, text=True)
    assert said.strip() == '[]'
