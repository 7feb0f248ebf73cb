"""What a first convolution in eight bits costs: agreement and accuracy with and without it.

    python bench/stem.py --cifar DATA --fashion DATA --out results/stem.json
    python bench/stem.py --train --out results/stem.json [--epochs 8] [--images 2500] [--seeds 0 1 2]

Two pretrained networks answer the 10,000 test images of their set with the real stem and with
`int8_stem` of it (`agree`). DATA are the folders with the binary version of CIFAR-10 and with the
idx files of Fashion-MNIST. With `--train`, the recipe `fashion` trains `reactnet_mini` with and
without `stem_bits=8`, and the real one is quantised afterwards (`trained`). With `--speed`, the
engine with the real stem and with the whole one run in turns on ReActNet-18 and -A at 224 pixels,
one thread (`speed`); the whole one reads bytes.

    python bench/stem.py --speed --out results/stem.json [--rounds 9]
    python bench/stem.py --alone --out results/stem.json [--rounds 99]

With `--alone`, only the first step of the plan runs, the copy of the picture and its convolution:
real, and in whole numbers by each way that this CPU has, in turns within one process (`alone`).
"""
import argparse, gzip, json, statistics, time
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np, torch
from fastai.basics import set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from bnn_bn.bench import take_turns, usual_rivals
from bnn_bn.core.files import write_file
from bnn_bn.data import read_cifar10
from bnn_bn.deploy import load_packed, pack
from bnn_bn.models import reactnet_nobn
from bnn_bn.onebit.counting import get_way, has_way, ways
from bnn_bn.onebit.engine import Engine, set_images
from bnn_bn.onebit.graph import to_bytes, write_bnn
from bnn_bn.onebit.kernels import Job, run_plan
from bnn_bn.onebit.stem import int8_stem
from bnn_bn.train.recipes import make_dls, make_learner, make_recipe
from bnn_bn.train.run import versions

def fashion_test(folder):
    "the 10,000 test images with a black border, (N,1,32,32), and their labels"
    def read(name, skip):
        file, = Path(folder).rglob(f't10k-{name}*')
        raw = gzip.decompress(file.read_bytes()) if file.suffix == '.gz' else file.read_bytes()
        return np.frombuffer(raw, np.uint8)[skip:]
    x = read('images', 16).reshape(-1, 1, 28, 28)
    return np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))), read('labels', 8)

def cifar_test(folder):
    *_, x, y = (t.numpy() for t in read_cifar10(folder))
    return x, y

def normalised(u, info):
    mean, std = (np.array(info[k], float).reshape(-1, 1, 1) for k in ('mean', 'std'))
    return ((u/255. - mean)/std).astype(np.float32)

def answers(graph, x): # logits, a few images at a time
    engine = Engine(graph)
    return np.concatenate([engine(part) for part in np.array_split(x, 50)])

def compare(name, u, labels):
    "answers with the real and with the whole stem"
    graph = load_packed(name).graph
    whole = int8_stem(graph)
    real, ours = answers(graph, normalised(u, graph.info)), answers(whole, u)
    a, b = real.argmax(1), ours.argmax(1)
    step = np.abs(real - ours).mean()/real.std()
    return dict(images=len(u), agree=float((a == b).mean()), disagree=int((a != b).sum()),
                accuracy=float((a == labels).mean()), int8_accuracy=float((b == labels).mean()),
                mean_difference_of_logits=float(step), bytes=len(to_bytes(graph)),
                int8_bytes=len(to_bytes(whole)))

def train(seed, bits, epochs, images):
    "accuracy of one network on the 2,000 test pictures: as trained, packed, and quantised afterwards"
    set_seed(seed)
    recipe = make_recipe('fashion', epochs=epochs, stem_bits=bits or 0)
    learn = make_learner(recipe, make_dls(recipe, device='cpu', images=images, seed=seed))
    with learn.no_bar(), learn.no_logging(): learn.fit_step(epochs, recipe.lr, schedule=recipe.schedule)
    dls, net = learn.dls, learn.model
    x, y = (torch.cat(t) for t in zip(*dls.valid))
    def right(f): return float((torch.cat([f(p) for p in x.split(250)]).argmax(1) == y).float().mean())
    with torch.no_grad(): row = dict(accuracy=right(net.eval()))
    row['packed'] = right(pack(learn))
    if bits is None: row['int8_afterwards'] = right(pack(learn, stem='int8'))
    return dict(seed=seed, stem_bits=bits, epochs=epochs, images=images, **row)

