"""One runtime as a process on the bench of `bench/infer.py`, which starts it with the interpreter where that runtime is installed.

    python bench/rivals.py KIND FILE.bnn SIDE BATCH THREADS [--onnx FILE.onnx] [--values FILE.npy]

It needs numpy and the rival, neither torch nor fastcore. With `--values` it runs once, writes its answers, and ends.
"""
import argparse, json, os, sys, time
START = time.perf_counter()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np

def serve(run):
    "the protocol of `bnn_bn.bench.serve`"
    run()
    print('ready', time.perf_counter() - START, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            t = time.perf_counter(); run(); times.append(time.perf_counter() - t)
        print(json.dumps(times), flush=True)

def packed(a, x, way):
    from bnn_bn.graph import read_bnn
    from bnn_bn.engine import Engine
    engine = Engine(read_bnn(a.file), a.threads, way)
    return lambda: engine(x)

def torch_rows(a, x, compiled=False):
    "eager or compiled torch in torch's own layout; `bnn_bn.bench` has channels_last"
    import torch
    from bnn_bn.graph import read_bnn
    from bnn_bn.fold import FoldedNet
    torch.set_num_threads(a.threads); torch.set_grad_enabled(False)
    net, images = FoldedNet(read_bnn(a.file), exact=False).eval(), torch.tensor(x)
    if compiled: net = torch.compile(net)
    return lambda: net(images).numpy()

# --- OpenVINO

def openvino_run(model, a, x):
    "synchronous, one request used again; float32, for this is a float32 row also where the CPU has bfloat16"
    import openvino as ov
    options = {'INFERENCE_NUM_THREADS': a.threads, 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32', 'NUM_STREAMS': 1}
    compiled = ov.Core().compile_model(model, 'CPU', options)
    if a.show: show_openvino(compiled)
    request, tensor = compiled.create_infer_request(), ov.Tensor(x)
    request.set_input_tensor(tensor)
    def run():
        request.infer()
        return request.get_output_tensor().data
    return run

def show_openvino(compiled):
    "which primitive runs each step"
    for n in compiled.get_runtime_model().get_ordered_ops():
        i = n.get_rt_info()
        print(*(i[k].astype(str) for k in ('layerType', 'primitiveType', 'runtimePrecision', 'outputLayouts')), file=sys.stderr)

def openvino(a, x):
    import openvino as ov
    model = ov.Core().read_model(a.onnx)
    model.reshape(x.shape)
    return openvino_run(model, a, x)

def openvino_binary(a, x):
    "the graph with BinaryConvolution, whose signs FakeQuantize makes; both are one bit in its CPU plugin"
    import openvino as ov
    from openvino import opset1, opset13 as op
    from bnn_bn.graph import read_bnn
    graph, image = read_bnn(a.file), op.parameter(x.shape, np.float32, name='image')
    values = [image]
    number = lambda v: op.constant(np.asarray(v, np.float32))
    channel = lambda v: number(np.asarray(v).reshape(1, -1, 1, 1))
    for n in graph.nodes:
        y, t = values[n.inputs[0]], n.tensors
        geometry = [n.stride]*2, [n.padding]*2, [n.padding]*2
        if n.op == 'maxpool': y = opset1.max_pool(y, *geometry, [n.kernel]*2)
        elif n.op == 'avgpool':
            y = opset1.avg_pool(y, *geometry, [n.kernel]*2, True)
            if n.factor != 1: y = op.multiply(y, number(n.factor))
        elif n.op == 'mean': y = op.reduce_mean(y, op.constant(np.int64([2, 3])), keep_dims=True)
        elif n.op == 'conv': y = op.convolution(y, number(t['weight']), *geometry, [n.dilation]*2)
        else:
            below = channel(np.nextafter(t['threshold'], np.float32(-np.inf))) # its +1 begins above the limit, ours at the threshold
            y = op.fake_quantize(y, below, below, number(np.full((1, 1, 1, 1), a.low)), number(np.ones((1, 1, 1, 1))), 2)
            bits = np.packbits(t['weight'].reshape(-1) > 0, bitorder='little')
            w = op.constant(ov.Tensor(bits, ov.Shape(t['weight'].shape), ov.Type.u1))
            y = opset1.binary_convolution(y, w, *geometry, [n.dilation]*2, 'xnor-popcount', 0.)
        if 'scale' in t: y = op.multiply(y, channel(t['scale']))
        if 'bias' in t: y = op.add(y, channel(t['bias']))
        if len(n.inputs) == 2:
            r = values[n.inputs[1]]
            times = len(t['weight'])//r.get_output_partial_shape(0)[1].get_length()
            y = op.add(y, op.concat([r]*times, 1) if times > 1 else r)
        if 'slope' in t: y = op.prelu(y, number(t['slope']))
        values.append(y)
    flat = op.reshape(values[-1], op.constant(np.int64([0, -1])), True)
    return openvino_run(ov.Model([flat], [image], 'binary'), a, x)

# --- Larq

def larq(a, x, **options):
    """the graph in Keras and Larq, converted. Images of zeros are what Larq pads slowly: it pads with ones here, and on both sides as TensorFlow does,
    so its values differ from ours; `bench/infer.py` compares them with torch under the same padding"""
    import larq as lq, larq_compute_engine as lce, tensorflow as tf
    from larq_compute_engine.tflite.python.interpreter import Interpreter
    from bnn_bn.graph import read_bnn
    graph, layers = read_bnn(a.file), tf.keras.layers
    image = tf.keras.Input(x.shape[2:] + x.shape[1:2], batch_size=1)
    values, later = [image], []
    def add(layer, y, *weights):
        later.append((layer, weights))
        return layer(y)
    for n in graph.nodes:
        y, t = values[n.inputs[0]], n.tensors
        if n.op == 'maxpool': y = layers.MaxPool2D(n.kernel, n.stride, 'same')(y)
        elif n.op == 'avgpool':
            y = layers.AveragePooling2D(n.kernel, n.stride, 'same')(y)
            if n.factor != 1: y = y*n.factor
        elif n.op == 'mean': y = layers.GlobalAveragePooling2D(keepdims=True)(y)
        else:
            w = t['weight'].transpose(2, 3, 1, 0).astype(np.float32)
            shape = dict(filters=w.shape[-1], kernel_size=w.shape[0], strides=n.stride, padding='same', dilation_rate=n.dilation)
            if n.op == 'conv': y = add(layers.Conv2D(**shape), y, w*t.get('scale', np.float32(1)), t['bias'])
            else:
                conv = lq.layers.QuantConv2D(**shape, pad_values=1., input_quantizer='ste_sign', kernel_quantizer='ste_sign', use_bias=False)
                norm, c = layers.BatchNormalization(epsilon=1e-3), len(t['scale']) # the engine folds it: it is how a scale and a bias are said
                y = add(norm, add(conv, y - t['threshold'], w), t['scale'], t['bias'], np.zeros(c), np.full(c, 1 - 1e-3))
        if len(n.inputs) == 2:
            r = values[n.inputs[1]]
            times = len(t['weight'])//r.shape[-1]
            y = layers.add([y, layers.concatenate([r]*times) if times > 1 else r])
        if 'slope' in t: y = add(layers.PReLU(shared_axes=[1, 2]), y, t['slope'].reshape(1, 1, -1))
        values.append(y)
    model = tf.keras.Model(image, layers.Flatten()(values[-1]))
    for layer, weights in later: layer.set_weights(weights)
    run = Interpreter(lce.convert_keras_model(model), num_threads=a.threads, **options).interpreter.predict
    images = [np.ascontiguousarray(i.transpose(1, 2, 0)[None]) for i in x]
    return lambda: np.concatenate([run([i])[0] for i in images])

KINDS = {'openvino': openvino, 'openvino-binary': openvino_binary, 'torch': torch_rows, 'compiled': lambda a, x: torch_rows(a, x, True),
         'larq': larq, 'larq-best': lambda a, x: larq(a, x, use_indirect_bgemm=True, use_xnnpack=True)}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('kind'); p.add_argument('file'); p.add_argument('side', type=int); p.add_argument('batch', type=int); p.add_argument('threads', type=int)
    p.add_argument('--onnx'); p.add_argument('--values'); p.add_argument('--show', action='store_true', help='print what runs each step')
    p.add_argument('--low', type=float, default=0., help='what FakeQuantize gives below the threshold')
    a = p.parse_args()
    x = np.random.default_rng(0).standard_normal((a.batch, 3, a.side, a.side), np.float32)
    run = packed(a, x, a.kind[4:]) if a.kind.startswith('way:') else KINDS[a.kind](a, x)
    if a.values: np.save(a.values, run())
    else: serve(run)

if __name__ == '__main__': main()
