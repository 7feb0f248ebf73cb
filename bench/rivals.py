"""One runtime as a process on the bench of `bench/infer.py`, run by the interpreter that has it.

    python bench/rivals.py KIND FILE.bnn SIDE BATCH THREADS [--onnx FILE.onnx] [--values FILE.npy]
    python bench/rivals.py quantize FILE.onnx SIDE 1 1 --onnx OUT.onnx
    python bench/rivals.py product-ours|product-bnn-lab CHANNELS SIDE 1 THREADS

It needs numpy and the rival, neither torch nor numba. With `--values` it runs once, writes its
answers, and ends.
"""
import argparse, os, sys, time
START = time.perf_counter()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
from bnn_bn.bench import serve
from bnn_bn.onebit.graph import read_bnn

def packed(a, x, way):
    from bnn_bn.onebit.engine import Engine
    engine = Engine(read_bnn(a.file), a.threads, way)
    return lambda: engine(x)

def torch_rows(a, x, compiled=False):
    "eager or compiled torch in torch's own layout; `bnn_bn.bench` has channels_last"
    import torch
    from bnn_bn.onebit.fold import FoldedNet
    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    net, images = FoldedNet(read_bnn(a.file), exact=False).eval(), torch.tensor(x)
    if compiled: net = torch.compile(net)
    return lambda: net(images).numpy()

def torch_compiled(a, x): return torch_rows(a, x, compiled=True)

# --- ONNX Runtime

def onnx(a, x):
    "a file in ONNX Runtime"
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = a.threads
    session = onnxruntime.InferenceSession(a.onnx, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})[0]

def quantize(a):
    "8 bits for weights and inputs of all convolutions, ranges from 8 pictures of noise"
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    g = np.random.default_rng(1)
    class Noise(CalibrationDataReader):
        left = 8
        def get_next(self):
            self.left -= 1
            image = g.standard_normal((1, 3, a.side, a.side), np.float32)
            return dict(images=image) if self.left >= 0 else None
    quantize_static(a.file, a.onnx, Noise(), per_channel=True, op_types_to_quantize=['Conv'],
                    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)

# --- One product of signs: a 3x3 convolution of CHANNELS to CHANNELS

def signs(a):
    "(pixels, products) and (filters, products), -1 or +1"
    g, n = np.random.default_rng(2), 9*int(a.file)
    return (g.integers(0, 2, s)*2 - 1 for s in ((a.side*a.side, n), (int(a.file), n)))

def product_bnn_lab(a):
    "rows and filters are packed before; of the package only its kernels are imported"
    import types
    from importlib.util import find_spec
    package = types.ModuleType('bnn') # the real one imports torch
    package.__path__ = list(find_spec('bnn').submodule_search_locations)
    sys.modules['bnn'] = package
    from bnn.kernels import packed as p
    p.set_num_threads(a.threads)
    if not p.native_kernel_available(): raise SystemExit('its compiled kernel does not load')
    (x, n), (w, _) = (p.pack_binary_pm1(v.astype(np.float32), axis=1) for v in signs(a))
    return lambda: p.binary_gemm_native_prepacked(x, w, n)

def product_ours(a):
    "the same product as a convolution of 1x1 with nine times the channels"
    from bnn_bn.onebit import kernels as k
    (x, w), way = signs(a), k.get_way()
    memory, out = k.Memory(), k.aligned(np.zeros((a.side, a.side, len(w)), np.float32))
    vectors = np.repeat(np.float32([1, 0, 1, np.inf]), len(w)).reshape(4, -1)
    filters = k.pack_signs(w)[:, None, None]
    image = memory.put(k.pack_signs(x))
    to = k.Target(numbers=memory.keep(out), step=4*len(w))
    rows = k.ConvPlan(way=way, w=filters, c_in=x.shape[1], size=(a.side, a.side), x=image,
                      vectors=vectors, memory=memory, to=to, window=k.Window()).rows()
    scratch = k.aligned(np.zeros(k.scratch_bytes(filters[0].size), np.uint8))
    table, walk = memory.put(k.make_table()), k.code_for(k.ways[way])[0]['convolutions']
    def run(keep=(memory, scratch)):
        walk(k.start_of(rows), len(rows), 1, table, scratch.ctypes.data)
        return out.reshape(len(x), -1)
    return run

# --- OpenVINO