def speed(arch, rounds):
    "milliseconds with the real and with the whole stem, in turns"
    set_seed(0)
    info = dict(mean=[.485, .456, .406], std=[.229, .224, .225])
    graph = pack(reactnet_nobn(arch).eval(), **info).graph
    with TemporaryDirectory() as d:
        files = {name: write_bnn(g, Path(d)/f'{name}.bnn')
                 for name, g in dict(real=graph, int8=int8_stem(graph)).items()}
        rivals = [replace(usual_rivals(f, (224, 224), only=['packed'])[0], name=name)
                  for name, f in files.items()]
        try: return take_turns([r.start(1) for r in rivals], rounds)
        finally:
            for r in rivals: r.stop()

def nets_alone():
    "name -> graph and side of its pictures"
    set_seed(0)
    info = dict(mean=[.485, .456, .406], std=[.229, .224, .225])
    out = {}
    for arch in ('18', 'A'):
        out[f'ReActNet-{arch}, 224x224'] = pack(reactnet_nobn(arch).eval(), **info).graph, 224
    for name in ('cifar10-reactnet18-w50', 'fashion-reactnet_mini'):
        out[f'{name}, 32x32'] = load_packed(name).graph, 32
    return out

def first_step(engine, side):
    "a function that runs the first step n times, for its seconds: CPU time of this thread"
    whole, channels = engine.pixels is not None, engine.graph.channels
    u = np.random.default_rng(0).integers(0, 256, (1, channels, side, side)).astype(np.uint8)
    x, out = u if whole else u.astype(np.float32), np.empty((1, engine.n_out), np.float32)
    engine(x)
    plan = engine.plan((side, side))
    rows = set_images(plan, x, out)[[s == 0 for s in plan.steps]].copy()
    rows['step'][:1] = 0 # the copy reads the same picture each time
    table, scratch = engine.table.ctypes.data, engine.scratch[0].ctypes.data
    def run(n, keep=(plan, x, out)):
        job, begun = Job(n, 0, False), time.thread_time()
        run_plan(ways[engine.way], rows, job, table, scratch)
        return (time.thread_time() - begun)/n
    return run

def alone(graph, side, rounds):
    "seconds of the first step, and how often that of the real stem, as medians of rounds"
    whole = int8_stem(graph)
    engines = {f'real, {get_way()}': Engine(graph)}
    for way in ways:
        if way != 'neon' and has_way(way): engines[f'int8, {way}'] = Engine(whole, way=way)
    steps = {name: first_step(e, side) for name, e in engines.items()}
    n = max(2, int(.002/max(step(2) for step in steps.values())))
    turns = [[step(n) for step in steps.values()] for _ in range(rounds)]
    rows = []
    for name, seconds in zip(steps, zip(*turns)):
        times = [t/turn[0] for t, turn in zip(seconds, turns)]
        rows.append(dict(name=name, seconds=statistics.median(seconds),
                         times_first=statistics.median(times), least=min(times), greatest=max(times)))
    return rows

def parse_options():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--cifar', help='folder of CIFAR-10, for `agree`')
    p.add_argument('--fashion', help='folder of Fashion-MNIST, for `agree`')
    p.add_argument('--train', action='store_true', help='measure `trained`')
    p.add_argument('--speed', action='store_true', help='measure `speed`')
    p.add_argument('--alone', action='store_true', help='measure `alone`')
    p.add_argument('--rounds', type=int, default=9, help='of turns')
    p.add_argument('--out', type=Path, required=True, help='JSON file of the result')
    p.add_argument('--epochs', type=int, default=8, help='of --train')
    p.add_argument('--images', type=int, help='of --train, the first so many')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='of --train')
    return p.parse_args()

def measurements(a):
    "part, name (None in a list) and figures of all that was asked for, one after the other"
    sets = {'fashion-reactnet_mini': (fashion_test, a.fashion),
            'cifar10-reactnet18-w50': (cifar_test, a.cifar)}
    for name, (read, folder) in sets.items():
        if folder is not None: yield 'agree', name, compare(name, *read(folder))
    for seed, bits in product(a.seeds if a.train else [], (None, 8)):
        yield 'trained', None, train(seed, bits, a.epochs, a.images)
    for arch in ('18', 'A') if a.speed else ():
        yield 'speed', f'ReActNet-{arch}, 224x224', speed(arch, a.rounds)
    for name, (graph, side) in nets_alone().items() if a.alone else ():
        yield 'alone', name, alone(graph, side, a.rounds)

def main():
    a = parse_options()
    torch.set_num_threads(1)
    found = json.loads(a.out.read_text()) if a.out.exists() else dict(agree={}, trained=[])
    for part, name, figures in measurements(a):
        if name is None: found.setdefault(part, []).append(figures)
        else: found.setdefault(part, {})[name] = figures
        write_file(a.out, json.dumps(found | dict(versions=versions()), indent=1).encode())
    print(json.dumps(found, indent=1))

if __name__ == '__main__': main()