def openvino_run(model, a, x):
    "synchronous, one request used again; float32 also where the CPU has bfloat16"
    import openvino as ov
    options = dict(INFERENCE_NUM_THREADS=a.threads, PERFORMANCE_HINT='LATENCY',
                   INFERENCE_PRECISION_HINT='f32', NUM_STREAMS=1)
    compiled = ov.Core().compile_model(model, 'CPU', options)
    if a.show: show_openvino(compiled)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(x))
    def run():
        request.infer()
        return request.get_output_tensor().data
    return run

def show_openvino(compiled):
    "which primitive runs each step"
    keys = 'layerType', 'primitiveType', 'runtimePrecision', 'outputLayouts'
    for n in compiled.get_runtime_model().get_ordered_ops():
        info = n.get_rt_info()
        print(*(info[k].astype(str) for k in keys), file=sys.stderr)

def openvino(a, x):
    import openvino as ov
    model = ov.Core().read_model(a.onnx)
    model.reshape(x.shape)
    return openvino_run(model, a, x)

class OpenVinoGraph:
    """The graph with BinaryConvolution, whose signs FakeQuantize makes; both are one bit in
    OpenVINO's CPU plugin"""
    def __init__(self, low):
        import openvino as ov
        from openvino import opset1, opset13
        self.ov, self.old, self.op = ov, opset1, opset13
        self.low = low # what FakeQuantize gives below the threshold

    def number(self, v): return self.op.constant(np.asarray(v, np.float32))
    def channel(self, v): return self.number(np.asarray(v).reshape(1, -1, 1, 1))
    def geometry(self, n): return [n.stride]*2, [n.padding]*2, [n.padding]*2

    def maxpool(self, n, y): return self.old.max_pool(y, *self.geometry(n), [n.kernel]*2)
    def mean(self, n, y):
        return self.op.reduce_mean(y, self.op.constant(np.int64([2, 3])), keep_dims=True)
    def avgpool(self, n, y):
        y = self.old.avg_pool(y, *self.geometry(n), [n.kernel]*2, True)
        return y if n.factor == 1 else self.op.multiply(y, self.number(n.factor))
    def conv(self, n, y):
        weight = self.number(n.tensors['weight'])
        return self.op.convolution(y, weight, *self.geometry(n), [n.dilation]*2)

    def bconv(self, n, y):
        weight = n.tensors['weight']
        bits = np.packbits(weight.reshape(-1) > 0, bitorder='little')
        w = self.op.constant(self.ov.Tensor(bits, self.ov.Shape(weight.shape), self.ov.Type.u1))
        return self.old.binary_convolution(self.signs(n, y), w, *self.geometry(n), [n.dilation]*2,
                                           'xnor-popcount', 0.)

    def signs(self, n, y):
        "its +1 begins above the limit, ours at the threshold"
        below = self.channel(np.nextafter(n.tensors['threshold'], np.float32(-np.inf)))
        low, high = (self.number(np.full((1, 1, 1, 1), v)) for v in (self.low, 1.))
        return self.op.fake_quantize(y, below, below, low, high, 2)

    def after(self, n, y, residual):
        "scale, bias, residual and PReLU"
        t = n.tensors
        if 'scale' in t: y = self.op.multiply(y, self.channel(t['scale']))
        if 'bias' in t: y = self.op.add(y, self.channel(t['bias']))
        if residual is not None: y = self.op.add(y, self.repeated(residual, len(t['weight'])))
        if 'slope' in t: y = self.op.prelu(y, self.number(t['slope']))
        return y

    def repeated(self, r, channels):
        times = channels//r.get_output_partial_shape(0)[1].get_length()
        return self.op.concat([r]*times, 1) if times > 1 else r

    def model(self, graph, shape):
        image = self.op.parameter(shape, np.float32, name='image')
        values = [image]
        for n in graph.nodes:
            y = getattr(self, n.op)(n, values[n.inputs[0]])
            residual = values[n.inputs[1]] if len(n.inputs) == 2 else None
            values.append(self.after(n, y, residual))
        flat = self.op.reshape(values[-1], self.op.constant(np.int64([0, -1])), True)
        return self.ov.Model([flat], [image], 'binary')

def openvino_binary(a, x):
    return openvino_run(OpenVinoGraph(a.low).model(read_bnn(a.file), x.shape), a, x)

# --- Larq

class LarqGraph:
    """The graph in Keras and Larq. Zeros around an image are what Larq pads slowly: it pads with
    ones here, and on both sides as TensorFlow does, so its values differ from ours.
    `bench/infer.py` compares them with torch under the same padding"""
    def __init__(self):
        import larq, tensorflow
        self.lq, self.layers, self.keras = larq, tensorflow.keras.layers, tensorflow.keras
        self.later = [] # layers and the weights that they get once the model is made

    def add(self, layer, y, *weights):
        self.later.append((layer, weights))
        return layer(y)

    def maxpool(self, n, y): return self.layers.MaxPool2D(n.kernel, n.stride, 'same')(y)
    def mean(self, n, y): return self.layers.GlobalAveragePooling2D(keepdims=True)(y)
    def avgpool(self, n, y):
        y = self.layers.AveragePooling2D(n.kernel, n.stride, 'same')(y)
        return y if n.factor == 1 else y*n.factor

    def weight(self, n): return n.tensors['weight'].transpose(2, 3, 1, 0).astype(np.float32)
    def shape(self, n, w):
        return dict(filters=w.shape[-1], kernel_size=w.shape[0], strides=n.stride, padding='same',
                    dilation_rate=n.dilation)

    def conv(self, n, y):
        w, t = self.weight(n), n.tensors
        layer = self.layers.Conv2D(**self.shape(n, w))
        return self.add(layer, y, w*t.get('scale', np.float32(1)), t['bias'])

    def bconv(self, n, y):
        "the engine folds the batch norm: it is how a scale and a bias are given to it"
        w, t = self.weight(n), n.tensors
        conv = self.lq.layers.QuantConv2D(**self.shape(n, w), pad_values=1., use_bias=False,
                                          input_quantizer='ste_sign', kernel_quantizer='ste_sign')
        norm, c = self.layers.BatchNormalization(epsilon=1e-3), len(t['scale'])
        y = self.add(conv, y - t['threshold'], w)
        return self.add(norm, y, t['scale'], t['bias'], np.zeros(c), np.full(c, 1 - 1e-3))

    def after(self, n, y, residual):
        t = n.tensors
        if residual is not None:
            times = len(t['weight'])//residual.shape[-1]
            r = self.layers.concatenate([residual]*times) if times > 1 else residual
            y = self.layers.add([y, r])
        if 'slope' not in t: return y
        return self.add(self.layers.PReLU(shared_axes=[1, 2]), y, t['slope'].reshape(1, 1, -1))

    def model(self, graph, shape):
        image = self.keras.Input(shape[2:] + shape[1:2], batch_size=1)
        values = [image]
        for n in graph.nodes:
            y = getattr(self, n.op)(n, values[n.inputs[0]])
            residual = values[n.inputs[1]] if len(n.inputs) == 2 else None
            values.append(self.after(n, y, residual))
        model = self.keras.Model(image, self.layers.Flatten()(values[-1]))
        for layer, weights in self.later: layer.set_weights(weights)
        return model

def larq(a, x, **options):
    import larq_compute_engine as lce
    from larq_compute_engine.tflite.python.interpreter import Interpreter
    converted = lce.convert_keras_model(LarqGraph().model(read_bnn(a.file), x.shape))
    run = Interpreter(converted, num_threads=a.threads, **options).interpreter.predict
    images = [np.ascontiguousarray(i.transpose(1, 2, 0)[None]) for i in x]
    return lambda: np.concatenate([run([i])[0] for i in images])

def larq_best(a, x): return larq(a, x, use_indirect_bgemm=True, use_xnnpack=True)

KINDS = {'openvino': openvino, 'openvino-binary': openvino_binary, 'torch': torch_rows,
         'compiled': torch_compiled, 'onnx': onnx, 'larq': larq, 'larq-best': larq_best}
PRODUCTS = {'product-ours': product_ours, 'product-bnn-lab': product_bnn_lab}

def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('kind')
    p.add_argument('file', help='a .bnn file; of a product the number of channels')
    for name in ('side', 'batch', 'threads'): p.add_argument(name, type=int)
    p.add_argument('--onnx')
    p.add_argument('--values')
    p.add_argument('--show', action='store_true', help='print what runs each step')
    p.add_argument('--low', type=float, default=0.,
                   help='what FakeQuantize gives below the threshold')
    return p.parse_args()

def main():
    a = arguments()
    if a.kind == 'quantize': return quantize(a)
    x = np.random.default_rng(0).standard_normal((a.batch, 3, a.side, a.side), np.float32)
    if a.kind.startswith('way:'): run = packed(a, x, a.kind[4:])
    elif a.kind in PRODUCTS: run = PRODUCTS[a.kind](a)
    else: run = KINDS[a.kind](a, x)
    if a.values: np.save(a.values, run())
    else: serve(run, START)

if __name__ == '__main__': main()
